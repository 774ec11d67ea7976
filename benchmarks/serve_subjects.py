"""What benchmarks/serve.py measures with: networks and their windows, servers, turns."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from serving.triton.endpoint import Endpoint
from serving.triton.lifecycle import Lifecycle
from serving.triton.repository import ModelRepository
from serving.triton.server import TritonServer
from terrafine.accuracy import GateDecision, RuleResult
from terrafine.export import (
    BundleInfo,
    Prediction,
    Release,
    load_bundle,
    read_release,
    write_release,
)
from terrafine.legend import SEVEN
from terrafine.models import RawInput, RawModel, build_network, changed_channels
from terrafine.models.layers import BatchNorm
from terrafine.progress import progress
from terrafine.pruning import plan_pruning, without_zeroed, zero_filters
from terrafine.raster import open_mosaics
from terrafine.spec import ExportSpec, ModelSpec, PruneSpec, ServeSpec, data_root, load_spec
from terrafine.stages.export import real_windows

BANDS = ("red", "green", "blue", "nir")
BARE = "onnxruntime"


@dataclass(frozen=True)
class Subject:
    """A network to serve, and the windows (N, bands, window, window) uint16 that it is asked about.

    None of them calibrated an int8 graph that was made here.
    """

    name: str
    release: Release
    windows_NCHW: Any


def subjects(options: argparse.Namespace, folder: Path) -> Iterator[Subject]:
    """Finished releases and their own windows, bundles and their run's, or networks drawn here."""
    for place in options.release or ():
        release = read_release(place)
        own_NCHW, _ = release.canary("fp32")
        shape = (options.windows, *own_NCHW.shape[1:])
        yield Subject(str(place), release, np.resize(own_NCHW, shape))
    if options.bundle:
        windows_NCHW = _of_run(options)
        for number, place in enumerate(options.bundle):
            model, info = load_bundle(place)
            yield _exported(str(place), model, info, windows_NCHW, folder / f"{number}", options)
    if not (options.release or options.bundle):
        windows_NCHW = _drawn(2 * options.windows, options.window)
        for ratio in options.ratios:
            name = f"{options.arch} pruned by {ratio:g}" if ratio else options.arch
            model, info = _untrained(ratio, options)
            yield _exported(name, model, info, windows_NCHW, folder / f"ratio-{ratio:g}", options)


def _of_run(options: argparse.Namespace) -> Any:
    """Twice as many windows as are asked about, spread over the imagery as those of an export."""
    spec = load_spec(options.spec)
    wanted = ExportSpec(parity_windows=2 * options.windows)
    mosaics = open_mosaics(spec.imagery, data_root(options.spec, options.data))
    found_NCHW = real_windows(spec.model_copy(update={"export": wanted}), list(mosaics.values()))
    if len(found_NCHW) < 2 * options.windows:
        raise SystemExit(
            f"{options.spec}: its imagery gives {len(found_NCHW)} windows, half of them to "
            f"calibrate int8; ask for --windows {len(found_NCHW) // 2}"
        )
    return found_NCHW


