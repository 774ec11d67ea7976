"""A model release: all that a server needs, and the proof that it may serve.

``release.json`` names every file with its SHA-256, the gate's verdict and what the graphs take and
give; ``model.<variant>.onnx`` are the graphs; ``canary.safetensors`` holds real windows with the
answers that each graph gave when it was exported, so that a server can be asked whether it says
the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from terrafine.accuracy import GateDecision
from terrafine.errors import ExportError, ModelError
from terrafine.export.bundle import BundleInfo
from terrafine.export.parity import ParityReport, export_model, export_reduced
from terrafine.export.session import INPUT, OUTPUTS, Prediction, UInt16Array, Variant, open_graph
from terrafine.legend import Legend
from terrafine.spec import ExportSpec
from terrafine.storage import Storage

if TYPE_CHECKING:
    from terrafine.models import RawModel

DESCRIPTION = "release.json"
CANARY = "canary.safetensors"
# real windows that a server is asked about before it serves
CANARY_WINDOWS = 2


class GraphEntry(BaseModel):
    """One variant's file, and how far it says what the network says (:class:`ParityReport`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Annotated[str, Field(pattern=r"^model\.[a-z0-9]+\.onnx$")]
    sha256: str
    bytes: int
    parity: ParityReport


class ReleaseInfo(BaseModel):
    """``release.json``.

    ``name``: of the run; ``model``: digest of the bundle, which is what the gate judged;
    ``window``: pixels a side; ``bands`` in the order of the input; ``scale``: what the imagery's
    stored values are multiplied by before they are rounded to uint16; ``fill``: the uint16 of a
    missing pixel; ``refused``: variant -> why it is not here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["terrafine model release 1"] = "terrafine model release 1"
    name: str
    model: str
    window: int
    bands: tuple[str, ...]
    scale: float
    fill: int
    legend: Legend
    gate: GateDecision
    graphs: dict[Variant, GraphEntry]
    refused: dict[Variant, str] = {}
    canary_sha256: str

    @property
    def digest(self) -> str:
        """SHA-256 of all this, and so of every file: the id of the release."""
        return hashlib.sha256(
            json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()
        ).hexdigest()


@dataclass(frozen=True)
class Release:
    """A release on disk whose every file is as it was written, of a model that passed its gate."""

    folder: Path
    info: ReleaseInfo

    @property
    def digest(self) -> str:
        """The id of the release."""
        return self.info.digest

    def graph(self, variant: Variant) -> Path:
        """The ONNX file of a variant; ModelError where there is none."""
        entry = self.info.graphs.get(variant)
        if entry is None:
            why = self.info.refused.get(variant, "it was not asked for in export.variants")
            raise ModelError(
                f"{self.folder}: holds no {variant} graph ({why}); take one of "
                f"{', '.join(self.info.graphs)}, or export again"
            )
        return self.folder / entry.file

    def canary(self, variant: Variant) -> tuple[UInt16Array, Prediction]:
        """Real windows (N, bands, window, window) and what the variant's graph said of them."""
        self.graph(variant)
        path = self.folder / CANARY
        return parse_canary(path.read_bytes(), variant, where=str(path))


