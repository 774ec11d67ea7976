"""Scenes: the fine imagery, read window by window as uint16 in the sensor's own numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from terrafine.errors import RasterError
from terrafine.geometry import PixelGrid, Window
from terrafine.raster.bandfile import BandFile, UInt16Array
from terrafine.raster.files import Place, file_name, opened, require_raster
from terrafine.spec import ImagerySpec, SceneSpec, resolve_in

DEFAULT_FILL = 65535
_MAX = 65535

# Scenes of a catalogue whose files a process remembers to have checked.
_REMEMBERED = 4096


@dataclass(frozen=True)
class CloudMask:
    """A file and the numbers in it that mean missing."""

    file: BandFile
    values: tuple[int, ...]


@dataclass(frozen=True)
class Scene:
    """One scene on its pixel grid; its files are checked, nothing is read before :meth:`read`.

    ``window``: where it lies, in the grid's global pixel numbers. ``fill``: the uint16 that marks
    missing pixels. ``bands``: how many there are, in the spec's order.
    """

    name: str
    grid: PixelGrid
    window: Window
    fill: int
    bands: int
    scale: float
    files: tuple[BandFile, ...]
    mask: CloudMask | None = None

    @property
    def where(self) -> str:
        """The scene and its first file, as errors name it."""
        return f"scene {self.name} ({self.files[0].path})"

    def read(self, window: Window) -> UInt16Array:
        """image_CHW uint16 of ``window``: stored values times the spec's scale, rounded.

        Outside the scene, where the file or the spec says nodata and where the cloud mask says so:
        ``fill``.
        A valid pixel whose value happens to be ``fill`` is a missing pixel. RasterError names
        file, band, row, column and value of a number that fits no uint16 (NaN, negative, too
        large, or not whole at scale 1).
        """
        part = window.intersection(self.window)
        if part == window and len(self.files) == 1 and self.mask is None:
            (file,) = self.files
            found = file.read_uint16(part, self.grid, fill=self.fill, scale=self.scale)
            return np.asarray(found)
        image_CHW = np.full((self.bands, *window.shape), self.fill, np.uint16)
        if part is None:
            return image_CHW
        rows, cols = part.slices(within=window)
        band = 0
        for file in self.files:
            found = file.read_uint16(part, self.grid, fill=self.fill, scale=self.scale)
            for stored_HW in found:
                image_CHW[band, rows, cols] = stored_HW
                band += 1
        if self.mask is not None:
            stored_CHW, _, _, _ = self.mask.file.read(part, self.grid)
            cloudy_HW = np.isin(stored_CHW[0], self.mask.values)
            image_CHW[:, rows, cols][:, cloudy_HW] = self.fill
        return image_CHW

    def on_grid(self, grid: PixelGrid) -> Scene:
        """The same scene numbered on another scene's grid; RasterError when it does not fit it."""
        files = tuple(file.renumbered(grid, where=self.where) for file in self.files)
        return replace(self, grid=grid, window=files[0].window, files=files)


@dataclass(frozen=True)
class SceneFiles:
    """What a scene consists of: one multi-band file, or one file per band."""

    name: str
    paths: tuple[Place, ...]
    band_indexes: tuple[int, ...] | None = None
    mask: Place | None = None

    @property
    def where(self) -> str:
        """The scene and its first file, as errors name it."""
        return f"scene {self.name} ({self.paths[0]})"


@dataclass(frozen=True)
class ListedScene:
    """A scene as a catalogue describes it: its files are opened and checked when it is read.

    ``window``: where the catalogue says it lies; beyond it the scene is never looked at. ``snaps``:
    its pixels need not lie on the grid, and the nearest are taken.
    """

    files: SceneFiles
    grid: PixelGrid
    window: Window
    fill: int
    imagery: ImagerySpec
    snaps: bool

    @property
    def name(self) -> str:
        """The scene's name in the catalogue."""
        return self.files.name

    @property
    def bands(self) -> int:
        """How many there are."""
        return len(self.imagery.bands)

    @property
    def where(self) -> str:
        """The scene and its first file, as errors name it."""
        return self.files.where

    def read(self, window: Window) -> UInt16Array:
        """As :meth:`Scene.read`; RasterError too when the files are not what was listed."""
        return _as_found(self).read(window)


def as_found(scene: Scene | ListedScene) -> Scene:
    """The scene with its files checked; RasterError when they are not what was listed."""
    return scene if isinstance(scene, Scene) else _as_found(scene)


@lru_cache(maxsize=_REMEMBERED)
def _as_found(listed: ListedScene) -> Scene:
    """The scene behind a catalogue's entry, its files checked."""
    grid, where = listed.grid, listed.where
    files = _band_files(listed.files, listed.imagery)
    for file in files:
        if file.grid.crs != grid.crs:
            raise RasterError(
                f"{where}: lies in {file.grid.crs[:40]}, the catalogue says {grid.crs[:40]}; "
                "correct the catalogue, or set imagery.crs"
            )
    if listed.snaps:
        files = tuple(file.snapped(grid) for file in files)
    else:
        files = tuple(file.renumbered(grid, where=where) for file in files)
    scene = Scene(
        name=listed.name,
        grid=grid,
        window=_common([file.window_on(grid) for file in files], where),
        fill=listed.fill,
        bands=listed.bands,
        scale=listed.imagery.scale,
        files=files,
        mask=_cloud_mask(listed),
    )
    if scene.window.intersection(listed.window) is None:
        raise RasterError(
            f"{where}: lies at {grid.bounds(scene.window)} in {grid.crs[:40]}, the catalogue says "
            f"{grid.bounds(listed.window)}; correct the catalogue"
        )
    if scene.mask is not None:
        margin = math.ceil(scene.mask.file.grid.dx / grid.dx)
        covered = scene.mask.file.window_on(grid).buffered(margin)
        if covered.intersection(scene.window) != scene.window:
            raise RasterError(
                f"{where}: its cloud mask {scene.mask.file.path} does not cover it; correct the "
                "catalogue, or leave imagery.catalogue.cloud_mask out"
            )
    # only now: what the catalogue says may be an outline, and wider than the file
    return replace(scene, window=_common([scene.window, listed.window], where))


