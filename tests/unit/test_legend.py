"""Classes and crosswalks: every code of every product goes where the field says."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from terrafine.errors import LegendError
from terrafine.legend import CROSSWALKS, FBP, LEGENDS, SEVEN, Crosswalk, LandClass, Legend

# Typed again from the products' own tables (target: codes), so that a slip in one place shows.
PRODUCTS = {
    "FROM-GLC10": {1: [10], 2: [20, 40], 3: [30], 4: [60], 5: [80], 6: [90], 7: [100], 0: [50, 70]},
    "ESA-WorldCover": {
        1: [40], 2: [10, 20, 95], 3: [30], 4: [80], 5: [50], 6: [60], 7: [70], 0: [90, 100],
    },
    "Dynamic-World": {1: [4], 2: [1, 5], 3: [2], 4: [0], 5: [6], 6: [7], 7: [8], 0: [3]},
    "Esri-LULC": {1: [5], 2: [2], 3: [11], 4: [1], 5: [7], 6: [8], 7: [9], 0: [4, 10]},
    "NLCD": {
        1: [82], 2: [41, 42, 43, 52], 3: [71, 81], 4: [11], 5: [22, 23, 24], 6: [31], 7: [12],
        0: [21, 90, 95],
    },
    "CORINE": {
        1: [211, 212, 213, 221, 222, 223, 241, 242, 243, 244],
        2: [311, 312, 313, 322, 323, 324],
        3: [231, 321],
        4: [511, 512, 521, 522, 523],
        5: [111, 112, 121, 122, 123, 124],
        6: [131, 132, 133, 331, 332, 333],
        7: [335],
        0: [141, 142, 334, 411, 412, 421, 422, 423],
    },
    "NORTH-CAROLINA-1996": {5: [1], 1: [2], 3: [3, 4], 2: [5], 4: [6], 6: [7]},
}  # fmt: skip


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_product_goes_to_the_seven_classes_code_by_code(product: str) -> None:
    walk = CROSSWALKS[product]
    wanted = {code: target for target, codes in PRODUCTS[product].items() for code in codes}
    assert dict(walk.mapping) == wanted
    codes = np.array(list(wanted), np.uint16)
    assert walk.apply(codes, where="label.tif").tolist() == list(wanted.values())


def test_corine_numbers_its_raster_in_the_order_of_its_codes() -> None:
    raster, level3 = CROSSWALKS["CORINE-raster"].mapping, CROSSWALKS["CORINE"].mapping
    assert len(raster) == len(level3) == 44
    assert [raster[i] for i in range(1, 45)] == [level3[code] for code in sorted(level3)]


@pytest.mark.parametrize("walk", [w for n, w in CROSSWALKS.items() if n != "fbp"])
def test_every_crosswalk_leads_into_the_seven_classes(walk: Crosswalk) -> None:
    walk.check(SEVEN)


def test_five_billion_pixels_is_a_legend_and_a_label_product() -> None:
    assert len(FBP.classes) == 24
    assert set(CROSSWALKS["FBP"].mapping) == set(FBP.codes)
    CROSSWALKS["fbp"].check(FBP)
    with pytest.raises(LegendError, match=r"'fbp' sends code 8 to class 8.*'seven' does not have"):
        CROSSWALKS["fbp"].check(SEVEN)


def test_nodata_is_no_class_whatever_its_value() -> None:
    walk = Crosswalk(name="w", mapping={0: 4, 3: 1}, nodata=float("nan"))
    codes = np.array([[0, 3], [np.nan, 3]])
    assert walk.apply(codes, where="w.tif").tolist() == [[4, 1], [0, 1]]
    negative = Crosswalk(name="w", mapping={3: 1}, nodata=-99999)
    assert negative.apply(np.array([-99999.0, 3.0]), where="w.tif").tolist() == [0, 1]


@pytest.mark.parametrize("wrong", [77, -3, 3.5, np.nan, 70000], ids=str)
def test_a_code_the_product_does_not_have_is_refused(wrong: float) -> None:
    codes = np.array([10, wrong, wrong, 20], np.float64)
    with pytest.raises(LegendError) as error:
        CROSSWALKS["FROM-GLC10"].apply(codes, where="product.tif")
    message = str(error.value)
    assert message.startswith("product.tif: ")
    assert f"{wrong:g} (2 pixels)" in message
    assert "'FROM-GLC10'" in message
    assert "add the codes" in message


def test_only_the_first_codes_are_listed_where_all_are_unknown() -> None:
    with pytest.raises(LegendError, match=r"101 .*108 \(1 pixels\) are not"):
        CROSSWALKS["FROM-GLC10"].apply(np.arange(101, 201), where="photo.tif")


@pytest.mark.parametrize("legend", LEGENDS.values(), ids=lambda legend: legend.name)
def test_tables_turn_codes_into_outputs_and_back(legend: Legend) -> None:
    codes = np.array(legend.codes)
    outputs = legend.index_table[codes]
    assert outputs.tolist() == list(range(len(codes)))
    assert (legend.code_table[outputs] == codes).all()
    others = np.setdiff1d(np.arange(256), codes)
    assert (legend.index_table[others] == 255).all()
    assert (legend.color_table[others, 3] == 0).all()
    assert (legend.color_table[codes, 3] == 255).all()
    assert len({c.color.lower() for c in legend.classes}) == len(codes), "two classes look alike"


def test_the_enhanced_class_is_found_by_name() -> None:
    assert SEVEN.enhanced_index == 4
    assert SEVEN.code_of("impervious") == 5
    assert FBP.enhanced_index is None
    with pytest.raises(LegendError, match=r"no class 'roads'; it has cropland, woodland"):
        SEVEN.code_of("roads")


def land(code: int, name: str) -> LandClass:
    return LandClass(code=code, name=name, color="#102030")


def test_a_legend_cannot_contradict_itself() -> None:
    with pytest.raises(ValidationError, match="code 1 stands twice"):
        Legend(name="x", classes=(land(1, "a"), land(1, "b")))
    with pytest.raises(ValidationError, match="name 'a' stands twice"):
        Legend(name="x", classes=(land(1, "a"), land(2, "a")))
    with pytest.raises(ValidationError, match="enhanced class 'c' is none of"):
        Legend(name="x", classes=(land(1, "a"), land(2, "b")), enhanced="c")
    for reserved in (0, 255):
        with pytest.raises(ValidationError):
            land(reserved, "reserved")


def test_a_legend_is_recognised_by_its_digest() -> None:
    first = Legend(name="x", classes=(land(1, "a"), land(2, "b")))
    assert first.digest == Legend.model_validate_json(first.model_dump_json()).digest
    assert first.digest != Legend(name="x", classes=(land(1, "a"), land(3, "b"))).digest
    assert land(1, "a").rgb == (16, 32, 48)
