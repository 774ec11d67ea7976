"""What a map was made from, seen behind it: the spec's imagery and its coarse product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from terrafine.geometry import PixelGrid, Window
from terrafine.legend import UInt8Array
from terrafine.publish.figures import (
    FALSE_COLOUR,
    TRUE_COLOUR,
    Stretch,
    UInt16Array,
    display_bands,
    render_image,
    stretch_of,
)
from terrafine.raster import ClassRaster, Mosaic, look_at, open_class_raster, open_mosaics
from terrafine.spec import MapSpec
from terrafine.view.maps import BUDGET
from terrafine.view.mercator import TILE, Place, Tile

# A tile is not made from more scenes: each is a file to open, on another machine perhaps.
_MOST_SCENES = 32

# The stretch comes from a few scenes, seen at this size.
_SAMPLED_SCENES, _SAMPLE = 6, 256


@dataclass(frozen=True)
class Imagery:
    """The scenes of a spec. ``bands``: their names; ``looks``: name of a rendering -> bands shown
    red, green and blue."""

    mosaics: Mapping[str, Mosaic]
    bands: tuple[str, ...]
    looks: Mapping[str, tuple[int, int, int]]

    @classmethod
    def of(cls, spec: MapSpec, data: Path) -> Imagery:
        """The spec's imagery: in true colour or, without those bands, its first three; in infrared
        too, where there is such a band."""
        names = spec.imagery.bands
        true, false = (display_bands(names, wanted) for wanted in (TRUE_COLOUR, FALSE_COLOUR))
        first = (0, min(1, len(names) - 1), min(2, len(names) - 1))
        looks = {"imagery": true or first, **({"infrared": false} if false else {})}
        return cls(open_mosaics(spec.imagery, data), tuple(names), looks)

    def tile(self, look: str, tile: Tile) -> UInt8Array:
        """(H, W, 4) RGBA, transparent where no scene is."""
        rgba = np.zeros((TILE, TILE, 4), np.uint8)
        for zone, mosaic in self.mosaics.items():
            under = self._places[zone].under(tile)
            if under is None or len(mosaic.scenes_at(under)) > _MOST_SCENES:
                continue
            image_CHW = look_at(mosaic, under, tile.grid, tile.window)
            found = render_image(image_CHW, mosaic.fill, self.looks[look], self._stretches[look])
            rgba = np.where(rgba[..., 3:] > 0, rgba, found)
        return rgba

    def values(self, zone: str, pixel: Window) -> dict[str, int] | None:
        """Band -> the number that the sensor delivered at a pixel; None where no scene has it."""
        if zone not in self.mosaics:
            return None
        image_CHW, source_HW = self.mosaics[zone].read(pixel)
        if source_HW[0, 0] == 0:
            return None
        return dict(zip(self.bands, image_CHW[:, 0, 0].tolist(), strict=True))

    @property
    def fine_from(self) -> int:
        """The zoom level from which tiles are not made from too many scenes."""
        crowded = [
            self._places[zone].zoom_for(4 * np.median([s.window.width for s in m.scenes]) / TILE)
            for zone, m in self.mosaics.items()
            if len(m.scenes) > _MOST_SCENES
        ]
        return max(crowded, default=0)

    @cached_property
    def _places(self) -> dict[str, Place]:
        return {zone: Place(mosaic.grid, mosaic.window) for zone, mosaic in self.mosaics.items()}

    @cached_property
    def _stretches(self) -> dict[str, Stretch]:
        sample_CHW = np.concatenate([_sample(mosaic) for mosaic in self.mosaics.values()], axis=2)
        fill = next(iter(self.mosaics.values())).fill
        return {name: stretch_of(sample_CHW, fill, bands) for name, bands in self.looks.items()}


@dataclass(frozen=True)
class Product:
    """The coarse product that a map was made from, in the map's legend."""

    raster: ClassRaster

    @classmethod
    def of(cls, spec: MapSpec, data: Path) -> Product | None:
        """The spec's label product, or None where it names none."""
        if spec.labels is None:
            return None
        return cls(open_class_raster(spec.labels, spec.resolve_legend(), data))

    def tile(self, tile: Tile) -> UInt8Array:
        """(H, W) uint8 codes, 0 where the product has no class."""
        if tile.z < self.fine_from or self._place.under(tile) is None:
            return np.zeros((TILE, TILE), np.uint8)
        return self.raster.read(tile.grid, tile.window)

    @cached_property
    def fine_from(self) -> int:
        """The zoom level from which a tile is not made from too many pixels."""
        height, width = self.raster.window.shape
        return 0 if height * width <= BUDGET else self._place.zoom_for(BUDGET**0.5 / TILE)

    @cached_property
    def _place(self) -> Place:
        return Place(self.raster.grid, self.raster.window)


def _sample(mosaic: Mosaic) -> UInt16Array:
    """(bands, 1, pixels) of a few scenes that lie apart, thinned."""
    grid, seen = mosaic.grid, []
    for scene in mosaic.scenes[:: -(-len(mosaic.scenes) // _SAMPLED_SCENES)]:
        window = scene.window
        step = max(1, max(window.shape) // _SAMPLE)
        coarse = PixelGrid(grid.crs, grid.dx * step, grid.dy * step, grid.x0, grid.y0)
        shown = Window(*(v // step for v in (window.row, window.col, *window.shape)))
        seen.append(look_at(mosaic, window, coarse, shown).reshape(mosaic.bands, 1, -1))
    return np.concatenate(seen, axis=2)
