"""Legends (the classes of a map) and crosswalks (from a label product's codes to a legend).

Code 0 means "looked at, no class" (ignored in training), 255 "never written": both are reserved
and no class of a legend may use them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from terrafine.errors import LegendError

NO_CLASS = 0
UNWRITTEN = 255

UInt8Array = npt.NDArray[np.uint8]


class LandClass(BaseModel):
    """One class: its code in the map (1..254), its name and its colour."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: Annotated[int, Field(ge=1, le=254)]
    name: str
    color: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue, 0..255."""
        red, green, blue = bytes.fromhex(self.color[1:])
        return red, green, blue


class Legend(BaseModel):
    """The classes of a map, in the order of the network's outputs.

    ``enhanced`` names the class whose probability is sharpened by CLAHE after inference
    (impervious in Dong et al. 2020, section 3.3), or is None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    classes: Annotated[tuple[LandClass, ...], Field(min_length=2)]
    enhanced: str | None = None

    @model_validator(mode="after")
    def _distinct(self) -> Legend:
        columns: dict[str, list[int | str]] = {
            "code": [c.code for c in self.classes],
            "name": [c.name for c in self.classes],
        }
        for what, values in columns.items():
            twice = {v for v in values if values.count(v) > 1}
            if twice:
                raise ValueError(f"legend {self.name!r}: {what} {twice.pop()!r} stands twice")
        if self.enhanced is not None and self.enhanced not in self.names:
            raise ValueError(
                f"legend {self.name!r}: enhanced class {self.enhanced!r} is none of {self.names}"
            )
        return self

    @property
    def codes(self) -> tuple[int, ...]:
        """Codes in output order."""
        return tuple(c.code for c in self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in output order."""
        return tuple(c.name for c in self.classes)

    @property
    def enhanced_index(self) -> int | None:
        """Output index of the enhanced class."""
        return None if self.enhanced is None else self.names.index(self.enhanced)

    @property
    def digest(self) -> str:
        """SHA-256 of everything in the legend; two maps are comparable where it is equal."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def code_of(self, name: str) -> int:
        """Code of the class called ``name``; LegendError with the known names otherwise."""
        try:
            return self.codes[self.names.index(name)]
        except ValueError as error:
            raise LegendError(
                f"legend {self.name!r} has no class {name!r}; it has {', '.join(self.names)}"
            ) from error

    @cached_property
    def index_table(self) -> UInt8Array:
        """(256,) uint8: class code -> output index; every other code -> 255 (ignored)."""
        table = np.full(256, 255, np.uint8)
        table[list(self.codes)] = np.arange(len(self.codes))
        return table

    @cached_property
    def code_table(self) -> UInt8Array:
        """(K,) uint8: output index -> class code."""
        return np.array(self.codes, np.uint8)

    @cached_property
    def color_table(self) -> UInt8Array:
        """(256, 4) uint8 RGBA: class code -> colour; codes outside the legend are transparent."""
        table = np.zeros((256, 4), np.uint8)
        for item in self.classes:
            table[item.code] = (*item.rgb, 255)
        return table


class Crosswalk(BaseModel):
    """From the codes of a label product to the codes of a legend (0: ignore)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    mapping: Mapping[Annotated[int, Field(ge=0, le=65535)], Annotated[int, Field(ge=0, le=254)]]
    nodata: float | None = None

    @cached_property
    def _table(self) -> npt.NDArray[np.int16]:
        """(65537,) product code -> legend code, -1 where unknown; the last entry is for nodata."""
        table = np.full(65537, -1, np.int16)
        for code, target in self.mapping.items():
            table[code] = target
        table[-1] = NO_CLASS
        return table

    def apply(self, codes: npt.NDArray[Any], *, where: str) -> UInt8Array:
        """Map product codes to legend codes.

        Parameters: ``codes`` any integer array, or a float array of whole numbers; ``where`` the
        file, for the error. Pixels equal to ``nodata`` become 0.
        Returns uint8 of the same shape. Raises LegendError on codes the crosswalk does not know.
        """
        known = (codes >= 0) & (codes <= 65535) & (codes == np.floor(codes))
        if self.nodata is None:
            missing = np.zeros(codes.shape, bool)
        else:
            missing = np.isnan(codes) if np.isnan(self.nodata) else codes == self.nodata
        index = np.where(known, codes, 0).astype(np.intp)
        index[missing] = 65536
        mapped = self._table[index]
        unknown = (mapped < 0) | ~(known | missing)
        if unknown.any():
            found, counts = np.unique(codes[unknown], return_counts=True)
            listed = ", ".join(
                f"{c:g} ({n} pixels)" for c, n in zip(found[:8], counts[:8], strict=True)
            )
            raise LegendError(
                f"{where}: label codes {listed} are not in crosswalk {self.name!r}; name the "
                "product's own crosswalk, add the codes to it (target 0 ignores them), "
                "or give them as nodata"
            )
        return mapped.astype(np.uint8)

    def check(self, legend: Legend) -> None:
        """Raise LegendError when a target is no class of ``legend``."""
        wrong = {c: t for c, t in self.mapping.items() if t != NO_CLASS and t not in legend.codes}
        if wrong:
            code, target = next(iter(wrong.items()))
            raise LegendError(
                f"crosswalk {self.name!r} sends code {code} to class {target}, which legend "
                f"{legend.name!r} does not have (it has {list(legend.codes)}); "
                "give labels.crosswalk a mapping onto this legend"
            )


def _classes(rows: Iterable[tuple[int, str, str]]) -> tuple[LandClass, ...]:
    return tuple(LandClass(code=code, name=name, color=color) for code, name, color in rows)


# Classes of Dong et al. 2020, section 2.2; colours as in ESA WorldCover, which people know.
SEVEN = Legend(
    name="seven",
    enhanced="impervious",
    classes=_classes(
        [
            (1, "cropland", "#f096ff"),
            (2, "woodland", "#006400"),
            (3, "grassland", "#ffff4c"),
            (4, "water", "#0064c8"),
            (5, "impervious", "#fa0000"),
            (6, "bare land", "#b4b4b4"),
            (7, "snow/ice", "#f0f0f0"),
        ]
    ),
)

# Classes and colours of Five-Billion-Pixels (Tong, Xia, Zhu 2023).
FBP = Legend(
    name="fbp",
    classes=_classes(
        [
            (1, "industrial area", "#c80000"),
            (2, "paddy field", "#00c800"),
            (3, "irrigated field", "#96fa00"),
            (4, "dry cropland", "#96c896"),
            (5, "garden land", "#c800c8"),
            (6, "arbor forest", "#9600fa"),
            (7, "shrub forest", "#9696fa"),
            (8, "park", "#c896c8"),
            (9, "natural meadow", "#fac800"),
            (10, "artificial meadow", "#c8c800"),
            (11, "river", "#0000c8"),
            (12, "urban residential", "#fa0096"),
            (13, "lake", "#0096c8"),
            (14, "pond", "#00c8fa"),
            (15, "fish pond", "#96c8fa"),
            (16, "snow", "#fafafa"),
            (17, "bare land", "#c8c8c8"),
            (18, "rural residential", "#c89696"),
            (19, "stadium", "#fac896"),
            (20, "square", "#969600"),
            (21, "road", "#fa9696"),
            (22, "overpass", "#fa9600"),
            (23, "railway station", "#fac8fa"),
            (24, "airport", "#c89600"),
        ]
    ),
)

LEGENDS: Mapping[str, Legend] = {legend.name: legend for legend in (SEVEN, FBP)}


def _mapping(groups: Mapping[int, Iterable[int]]) -> dict[int, int]:
    return {code: target for target, codes in groups.items() for code in codes}


def _codes(*spans: tuple[int, int] | int) -> list[int]:
    """Codes of inclusive spans."""
    out: list[int] = []
    for span in spans:
        first, last = (span, span) if isinstance(span, int) else span
        out.extend(range(first, last + 1))
    return out


# CORINE's 44 level-3 classes; its 100-m raster numbers them 1..44 in this order.
_CORINE_LEVEL3 = (
    *(111, 112, 121, 122, 123, 124, 131, 132, 133, 141, 142),
    *(211, 212, 213, 221, 222, 223, 231, 241, 242, 243, 244),
    *(311, 312, 313, 321, 322, 323, 324, 331, 332, 333, 334, 335),
    *(411, 412, 421, 422, 423, 511, 512, 521, 522, 523),
)
_CORINE_TO_SEVEN = dict.fromkeys(_CORINE_LEVEL3, NO_CLASS) | {
    code: target
    for code, target in _mapping(
        {
            1: _codes((211, 223), (241, 244)),
            2: _codes((311, 313), (322, 324)),
            3: [231, 321],
            4: _codes((511, 523)),
            5: _codes((111, 124)),
            6: _codes((131, 133), (331, 333)),
            7: [335],
        }
    ).items()
    if code in _CORINE_LEVEL3
}


def _crosswalk(name: str, groups: Mapping[int, Iterable[int]], nodata: float | None) -> Crosswalk:
    return Crosswalk(name=name, mapping=_mapping(groups), nodata=nodata)


# FROM-GLC10's targets are Dong et al.'s (section 2.2); the reasons behind the others are in
# docs/legends.md. NORTH-CAROLINA-1996 is the `strata` map of the demo scene.
CROSSWALKS: Mapping[str, Crosswalk] = {
    walk.name: walk
    for walk in (
        _crosswalk(
            "FROM-GLC10",
            {1: [10], 2: [20, 40], 3: [30], 4: [60], 5: [80], 6: [90], 7: [100], 0: [50, 70]},
            nodata=0,
        ),
        _crosswalk(
            "ESA-WorldCover",
            {1: [40], 2: [10, 20, 95], 3: [30], 4: [80], 5: [50], 6: [60], 7: [70], 0: [90, 100]},
            nodata=0,
        ),
        _crosswalk(
            "Dynamic-World",
            {1: [4], 2: [1, 5], 3: [2], 4: [0], 5: [6], 6: [7], 7: [8], 0: [3]},
            nodata=255,
        ),
        _crosswalk(
            "Esri-LULC",
            {1: [5], 2: [2], 3: [11], 4: [1], 5: [7], 6: [8], 7: [9], 0: [4, 10]},
            nodata=0,
        ),
        _crosswalk(
            "NLCD",
            {
                1: [82],
                2: [41, 42, 43, 52],
                3: [71, 81],
                4: [11],
                5: [22, 23, 24],
                6: [31],
                7: [12],
                0: [21, 90, 95],
            },
            nodata=255,
        ),
        Crosswalk(name="CORINE", mapping=_CORINE_TO_SEVEN, nodata=999),
        Crosswalk(
            name="CORINE-raster",
            mapping={i + 1: _CORINE_TO_SEVEN[code] for i, code in enumerate(_CORINE_LEVEL3)},
            nodata=48,
        ),
        _crosswalk(
            "NORTH-CAROLINA-1996",
            {5: [1], 1: [2], 3: [3, 4], 2: [5], 4: [6], 6: [7]},
            nodata=None,
        ),
        Crosswalk(name="seven", mapping={code: code for code in SEVEN.codes}, nodata=0),
        Crosswalk(name="fbp", mapping={code: code for code in FBP.codes}, nodata=0),
        _crosswalk(
            "FBP",
            {
                1: _codes((2, 4)),
                2: _codes((5, 7)),
                3: [9, 10],
                4: [11, 13, 14, 15],
                5: [1, 12, *_codes((18, 24))],
                6: [17],
                7: [16],
                0: [8],
            },
            nodata=0,
        ),
    )
}