def _common(windows: Sequence[Window], where: str) -> Window:
    common = windows[0]
    for window in windows[1:]:
        both = common.intersection(window)
        if both is None:
            raise RasterError(
                f"{where}: its files lie in different places; correct the catalogue or the files"
            )
        common = both
    return common


def _cloud_mask(listed: ListedScene) -> CloudMask | None:
    catalogue = listed.imagery.catalogue
    if catalogue is None or catalogue.cloud_mask is None:
        return None
    spec = catalogue.cloud_mask
    path = listed.files.paths[0] if listed.files.mask is None else listed.files.mask
    require_raster(path)
    file = BandFile.open(
        path, (spec.band,), listed.imagery, where=f"cloud mask of scene {listed.name} ({path})"
    )
    return CloudMask(file.snapped(listed.grid), spec.values)


def open_scene(spec: SceneSpec, imagery: ImagerySpec, root: Path) -> Scene:
    """Check a scene's files and say where it lies.

    RasterError when a file is missing, cut off or no raster, has the wrong number of bands or no
    CRS (``imagery.crs`` overrides), or when single-band files lie on different grids.
    """
    paths = tuple(resolve_in(root, name) for name in spec.files)
    files = SceneFiles(spec.name, paths, spec.band_indexes)
    found = _band_files(files, imagery)
    for file in found[1:]:
        if (file.grid, file.window) != (found[0].grid, found[0].window):
            raise RasterError(
                f"scene {files.name} ({file.path}): lies on another grid than "
                f"{file_name(found[0].path)} ({_say(file)}, not {_say(found[0])}); warp the bands "
                "of one scene onto one grid"
            )
    return Scene(
        name=files.name,
        grid=found[0].grid,
        window=found[0].window,
        fill=fill_of(found[0].stated_nodata()),
        bands=len(imagery.bands),
        scale=imagery.scale,
        files=found,
    )


def fill_of(nodata: float | None) -> int:
    """The nodata value where a uint16 can hold it, else 65535."""
    if nodata is not None and 0 <= nodata <= _MAX and nodata == math.floor(nodata):
        return int(nodata)
    return DEFAULT_FILL


def _band_files(files: SceneFiles, imagery: ImagerySpec) -> tuple[BandFile, ...]:
    for path in files.paths:
        require_raster(path)
    indexes = _band_indexes(files, imagery)
    found = []
    for path in files.paths:
        where = f"scene {files.name} ({path})"
        _require_bands(path, indexes, imagery, where)
        found.append(BandFile.open(path, indexes, imagery, where=where))
    return tuple(found)


def _band_indexes(files: SceneFiles, imagery: ImagerySpec) -> tuple[int, ...]:
    """1-based bands to read from every file of the scene."""
    wanted = len(imagery.bands)
    if len(files.paths) == 1:
        indexes = files.band_indexes or tuple(range(1, wanted + 1))
        if len(indexes) != wanted:
            raise RasterError(
                f"scene {files.name}: band_indexes {list(indexes)} names {len(indexes)} bands, "
                f"imagery.bands names {wanted} ({', '.join(imagery.bands)}); make them match"
            )
        return indexes
    if files.band_indexes is not None:
        raise RasterError(
            f"scene {files.name}: band_indexes goes with one multi-band file, not with "
            f"{len(files.paths)} files; leave it out"
        )
    if len(files.paths) != wanted:
        raise RasterError(
            f"scene {files.name}: wrong number of bands: {len(files.paths)} files "
            f"({', '.join(map(file_name, files.paths))}) for {wanted} bands "
            f"({', '.join(imagery.bands)}); give one multi-band file, or one file per band"
        )
    return (1,)


def _require_bands(path: Place, indexes: tuple[int, ...], imagery: ImagerySpec, where: str) -> None:
    with opened(path) as dataset:
        count = dataset.count
    single = len(imagery.bands) > 1 and indexes == (1,)
    if max(indexes) > count or (single and count != 1):
        wanted = "one band per file" if single else f"band {max(indexes)}"
        raise RasterError(
            f"{where}: wrong number of bands: it has {count}, {wanted} is needed for "
            f"{', '.join(imagery.bands)}; correct the file, scenes.band_indexes or imagery.bands"
        )


def _say(file: BandFile) -> str:
    grid, window = file.grid, file.window
    t = grid.transform(window)
    return (
        f"{window.width} x {window.height} pixels of {grid.dx:g} x {grid.dy:g} at "
        f"{t.c:.2f} {t.f:.2f} in {grid.crs[:40]}"
    )
