"""Mosaics: all scenes of one CRS, read as if they were one, the first scene on top."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from pathlib import Path

import numpy as np
import numpy.typing as npt

from terrafine.errors import RasterError, UnreachableError
from terrafine.geometry import PixelGrid, Window, zone_name
from terrafine.raster.bandfile import UInt16Array
from terrafine.raster.catalogue import Entry, read_catalogue
from terrafine.raster.scene import ListedScene, Scene, SceneFiles, fill_of, open_scene
from terrafine.spec import ImagerySpec

log = logging.getLogger(__name__)

AnyScene = Scene | ListedScene


@dataclass(frozen=True)
class Mosaic:
    """The scenes of one CRS on one pixel grid, in order of priority.

    ``numbers``: the 1-based place of every scene in the whole spec or catalogue, which
    :meth:`read` reports. ``window``: the smallest one around all scenes. ``unreadable``: scene ->
    why it could not be read, of all that were asked so far in this process; it stays empty where
    ``skips`` is False, because the first one ends the reading.
    """

    zone: str
    scenes: tuple[AnyScene, ...]
    numbers: tuple[int, ...]
    grid: PixelGrid
    window: Window
    fill: int
    bands: int
    skips: bool = False
    unreadable: dict[str, str] = field(default_factory=dict, compare=False)

    def read(self, window: Window) -> tuple[UInt16Array, UInt16Array]:
        """(image_CHW, source_HW), both uint16, of ``window``.

        Every pixel comes from the first scene that has all its bands. ``source_HW`` is that
        scene's number in the spec (from 1), 0 where no scene has the pixel; there every band of
        the image is ``fill``. A scene that cannot be read in this window is a RasterError or,
        where the mosaic ``skips``, reported, and nothing of it is in this window. What a server
        does not give now is an UnreachableError in either case: the map must not depend on it.
        """
        image_CHW: UInt16Array | None = None
        source_HW = np.zeros(window.shape, np.uint16)
        for number, scene, part in self._parts(window):
            place = part.slices(within=window)
            missing_HW = source_HW[place] == 0
            if not missing_HW.any():
                continue
            try:
                scene_CHW = scene.read(part)
            except UnreachableError as error:
                raise UnreachableError(f"scene {scene.name}: {error}") from error
            except RasterError as error:
                if not self.skips:
                    raise
                self._report(scene.name, str(error))
                continue
            taken_HW = missing_HW
            for band_HW in scene_CHW:
                taken_HW &= band_HW != self.fill
            if image_CHW is None and part == window:
                image_CHW = scene_CHW
                if not taken_HW.all():
                    np.copyto(image_CHW, np.uint16(self.fill), where=~taken_HW)
            else:
                if image_CHW is None:
                    image_CHW = self._nothing(window)
                np.copyto(image_CHW[:, *place], scene_CHW, where=taken_HW)
            np.copyto(source_HW[place], np.uint16(number), where=taken_HW)
        return (self._nothing(window) if image_CHW is None else image_CHW), source_HW

    def _nothing(self, window: Window) -> UInt16Array:
        return np.full((self.bands, *window.shape), self.fill, np.uint16)

    def _report(self, scene: str, reason: str) -> None:
        if scene not in self.unreadable:
            log.warning("scene %s is passed over, the next one below fills in: %s", scene, reason)
            self.unreadable[scene] = reason

    def only(self, names: Collection[str]) -> Mosaic | None:
        """The mosaic of some of its scenes, or None when it has none of them."""
        kept = [i for i, scene in enumerate(self.scenes) if scene.name in names]
        if not kept:
            return None
        scenes = tuple(self.scenes[i] for i in kept)
        around = reduce(Window.union, (scene.window for scene in scenes))
        numbers = tuple(self.numbers[i] for i in kept)
        return replace(self, scenes=scenes, numbers=numbers, window=around)

    def touches(self, window: Window) -> bool:
        """Whether any scene covers a part of ``window``."""
        return bool(self._touching(window).any())

    def scenes_at(self, window: Window) -> tuple[AnyScene, ...]:
        """The scenes that cover a part of ``window``, by priority."""
        return tuple(self.scenes[index] for index in np.flatnonzero(self._touching(window)))

    def _parts(self, window: Window) -> Iterator[tuple[int, AnyScene, Window]]:
        """Number, scene and covered part of ``window``, by priority."""
        for index in np.flatnonzero(self._touching(window)):
            scene = self.scenes[index]
            part = window.intersection(scene.window)
            if part is not None:
                yield self.numbers[index], scene, part

    def _touching(self, window: Window) -> npt.NDArray[np.bool_]:
        row, col, stop_row, stop_col = self.edges
        touching = (row < window.stop_row) & (stop_row > window.row)
        touching &= (col < window.stop_col) & (stop_col > window.col)
        return np.asarray(touching)

    @cached_property
    def edges(self) -> npt.NDArray[np.int64]:
        """(4, scenes) first and last rows and columns: thousands of scenes compared at once."""
        windows = [scene.window for scene in self.scenes]
        return np.array([(w.row, w.col, w.stop_row, w.stop_col) for w in windows], np.int64).T


def open_mosaics(imagery: ImagerySpec, root: Path) -> dict[str, Mosaic]:
    """Zone name -> Mosaic of the spec's scenes, or of its catalogue's, in that CRS.

    RasterError when scenes of a zone do not lie on one grid, scenes mark missing pixels by
    different values, or the catalogue cannot be used (:func:`read_catalogue`).
    """
    if imagery.catalogue is not None:
        return _listed_mosaics(imagery, root)
    zones: dict[str, list[tuple[int, AnyScene]]] = {}
    unreadable: dict[str, str] = {}
    first: Scene | None = None
    for number, spec in enumerate(imagery.scenes, start=1):
        try:
            scene = open_scene(spec, imagery, root)
        except RasterError as error:
            if not imagery.skips_unreadable:
                raise
            log.warning("scene %s is passed over: %s", spec.name, error)
            unreadable[spec.name] = str(error)
            continue
        first = first or scene
        if scene.fill != first.fill:
            raise RasterError(
                f"{scene.where}: missing pixels are {scene.fill}, in "
                f"scene {first.name} they are {first.fill}; set imagery.nodata, or write the "
                "scenes with one nodata value"
            )
        members = zones.setdefault(zone_name(scene.grid.crs), [])
        members.append((number, scene.on_grid(members[0][1].grid) if members else scene))
    if not zones:
        raise RasterError(next(iter(unreadable.values())))
    return _mosaics(zones, imagery, unreadable)


def scene_names(mosaics: Mapping[str, Mosaic]) -> tuple[str, ...]:
    """Names of all scenes in the order that ``source_HW`` counts them, "" for one that could not
    be opened."""
    names = {
        number: scene.name
        for mosaic in mosaics.values()
        for number, scene in zip(mosaic.numbers, mosaic.scenes, strict=True)
    }
    return tuple(names.get(number, "") for number in range(1, max(names) + 1))


def unreadable_scenes(mosaics: Mapping[str, Mosaic]) -> dict[str, str]:
    """Scene -> why it could not be read, over all zones."""
    return {n: why for mosaic in mosaics.values() for n, why in sorted(mosaic.unreadable.items())}


def _listed_mosaics(imagery: ImagerySpec, root: Path) -> dict[str, Mosaic]:
    assert imagery.catalogue is not None, "only called for a catalogue"
    catalogue = read_catalogue(imagery, root)
    for name, reason in catalogue.unreadable.items():
        log.warning("scene %s is passed over: %s", name, reason)
    grids: dict[str, PixelGrid] = {}
    for entry in catalogue.entries:
        if entry.crs not in grids:
            grids[entry.crs] = _zone_grid(entry, imagery.catalogue.resolution, catalogue.where)
    zones: dict[str, list[tuple[int, AnyScene]]] = {}
    for number, entry in enumerate(catalogue.entries, start=1):
        listed = ListedScene(
            SceneFiles(entry.name, entry.files, imagery.catalogue.band_indexes, entry.mask),
            grid=grids[entry.crs],
            window=_around(entry, grids[entry.crs]),
            fill=fill_of(imagery.nodata),
            imagery=imagery,
            snaps=imagery.catalogue.resolution is not None,
        )
        zones.setdefault(zone_name(entry.crs), []).append((number, listed))
    return _mosaics(dict(sorted(zones.items())), imagery, dict(catalogue.unreadable))


def _zone_grid(entry: Entry, resolution: float | None, where: str) -> PixelGrid:
    if resolution is not None:
        return PixelGrid(entry.crs, resolution, resolution, 0.0, 0.0)
    if entry.grid is None:
        raise RasterError(
            f"{where}: scene {entry.name} states no pixels; set imagery.catalogue.resolution, or "
            "write proj:transform and proj:shape into the catalogue"
        )
    return entry.grid


def _around(entry: Entry, grid: PixelGrid) -> Window:
    """The pixels of ``grid`` that the scene's bounds touch."""
    left, bottom, right, top = entry.bounds
    # half a pixel inside: the edge of a scene on the grid touches no further pixel
    row, col = grid.pixel_of(left + grid.dx / 2, top - grid.dy / 2)
    stop_row, stop_col = grid.pixel_of(right - grid.dx / 2, bottom + grid.dy / 2)
    return Window(row, col, max(stop_row - row, 0) + 1, max(stop_col - col, 0) + 1)


def _mosaics(
    zones: Mapping[str, list[tuple[int, AnyScene]]],
    imagery: ImagerySpec,
    unreadable: Mapping[str, str],
) -> dict[str, Mosaic]:
    return {
        zone: Mosaic(
            zone=zone,
            scenes=tuple(scene for _, scene in members),
            numbers=tuple(number for number, _ in members),
            grid=members[0][1].grid,
            window=reduce(Window.union, (scene.window for _, scene in members)),
            fill=members[0][1].fill,
            bands=members[0][1].bands,
            skips=imagery.skips_unreadable,
            unreadable=dict(unreadable),
        )
        for zone, members in zones.items()
    }
