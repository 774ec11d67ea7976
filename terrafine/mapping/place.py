"""Where map stores are: folders and buckets, as Icechunk opens them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import icechunk
from zarr.errors import GroupNotFoundError

from terrafine.errors import MapStoreError

MAIN = "main"

Place = Path | str
"""Where a map store is: a folder, or the URL of one in a bucket (``s3://bucket/folder``)."""


def is_map_store(path: Place) -> bool:
    """Whether ``path`` is a folder that holds an Icechunk repository."""
    if isinstance(path, str):
        with storage_errors(path, "reached"):
            return icechunk.Repository.exists(storage(path))
    return (path / "refs" / f"branch.{MAIN}" / "ref.json").is_file()


def open_repository(path: Place) -> icechunk.Repository:
    """The repository of a map store; MapStoreError when there is none."""
    if not is_map_store(path):
        raise MapStoreError(
            f"{path}: no map store here; make one with `terrafine map`, or give the folder that "
            "holds one"
        )
    return icechunk.Repository.open(storage(path), config=settings())


@contextmanager
def storage_errors(path: Place, what: str) -> Iterator[None]:
    """Turn the storage engine's errors into a MapStoreError that names the store."""
    try:
        yield
    except icechunk.ConflictError as error:
        raise MapStoreError(
            f"{path}: another process has committed to this run meanwhile; let one finish, then "
            "run again: finished shards are kept"
        ) from error
    except (icechunk.IcechunkError, GroupNotFoundError) as error:
        # zarr takes what cannot be read for what is not there
        reason = _reason(error) if isinstance(error, icechunk.IcechunkError) else "no answer"
        raise MapStoreError(
            f"{path}: the map store cannot be {what}: {reason}; what was committed before is "
            "unharmed; see to disk space, permissions and the bucket's server, then run again"
        ) from error


def settings() -> icechunk.RepositoryConfig:
    """How Icechunk keeps a map store.

    One manifest for every eight rows of shards, so that a commit writes anew what lies around its
    shards and not the zone; and caches that hold the last few hundred commits, because a run of a
    country makes thousands, each read once.
    """
    rows: Any = {icechunk.ManifestSplitDimCondition.Axis(0): 8}
    split = {icechunk.ManifestSplitCondition.AnyArray(): rows}
    splitting = icechunk.ManifestSplittingConfig.from_dict(split)
    return icechunk.RepositoryConfig(
        manifest=icechunk.ManifestConfig(splitting=splitting),
        caching=icechunk.CachingConfig(num_snapshot_nodes=20_000, num_chunk_refs=100_000),
    )


@lru_cache(maxsize=1)
def _quieten() -> None:
    """Silence Icechunk's warning about concurrent commits on local disks: the writer locks."""
    if "ICECHUNK_LOG" not in os.environ:
        icechunk.set_logs_filter("error")


def storage(path: Place) -> icechunk.Storage:
    """Icechunk's storage for a folder or a URL; credentials come from the environment."""
    _quieten()
    if isinstance(path, Path):
        return icechunk.local_filesystem_storage(str(path))
    url = urlsplit(path)
    if url.scheme != "s3" or not url.netloc:
        raise MapStoreError(
            f"{path}: no place for a map store; give a folder, or s3://bucket/folder"
        )
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return icechunk.s3_storage(
        bucket=url.netloc,
        prefix=url.path.strip("/"),
        from_env=True,
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        endpoint_url=endpoint,
        allow_http=bool(endpoint and endpoint.startswith("http://")),
        force_path_style=endpoint is not None,
    )


def _reason(error: icechunk.IcechunkError) -> str:
    """What Icechunk says before the dozen lines of context in its report."""
    head = str(error).split("context:")[0]
    return " ".join(head.replace("|", " ").split()).removeprefix("x ") or "unknown reason"
