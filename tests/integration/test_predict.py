"""`terrafine predict`: one image, one map on its grid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import rasterio
from typer.testing import CliRunner

from terrafine.cli.main import app
from terrafine.errors import RasterError, SpecError, TerrafineError
from terrafine.geometry import PixelGrid
from terrafine.legend import SEVEN
from terrafine.mapping import OnnxPredictor, cut_for, decide
from terrafine.spec import EnhanceSpec
from tests.exported import FILL, WINDOW, Exported
from tests.imagery import smooth
from tests.scenes import CRS, TRANSFORM, write_raster


def predict(*arguments: str | Path) -> dict[str, object]:
    """What the command says as JSON; its errors are raised."""
    done = CliRunner().invoke(app, ["predict", *map(str, arguments), "--json"])
    if done.exception is not None:
        raise done.exception
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.fixture
def image(tmp_path: Path) -> Path:
    image_CHW = smooth(np.random.default_rng(4), 150, 210)
    image_CHW[:, 20:60, 30:50] = 9999
    write_raster(tmp_path / "scene.tif", image_CHW, nodata=9999)
    return tmp_path / "scene.tif"


def test_a_map_lies_on_the_images_grid_in_the_legends_colours(
    exported_hrnet: Exported, image: Path
) -> None:
    said = predict(image, "--graph", exported_hrnet.graph)
    with rasterio.open(image.with_name("scene.landcover.tif")) as found, rasterio.open(image) as of:
        codes_HW = found.read(1)
        assert (found.crs, found.transform, found.shape) == (of.crs, of.transform, of.shape)
        assert found.colormap(1)[SEVEN.codes[0]][:3] == SEVEN.classes[0].rgb
        assert found.tags()["MADE_BY"] == f"model {exported_hrnet.info.digest}"
        missing = (of.read() == 9999).all(axis=0)
    assert (codes_HW[missing] == 0).all()
    assert (codes_HW[~missing] > 0).all()
    assert sum(said["pixels"].values()) == codes_HW.size
    assert [p.name for p in image.parent.iterdir() if ".tif." in p.name] == [
        "scene.landcover.tif.aux.xml"
    ]


def test_every_pixel_is_what_its_window_on_the_global_grid_says(
    exported_hrnet: Exported, image: Path, tmp_path: Path
) -> None:
    """Without enhancement a core's pixels are the network's argmax for the window around it."""
    out = tmp_path / "plain.tif"
    predict(image, "--graph", exported_hrnet.graph, "--out", out, "--no-enhance")
    predictor = OnnxPredictor(exported_hrnet.graph)
    with rasterio.open(image) as dataset, rasterio.open(out) as made:
        raw, codes_HW = dataset.read(), made.read(1)
    grid = PixelGrid.from_transform(CRS, TRANSFORM, where="test")
    placed = grid.window(TRANSFORM, raw.shape[1:], where="test")
    raw[raw == 9999] = FILL
    core, halo = WINDOW // 2, WINDOW // 4
    # the first core of the grid that lies wholly inside, with its halo
    top, left = (core - start % core for start in (placed.row, placed.col))
    top, left = (start + core if start < halo else start for start in (top, left))
    window = raw[None, :, top - halo : top + core + halo, left - halo : left + core + halo]
    answer = predictor.predict(np.ascontiguousarray(window))
    arrays = (answer.enhanced_NHW[0], answer.other_class_NHW[0], answer.other_NHW[0])
    said, _ = decide(*arrays, None, enhanced_code=SEVEN.code_of("impervious"), spec=EnhanceSpec())
    inner = slice(halo, halo + core)
    assert np.array_equal(codes_HW[top : top + core, left : left + core], said[inner, inner])


def test_bands_are_taken_in_the_order_asked_for(
    exported_hrnet: Exported, image: Path, tmp_path: Path
) -> None:
    turned = tmp_path / "bgr.tif"
    with rasterio.open(image) as dataset:
        write_raster(turned, dataset.read([3, 2, 1, 4]), nodata=9999)
    straight, back = tmp_path / "straight.tif", tmp_path / "back.tif"
    predict(image, "--graph", exported_hrnet.graph, "--out", straight)
    predict(turned, "--graph", exported_hrnet.graph, "--out", back, "--bands", "3,2,1,4")
    with rasterio.open(straight) as one, rasterio.open(back) as two:
        assert np.array_equal(one.read(1), two.read(1))


def test_a_model_of_reflectances_is_given_them_as_it_was_in_training(
    exported_hrnet: Exported, image: Path, tmp_path: Path
) -> None:
    graph = onnx.load(exported_hrnet.graph)
    (scale,) = (entry for entry in graph.metadata_props if entry.key == "terrafine.scale")
    scale.value = "10000.0"
    onnx.save(graph, tmp_path / "scaled.onnx")
    with rasterio.open(image) as dataset:
        raw_CHW = dataset.read()
    reflectances = np.where(raw_CHW == 9999, -1, raw_CHW / 10000)
    write_raster(tmp_path / "reflectances.tif", reflectances, nodata=-1)
    whole, scaled = tmp_path / "whole.tif", tmp_path / "of_scaled.tif"
    predict(image, "--graph", exported_hrnet.graph, "--out", whole)
    graph_of = ("--graph", tmp_path / "scaled.onnx", "--out", scaled)
    predict(tmp_path / "reflectances.tif", *graph_of)
    with rasterio.open(whole) as one, rasterio.open(scaled) as two:
        assert np.array_equal(one.read(1), two.read(1))
    with pytest.raises(SpecError, match="--scale 1: the model was trained on imagery at scale 100"):
        predict(tmp_path / "reflectances.tif", *graph_of, "--scale", "1")
    with pytest.raises(RasterError, match="times scale 10000 it does not fit"):
        predict(image, *graph_of)


def test_a_file_that_names_its_bands_in_another_order_is_not_taken_for_the_models(
    exported_hrnet: Exported, image: Path
) -> None:
    graph = ("--graph", exported_hrnet.graph)
    with rasterio.open(image, "r+") as dataset:
        dataset.descriptions = ("Blue", "Green", "Red", "NIR")
    reason = r"takes red, green, blue, nir .* calls its band 1 'Blue'; give --bands 3,2,1,4"
    for order in ((), ("--bands", "1,2,3,4")):
        with pytest.raises(SpecError, match=reason):
            predict(image, *graph, *order)
    predict(image, *graph, "--bands", "3,2,1,4")
    with rasterio.open(image, "r+") as dataset:
        dataset.descriptions = ("coastal", "red", "green", "blue")
    with pytest.raises(SpecError, match=r"band 1 'coastal'; give --bands 2,3,4,\?"):
        predict(image, *graph)
    with rasterio.open(image, "r+") as dataset:
        dataset.descriptions = ("B4", "B3", "B2", "B8")
    predict(image, *graph)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "either --url of a model server or --graph"),
        (("--url", "http://host:8000"), r"'http://host:8000' is no address .* grpc://host:8001"),
        (("--graph", "none.onnx"), "none.onnx: no exported model here"),
    ],
)
def test_bad_arguments_are_said_in_a_sentence(
    image: Path, arguments: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(TerrafineError, match=reason):
        predict(image, *arguments)


def test_bad_images_are_said_in_a_sentence_and_leave_no_map(
    exported_hrnet: Exported, image: Path
) -> None:
    graph = ("--graph", exported_hrnet.graph)
    with pytest.raises(RasterError, match=r"nowhere\.tif"):
        predict(image.with_name("nowhere.tif"), *graph)
    with pytest.raises(RasterError, match="band 9 is needed"):
        predict(image, *graph, "--bands", "1,2,3,9")
    with pytest.raises(SpecError, match=r"--bands 'red': give numbers"):
        predict(image, *graph, "--bands", "red")
    with pytest.raises(SpecError, match="is the image itself"):
        predict(image, *graph, "--out", image)
    with pytest.raises(TerrafineError, match="windows of 64 pixels have no core of 48"):
        predict(image, *graph, "--core", "48")
    assert not image.with_name("scene.landcover.tif").exists()


@pytest.mark.parametrize(
    ("window", "core", "halo"), [(1280, 1024, 128), (1024, 512, 256), (64, 32, 16)]
)
def test_windows_are_cut_as_the_map_is(window: int, core: int, halo: int) -> None:
    spec = cut_for(window, core=None, enhance=EnhanceSpec())
    assert (spec.core, spec.halo, spec.window) == (core, halo, window)
    assert cut_for(window, core=32, enhance=EnhanceSpec()).halo == (window - 32) // 2
