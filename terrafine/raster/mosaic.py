"""Mosaics: all scenes of one CRS, read as if they were one, the first scene on top."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path

import numpy as np
import numpy.typing as npt

from terrafine.errors import RasterError
from terrafine.geometry import PixelGrid, Window, zone_name
from terrafine.raster.scene import Scene, UInt16Array, open_scene
from terrafine.spec import ImagerySpec


@dataclass(frozen=True)
class Mosaic:
    """The scenes of one CRS on one pixel grid, in order of priority.

    ``numbers``: the 1-based place of every scene in the whole spec, which :meth:`read` reports.
    ``window``: the smallest one around all scenes.
    """

    zone: str
    scenes: tuple[Scene, ...]
    numbers: tuple[int, ...]
    grid: PixelGrid
    window: Window
    fill: int
    bands: int

    def read(self, window: Window) -> tuple[UInt16Array, UInt16Array]:
        """(image_CHW, source_HW), both uint16, of ``window``.

        Every pixel comes from the first scene that has all its bands. ``source_HW`` is that
        scene's number in the spec (from 1), 0 where no scene has the pixel; there every band of
        the image is ``fill``.
        """
        image_CHW = np.full((self.bands, *window.shape), self.fill, np.uint16)
        source_HW = np.zeros(window.shape, np.uint16)
        for number, scene, part in self._parts(window):
            place = part.slices(within=window)
            missing_HW = source_HW[place] == 0
            if not missing_HW.any():
                continue
            scene_CHW = scene.read(part)
            taken_HW = missing_HW & (scene_CHW != self.fill).all(axis=0)
            np.copyto(image_CHW[:, *place], scene_CHW, where=taken_HW)
            source_HW[place][taken_HW] = number
        return image_CHW, source_HW

    def touches(self, window: Window) -> bool:
        """Whether any scene covers a part of ``window``."""
        return any(True for _ in self._parts(window))

    def _parts(self, window: Window) -> Iterator[tuple[int, Scene, Window]]:
        """Number, scene and covered part of ``window``, by priority."""
        row, col, stop_row, stop_col = self._edges
        touching = (row < window.stop_row) & (stop_row > window.row)
        touching &= (col < window.stop_col) & (stop_col > window.col)
        for index in np.flatnonzero(touching):
            scene = self.scenes[index]
            part = window.intersection(scene.window)
            if part is not None:
                yield self.numbers[index], scene, part

    @cached_property
    def _edges(self) -> npt.NDArray[np.int64]:
        """(4, scenes) first and last rows and columns: thousands of scenes compared at once."""
        windows = [scene.window for scene in self.scenes]
        return np.array([(w.row, w.col, w.stop_row, w.stop_col) for w in windows], np.int64).T


def open_mosaics(imagery: ImagerySpec, root: Path) -> dict[str, Mosaic]:
    """Zone name -> Mosaic of the spec's scenes in that CRS.

    RasterError when scenes of a zone do not lie on one grid, or scenes mark missing pixels by
    different values.
    """
    zones: dict[str, list[tuple[int, Scene]]] = {}
    first: Scene | None = None
    for number, spec in enumerate(imagery.scenes, start=1):
        scene = open_scene(spec, imagery, root)
        first = first or scene
        if scene.fill != first.fill:
            raise RasterError(
                f"scene {scene.name} ({scene.files[0].path}): missing pixels are {scene.fill}, in "
                f"scene {first.name} they are {first.fill}; set imagery.nodata, or write the "
                "scenes with one nodata value"
            )
        members = zones.setdefault(zone_name(scene.grid.crs), [])
        members.append((number, scene.on_grid(members[0][1].grid) if members else scene))
    return {zone: _mosaic(zone, members) for zone, members in zones.items()}


def _mosaic(zone: str, members: list[tuple[int, Scene]]) -> Mosaic:
    scenes = tuple(scene for _, scene in members)
    return Mosaic(
        zone=zone,
        scenes=scenes,
        numbers=tuple(number for number, _ in members),
        grid=scenes[0].grid,
        window=reduce(Window.union, (scene.window for scene in scenes)),
        fill=scenes[0].fill,
        bands=scenes[0].bands,
    )
