"""What a map says where it was assessed (``assess.reference.region``: on the validation chips, or
everywhere), kept so that two maps can be compared later.

A ZIP file with one member for each window that was read, ``<zone>/<row>_<col>_<height>_<width>``,
its bytes the class codes row by row.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from terrafine.errors import StageError
from terrafine.geometry import Window
from terrafine.legend import UInt8Array

ReadMap = Callable[[Window], UInt8Array]


class HeldOutWriter:
    """Writes down what is read of a map."""

    def __init__(self, path: Path) -> None:
        self._file = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
        self._written: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def keep(self, zone: str, read: ReadMap) -> ReadMap:
        """``read``, with everything it gives written down."""

        def kept(window: Window) -> UInt8Array:
            codes_HW = read(window)
            name = _member(zone, window)
            if name not in self._written:
                self._written.add(name)
                self._file.writestr(name, codes_HW.tobytes())
            return codes_HW

        return kept


class HeldOutMap:
    """Reads what :class:`HeldOutWriter` wrote; StageError when the file is no such one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._windows: dict[str, set[Window]] = {}
        try:
            self._file = zipfile.ZipFile(path)
            for name in self._file.namelist():
                zone, _, place = name.partition("/")
                window = Window(*(int(number) for number in place.split("_")))
                self._windows.setdefault(zone, set()).add(window)
        except (OSError, zipfile.BadZipFile, ValueError, TypeError) as error:
            raise self._unreadable() from error

    def read(self, zone: str, window: Window) -> UInt8Array:
        """(H, W) uint8 legend codes; StageError where this map was not assessed."""
        known = self._windows.get(zone, set())
        if window in known:
            return self._stored(zone, window)
        for whole in known:
            if whole.intersection(window) == window:
                return self._stored(zone, whole)[window.slices(whole)]
        raise StageError(f"{self._path}: holds nothing of {window} in zone {zone}")

    def _stored(self, zone: str, window: Window) -> UInt8Array:
        try:
            codes = np.frombuffer(self._file.read(_member(zone, window)), np.uint8)
            return codes.reshape(window.shape)
        except (OSError, zipfile.BadZipFile, zlib.error, ValueError) as error:
            raise self._unreadable() from error

    def _unreadable(self) -> StageError:
        return StageError(
            f"{self._path}: cannot be read back, it is not as it was written; delete the folder "
            f"{self._path.parent} and run again"
        )


def _member(zone: str, window: Window) -> str:
    return f"{zone}/{window.row}_{window.col}_{window.height}_{window.width}"
