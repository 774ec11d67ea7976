"""A model bundle: weights in safetensors, and everything needed to use them, in JSON.

No pickle: a bundle may come from anywhere and still only numbers and text are read from it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError

from terrafine.errors import ModelError
from terrafine.legend import Legend
from terrafine.spec import ModelSpec

if TYPE_CHECKING:
    from terrafine.models import RawModel

WEIGHTS = "weights.safetensors"
DESCRIPTION = "bundle.json"


class BundleInfo(BaseModel):
    """What a model is, beside its weights.

    ``bands``: names in the order of the input; ``scale``: what the imagery's stored values are
    multiplied by before they are rounded to uint16; ``fill``: the uint16 of missing pixels;
    ``mean``, ``std``: of each band in the sensor's raw numbers; ``channels``: (in, out) of the
    layers that a pruning left narrower; ``provenance``: free JSON on where the model comes from;
    ``weights_sha256``: of the weights file, filled in by :func:`save_bundle`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["terrafine model bundle 1"] = "terrafine model bundle 1"
    model: ModelSpec
    bands: Annotated[tuple[str, ...], Field(min_length=1)]
    scale: Annotated[float, Field(gt=0)] = 1.0
    fill: Annotated[int, Field(ge=0, le=65535)]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    legend: Legend
    channels: dict[str, tuple[int, int]] = {}
    provenance: dict[str, Any] = {}
    weights_sha256: str = ""

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if not len(self.bands) == len(self.mean) == len(self.std):
            raise ValueError(
                f"{len(self.bands)} bands, {len(self.mean)} means and {len(self.std)} standard "
                "deviations; give one of each for every band"
            )
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of weights, scaling and legend: the id of the model release.

        The provenance is left out, so that training again to the same weights is the same model.
        """
        data = self.model_dump(mode="json", exclude={"provenance"})
        # keys younger than the format: bundles from before them keep the id they were released by
        if self.model.stem_channels == ModelSpec.model_fields["stem_channels"].default:
            del data["model"]["stem_channels"]
        if not self.channels:
            del data["channels"]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def save_bundle(folder: Path, model: RawModel, info: BundleInfo) -> BundleInfo:
    """Write ``model`` as a bundle into ``folder``, replacing one that is there.

    Written beside it and renamed, so that a bundle that exists is whole. Returns ``info`` with the
    digest of the weights. Raises ModelError when the folder holds something else, OSError from the
    disk.
    """
    import safetensors.torch  # torch, which takes seconds

    if folder.exists() and not (folder / DESCRIPTION).is_file():
        raise ModelError(f"{folder}: already exists and is no model bundle; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    replaced = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        weights = safetensors.torch.save(state)
        (partial / WEIGHTS).write_bytes(weights)
        sealed = info.model_copy(update={"weights_sha256": hashlib.sha256(weights).hexdigest()})
        text = json.dumps({**sealed.model_dump(mode="json"), "digest": sealed.digest}, indent=2)
        (partial / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        if folder.exists():
            folder.replace(replaced)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
    return sealed


def read_info(folder: Path) -> BundleInfo:
    """The description of a bundle; ModelError when it is missing, unreadable or edited."""
    path = folder / DESCRIPTION
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        digest = data.pop("digest")
        info = BundleInfo.model_validate(data)
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: no model bundle here ({DESCRIPTION} is missing)") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "bundle"
        raise ModelError(
            f"{path}: {place}: {first['msg']}; it was not made by this version of terrafine, or "
            "was edited; train again or fetch it anew"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path}: not a readable bundle description ({error!r}); fetch it anew"
        ) from error
    if digest != info.digest:
        raise ModelError(
            f"{path}: edited since it was saved (its digest is {info.digest[:12]}, not "
            f"{str(digest)[:12]}); fetch it anew"
        )
    return info


def load_bundle(folder: Path, *, legend: Legend | None = None) -> tuple[RawModel, BundleInfo]:
    """The model of a bundle, on the CPU, ready to be evaluated, and its description.

    Raises ModelError when anything is missing or was edited since it was saved, or when ``legend``
    is given and the bundle is of another one.
    """
    import safetensors.torch  # torch, which takes seconds

    from terrafine.models import RawInput, RawModel, build_network

    info = read_info(folder)
    if legend is not None and legend.digest != info.legend.digest:
        raise ModelError(
            f"{folder}: a model bundle of another legend ({info.legend.name!r}: "
            f"{', '.join(info.legend.names)}; wanted {legend.name!r}: {', '.join(legend.names)}); "
            "train with this legend, or set the spec's legend to the bundle's"
        )
    path = folder / WEIGHTS
    try:
        weights = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path}: the bundle's weights are missing; fetch it anew") from error
    found = hashlib.sha256(weights).hexdigest()
    if found != info.weights_sha256:
        raise ModelError(
            f"{path}: damaged or edited (SHA-256 {found[:12]}, not {info.weights_sha256[:12]} as "
            f"in {DESCRIPTION}); fetch the bundle anew"
        )
    network = build_network(
        info.model,
        bands=len(info.bands),
        classes=len(info.legend.classes),
        channels=info.channels,
    )
    model = RawModel(RawInput(info.mean, info.std, info.fill), network)
    try:
        model.load_state_dict(safetensors.torch.load(weights))
    except (RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{path}: these weights do not fit {info.model.arch} with {len(info.bands)} bands and "
            f"{len(info.legend.classes)} classes; train again with this version of terrafine"
        ) from error
    return model.eval(), info
