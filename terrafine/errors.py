"""Errors that a person reads: one sentence with the file, the place, the value and the remedy."""

from __future__ import annotations

import errno


class TerrafineError(ValueError):
    """Base of every error caused by input, configuration or the machine, not by a bug."""


class SpecError(TerrafineError):
    """The spec file cannot be used as written."""


class LegendError(TerrafineError):
    """Codes or classes that do not fit the legend."""


class RasterError(TerrafineError):
    """A raster, label product or vector file cannot be used."""


class UnreachableError(RasterError):
    """What lies behind a URL cannot be had now; nothing is known of the file itself."""


class DatasetError(TerrafineError):
    """An example dataset cannot be fetched or made."""


class ChipStoreError(TerrafineError):
    """The chip store is missing, incomplete, edited or does not fit."""


class StorageError(TerrafineError):
    """A folder or an object store cannot be read or written."""


class ModelError(TerrafineError):
    """A network cannot be built, or a model bundle does not fit what it is used for."""


class TrainingError(TerrafineError):
    """Training cannot start or go on."""


class LossError(TrainingError):
    """The loss or a weight is no number."""


class WorkerError(TrainingError):
    """A process that trains or reads chips was lost or cannot go on without the others."""


class PruningError(TerrafineError):
    """A network cannot be pruned as asked."""


class ExportError(TerrafineError):
    """An exported graph does not say the same as the network."""


class AccuracyError(TerrafineError):
    """An accuracy cannot be computed from what is there."""


class ServingError(TerrafineError):
    """A model server cannot be reached, refuses, or does not serve what was asked for."""


class MapStoreError(TerrafineError):
    """The map store is missing, of another grid, or a write would break an invariant."""


class StageError(TerrafineError):
    """A stage lacks what an earlier stage should have left."""


class PipelineError(TerrafineError):
    """Kubeflow Pipelines cannot be reached, or refuses a run."""


def explain(error: TerrafineError | OSError) -> str:
    """The one sentence a person gets to read: what, where, and what to do about it."""
    if isinstance(error, TerrafineError):
        return str(error)
    place = error.filename or "the work directory"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{place}: the disk is full; free space or give another --workdir and run the same "
            "command again: finished stages are kept"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return f"{place}: cannot be written ({error.strerror}); give a --workdir you may write to"
    return f"{place}: {error.strerror or error}"