def _drawn(count: int, size: int) -> Any:
    """(count, 4, size, size) uint16 with the smoothness and the noise of imagery."""
    rng = np.random.default_rng(1)
    coarse = rng.normal(size=(count, len(BANDS), size // 32 + 2, size // 32 + 2))
    smooth = np.stack([[cv2.resize(band, (size, size)) for band in one] for one in coarse])
    return (150 + 80 * smooth + rng.normal(0, 5, smooth.shape)).clip(1, 10_000).astype(np.uint16)


def _untrained(ratio: float, options: argparse.Namespace) -> tuple[RawModel, BundleInfo]:
    model = ModelSpec(arch=options.arch)
    network = build_network(model, bands=len(BANDS), classes=len(SEVEN.classes)).eval()
    for norm in (m for m in network.modules() if isinstance(m, BatchNorm)):
        # residual blocks start as the identity; a trained one computes something
        torch.nn.init.constant_(norm.weight, 0.5)
    if ratio:
        spec = PruneSpec(ratio=ratio, coupled=True, round_to=8)
        plan = plan_pruning(network, spec, bands=len(BANDS))
        zero_filters(network, plan)
        network = without_zeroed(network, plan)
    mean, std = (150.0,) * len(BANDS), (80.0,) * len(BANDS)
    info = BundleInfo(
        model=model,
        bands=BANDS,
        fill=0,
        mean=mean,
        std=std,
        legend=SEVEN,
        channels=changed_channels(network, model),
    )
    raw = RawModel(RawInput(mean, std, 0), network).eval()
    _spread_classes(raw)
    return raw, info


def _spread_classes(model: RawModel) -> None:
    """Make every class win somewhere: where all are as probable, wrong answers look right."""
    head = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    assert head.bias is not None
    with torch.no_grad():
        logits = model(torch.from_numpy(_drawn(1, 256)))
        scale = 2 / logits.std(dim=(0, 2, 3))
        head.bias.sub_(logits.mean(dim=(0, 2, 3))).mul_(scale)
        head.weight.mul_(scale.view(-1, 1, 1, 1))


def _exported(
    name: str,
    model: RawModel,
    info: BundleInfo,
    windows_NCHW: Any,
    folder: Path,
    options: argparse.Namespace,
) -> Subject:
    """In every precision that is measured, however far it is from the network."""
    rule = RuleResult(name="none", passed=True, required="-", found="-", reason="")
    release = write_release(
        folder,
        model,
        info,
        windows_NCHW,
        name=folder.name,
        gate=GateDecision(passed=True, subject="benchmark", evidence="none", rules=(rule,)),
        window=windows_NCHW.shape[-1],
        spec=ExportSpec(
            variants=options.exported,
            min_class_agreement=0,
            max_probability_error=1,
            reduced_class_agreement={"fp16": 0, "int8": 0},
            reduced_probability_error={"fp16": 1, "int8": 1},
        ),
    )
    # the others have calibrated int8
    return Subject(name, release, windows_NCHW[1::2])


@contextmanager
def served(release: Release, specs: Sequence[ServeSpec], folder: Path) -> Iterator[str]:
    """The address of one Triton that serves a release as each of ``specs`` says."""
    place = Path(tempfile.mkdtemp(dir=folder))
    with TritonServer(place / "repository", folder=place / "server") as server:
        with Endpoint(server.grpc_url.removeprefix("grpc://")) as endpoint:
            for spec in specs:
                lifecycle = Lifecycle(ModelRepository(server.repository, spec.name), [endpoint])
                lifecycle.deploy(release, spec)
                lifecycle.promote()
        yield server.grpc_url


@dataclass(frozen=True)
class Taken:
    """One way's turns: seconds for all windows, round by round; what it said of each batch.

    ``queue``, ``compute``: seconds per window that Triton counted, medians.
    """

    seconds: list[float]
    said: list[Prediction]
    queue: float
    compute: float

    def times(self, base: Taken) -> float:
        """How many times as long as ``base``: median of the ratios within a round."""
        pairs = zip(self.seconds, base.seconds, strict=True)
        return statistics.median(own / other for own, other in pairs)


def take_turns(
    ways: Mapping[Any, Callable[[Any], Prediction]],
    windows_NCHW: Any,
    *,
    batch: int,
    rounds: int,
    heading: str,
    counted: Callable[[], tuple[float, float]] = lambda: (0.0, 0.0),
) -> dict[Any, Taken]:
    """Every way over all windows, once a round; ``counted``: Triton's queue and compute so far."""
    seconds: dict[Any, list[float]] = {way: [] for way in ways}
    server: dict[Any, list[tuple[float, float]]] = {way: [] for way in ways}
    said: dict[Any, list[Prediction]] = {}
    with progress(heading, total=(rounds + 1) * len(ways), unit="turn") as task:
        for turn in range(rounds + 1):
            for way, predict in ways.items():
                before = counted()
                began = time.perf_counter()
                said[way] = [
                    predict(windows_NCHW[start : start + batch])
                    for start in range(0, len(windows_NCHW), batch)
                ]
                took = time.perf_counter() - began
                # the first turn makes plans, takes memory and registers regions
                if turn:
                    seconds[way].append(took)
                    queue, compute = (
                        (now - then) / len(windows_NCHW)
                        for now, then in zip(counted(), before, strict=True)
                    )
                    server[way].append((queue, compute))
                task.advance()
    return {
        way: Taken(
            seconds[way],
            said[way],
            queue=statistics.median(queue for queue, _ in server[way]),
            compute=statistics.median(compute for _, compute in server[way]),
        )
        for way in ways
    }
