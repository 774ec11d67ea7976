"""Folders on disk and in object stores behind one small interface; the only importer of obstore.

A write is one object that appears whole or not at all, on disk (staged, then renamed) as in a
bucket. Credentials and endpoints come from the environment, as the AWS, Google and Azure tools
read them (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID`` ...), never from a spec.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from terrafine.errors import StorageError

# Parts of an object that lie closer than this are fetched from a bucket as one.
_COALESCE = 64 * 2**10


@dataclass(frozen=True)
class Storage:
    """One folder: a path on this machine, or a URL (``s3://bucket/prefix``, ``gs://``, ``az://``).

    Names are relative to it ("checkpoints/12.pt"). Every method raises StorageError, which names
    the object and what the store said. Small, and can be pickled.
    """

    location: str

    @classmethod
    def at(cls, location: str | Path) -> Storage:
        """The folder at a path or URL; it need not exist yet."""
        text = str(location)
        return cls(text.rstrip("/") if "://" in text else str(Path(text).resolve()))

    @property
    def path(self) -> Path | None:
        """The folder on this machine, or None in an object store."""
        return None if "://" in self.location else Path(self.location)

    @property
    def store(self) -> ObjectStore:
        """As obstore and ``zarr.storage.ObjectStore`` know it; a folder is made where needed."""
        _require_no_fork(self.location)
        return self._store

    @cached_property
    def _store(self) -> ObjectStore:
        with self.explained("open"):
            if self.path is not None:
                return LocalStore(prefix=self.path, mkdir=True)
            return from_url(self.location)

    def read(self, name: str) -> bytes | None:
        """The bytes of an object, or None where there is none."""
        with self.explained("read", name):
            try:
                return bytes(obstore.get(self.store, name).bytes())
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Make or replace an object, whole or not at all."""
        with self.explained("write", name):
            obstore.put(self.store, name, data)

    def ranges(self, name: str, parts: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Parts (first byte, number of bytes) of one object, fetched at once.

        A file is read without obstore, whose threads do not live on in a forked process.
        """
        with self.explained("read", name):
            if self.path is not None:
                return _file_ranges(self.path / name, parts)
            starts, lengths = zip(*parts, strict=True)
            found = obstore.get_ranges(
                self.store, name, starts=starts, lengths=lengths, coalesce=_COALESCE
            )
            return [memoryview(part) for part in found]

    def names(self, folder: str = "") -> list[str]:
        """Names of all objects in it, or in a folder of it, sorted."""
        return sorted(self.sizes(folder))

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Name -> bytes of all objects in it, or in a folder of it, listed once."""
        with self.explained("list", folder):
            pages = obstore.list(self.store, prefix=folder or None)
            return {str(entry["path"]): entry["size"] for page in pages for entry in page}

    def size(self, name: str) -> int:
        """Bytes of an object."""
        with self.explained("read", name):
            return obstore.head(self.store, name)["size"]

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that are gone already are no error."""
        for name in names:
            with self.explained("delete", name):
                try:
                    obstore.delete(self.store, name)
                except FileNotFoundError:
                    continue

    def sweep(self) -> None:
        """Remove what killed writers left on this machine; nobody may be writing.

        obstore stages NAME as NAME#1, which no listing shows.
        """
        if self.path is not None:
            with self.explained("delete"):
                for staged in self.path.rglob("*#[0-9]*"):
                    staged.unlink()

    def clear(self, folder: str = "") -> None:
        """Remove all objects in it, or in a folder of it."""
        if self.path is not None:
            with self.explained("delete", folder):
                if (self.path / folder).exists():
                    shutil.rmtree(self.path / folder)
            return
        names = self.names(folder)
        with self.explained("delete", folder):
            obstore.delete(self.store, names)

    def __truediv__(self, name: str) -> Storage:
        return Storage(f"{self.location}/{name}")

    def __str__(self) -> str:
        return self.location

    @contextmanager
    def explained(self, verb: str, name: str = "") -> Iterator[None]:
        """Turn what a store or a disk says into StorageError, for those who use :attr:`store`."""
        try:
            yield
        except StorageError:
            raise
        except (BaseError, OSError, ValueError) as error:
            place = f"{self.location}/{name}" if name else self.location
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise StorageError(
                f"{place}: cannot {verb} it ({reason}); check that the place exists, has space "
                "left and may be written to, and the credentials in the environment"
            ) from error


_opened_in: list[int] = []


def _require_no_fork(location: str) -> None:
    """obstore in a process forked from one that has used it waits for ever: say so instead."""
    if not _opened_in:
        _opened_in.append(os.getpid())
    if _opened_in[0] != os.getpid():
        raise StorageError(
            f"{location}: cannot be reached from a process forked from one that has used it; "
            "start processes by spawn or forkserver"
        )


def _file_ranges(path: Path, parts: Sequence[tuple[int, int]]) -> list[memoryview]:
    with path.open("rb", buffering=0) as file:
        found = [os.pread(file.fileno(), length, start) for start, length in parts]
    for data, (start, length) in zip(found, parts, strict=True):
        if len(data) != length:
            raise OSError(f"the file ends before byte {start + length}")
    return [memoryview(data) for data in found]