def write_release(
    folder: Path,
    model: RawModel,
    info: BundleInfo,
    windows_NCHW: UInt16Array,
    *,
    name: str,
    gate: GateDecision,
    window: int,
    spec: ExportSpec,
) -> Release:
    """Export ``model`` in every variant that ``spec`` asks for, into a new ``folder``.

    ``windows_NCHW``: real raw windows (N, bands, window, window), on which each graph is compared
    with the network; the first of them stay as the canary.
    Raises ExportError where the fp32 graph is refused or the gate did not pass; other variants
    below their floor are left out, and the release says why. Nothing is left of a release that
    was not finished.
    """
    if not gate.passed:
        raise ExportError(
            f"{folder}: not released: the gate refused the model ({'; '.join(gate.reasons)}); "
            "change the training or the gate's rules"
        )
    folder.mkdir(parents=True)
    try:
        graphs, refused = _graphs(folder, model, info, windows_NCHW, window=window, spec=spec)
        canary = windows_NCHW[:CANARY_WINDOWS]
        written = _write_canary(folder, graphs, canary)
        described = ReleaseInfo(
            name=name,
            model=info.digest,
            window=window,
            bands=info.bands,
            scale=info.scale,
            fill=info.fill,
            legend=info.legend,
            gate=gate,
            graphs=graphs,
            refused=refused,
            canary_sha256=written,
        )
        text = json.dumps(
            {**described.model_dump(mode="json"), "digest": described.digest}, indent=1
        )
        (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Release(folder, described)


def read_release(folder: Path) -> Release:
    """The release in ``folder``, once every file is found as it was written.

    Raises ModelError that names what is missing, edited or was never let through by the gate.
    """
    path = folder / DESCRIPTION
    try:
        info = parse_release(path.read_bytes(), where=str(path))
    except FileNotFoundError as error:
        raise ModelError(
            f"{folder}: no model release here ({DESCRIPTION} is missing); make one with "
            "`terrafine export`"
        ) from error
    for entry in info.graphs.values():
        _require_file(folder / entry.file, entry.sha256)
    _require_file(folder / CANARY, info.canary_sha256)
    return Release(folder, info)


def read_description(place: Storage) -> bytes:
    """The ``release.json`` of a release on disk or in a bucket, not yet believed."""
    found = place.read(DESCRIPTION)
    if found is None:
        raise ModelError(
            f"{place}: no model release here ({DESCRIPTION} is missing); name the folder that "
            "`terrafine export` leaves (export/latest/release)"
        )
    return found


def fetch_release(place: Storage, into: Path) -> Release:
    """Copy a release from disk or from a bucket into the new folder ``into``, and check it.

    Raises ModelError as :func:`read_release` does.
    """
    description = read_description(place)
    info = parse_release(description, where=f"{place}/{DESCRIPTION}")
    into.mkdir(parents=True)
    for name in (*(entry.file for entry in info.graphs.values()), CANARY):
        content = place.read(name)
        if content is None:
            raise ModelError(
                f"{place}/{name}: a file of the release is missing; fetch the release anew"
            )
        (into / name).write_bytes(content)
    (into / DESCRIPTION).write_bytes(description)
    return read_release(into)


def parse_release(text: bytes, *, where: str) -> ReleaseInfo:
    """The content of a ``release.json``; ModelError where edited or refused by the gate."""
    try:
        data: dict[str, Any] = json.loads(text)
        digest = data.pop("digest")
        info = ReleaseInfo.model_validate(data)
    except ValidationError as error:
        raise ModelError(
            f"{where}: not a release of this version of terrafine, or edited "
            f"({error.errors()[0]['msg']}); export the model again"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{where}: not readable as a release ({error!r}); fetch it anew"
        ) from error
    _require(where, "the description", str(digest), info.digest)
    if not info.gate.passed:
        raise ModelError(
            f"{where}: the gate refused this model ({'; '.join(info.gate.reasons)}), so it is not "
            "served; change the training or the gate's rules"
        )
    return info


def parse_canary(data: bytes, variant: Variant, *, where: str) -> tuple[UInt16Array, Prediction]:
    """The windows of a canary file, and what the variant's graph said of them at export."""
    try:
        arrays: dict[str, Any] = dict(safetensors.numpy.load(data))
        answers = Prediction(*(arrays[f"{variant}.{name}"] for name in OUTPUTS))
        return arrays[INPUT], answers
    except (SafetensorError, KeyError) as error:
        raise ModelError(f"{where}: cannot be read ({error}); export the model again") from error


def _graphs(
    folder: Path,
    model: RawModel,
    info: BundleInfo,
    windows_NCHW: UInt16Array,
    *,
    window: int,
    spec: ExportSpec,
) -> tuple[dict[Variant, GraphEntry], dict[Variant, str]]:
    graphs: dict[Variant, GraphEntry] = {}
    refused: dict[Variant, str] = {}
    exact = folder / "model.fp32.onnx"
    parity = export_model(model, info, exact, windows_NCHW, window=window, spec=spec)
    graphs["fp32"] = _entry(exact, parity)
    for variant in spec.variants:
        if variant == "fp32":
            continue
        path = folder / f"model.{variant}.onnx"
        try:
            parity = export_reduced(
                variant, model, info, exact, path, windows_NCHW, window=window, spec=spec
            )
        except ExportError as error:
            # the file's place says nothing once the stage's folder is renamed
            refused[variant] = str(error).removeprefix(f"{path}: ")
        else:
            graphs[variant] = _entry(path, parity)
    return graphs, refused


def _entry(path: Path, parity: ParityReport) -> GraphEntry:
    return GraphEntry(
        file=path.name, sha256=_sha256(path), bytes=path.stat().st_size, parity=parity
    )


def _write_canary(
    folder: Path, graphs: Mapping[Variant, GraphEntry], windows_NCHW: UInt16Array
) -> str:
    arrays: dict[str, Any] = {INPUT: np.ascontiguousarray(windows_NCHW)}
    for variant, entry in graphs.items():
        session, _ = open_graph(folder / entry.file)
        answers = [session.run(list(OUTPUTS), {INPUT: one[None]}) for one in windows_NCHW]
        for name, parts in zip(OUTPUTS, zip(*answers, strict=True), strict=True):
            arrays[f"{variant}.{name}"] = np.concatenate(parts)
    data = safetensors.numpy.save(arrays)
    (folder / CANARY).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _require_file(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise ModelError(f"{path}: a file of the release is missing; fetch the release anew")
    _require(path, "the file", sha256, _sha256(path))


def _require(path: Path | str, what: str, stated: str, found: str) -> None:
    if found != stated:
        raise ModelError(
            f"{path}: {what} was damaged or edited since the release was made (SHA-256 "
            f"{found[:12]}, not {stated[:12]}); fetch the release anew"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
