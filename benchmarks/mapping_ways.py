"""The ways that `mapping.py` compares, each in a process of its own.

    python benchmarks/mapping_ways.py WAY JOB.json

Imports, opening the model and its first window are not timed: a national map does that once. The
last line that is written is JSON: seconds of wall and core, and what the way tells of itself.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

CACHE_BYTES = 256 * 2**20
OUTPUTS = ["enhanced_probability", "other_class", "other_probability"]


@dataclass(frozen=True)
class Job:
    """What all ways are given. ``graph``: ONNX, or "" for a network that costs nothing."""

    raster: str
    graph: str
    bundle: str
    into: str
    core: int
    halo: int
    shard: int
    block: int
    threads: int
    enhanced: int

    @property
    def window(self) -> int:
        return self.core + 2 * self.halo


Run = Callable[[], dict[str, Any]]


def main() -> None:
    way, job = sys.argv[1], Job(**json.loads(Path(sys.argv[2]).read_text()))
    run = WAYS[way](job)
    before, began = cores(), time.perf_counter()
    told = run()
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "core_seconds": cores() - before, **told}))


def cores() -> float:
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def onnx_session(job: Job, threads: int) -> Callable[[Any], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(job.graph, options, providers=["CPUExecutionProvider"])
    predict = partial(_ask, session)
    predict(np.ones((4, job.window, job.window), np.uint16))
    return predict


def _ask(session: Any, image_CHW: Any) -> Any:
    return [said[0] for said in session.run(OUTPUTS, {"image": image_CHW[None]})]


def classes(job: Job, said: Any) -> Any:
    enhanced_HW, other_class_HW, other_HW = said
    return np.where(enhanced_HW > other_HW, np.uint8(job.enhanced), other_class_HW)


def tiles(height: int, width: int, core: int) -> Iterator[tuple[int, int, int, int]]:
    """Row, column, height and width of every core."""
    for row in range(0, height, core):
        for col in range(0, width, core):
            yield row, col, min(core, height - row), min(core, width - col)


def read_padded(source: Any, job: Job, row: int, col: int, image_CHW: Any) -> None:
    """Fill ``image_CHW`` with the window around a core; 0, which is nodata, outside."""
    from rasterio.windows import Window

    top, left = max(row - job.halo, 0), max(col - job.halo, 0)
    bottom = min(row + job.core + job.halo, source.height)
    right = min(col + job.core + job.halo, source.width)
    found_CHW = source.read(window=Window(left, top, right - left, bottom - top))
    r, c = top - row + job.halo, left - col + job.halo
    if found_CHW.shape != image_CHW.shape:
        image_CHW[:] = 0
    image_CHW[:, r : r + bottom - top, c : c + right - left] = found_CHW


def created(job: Job, source: Any) -> Any:
    import rasterio

    return rasterio.open(
        job.into, "w", driver="GTiff", count=1, dtype="uint8", crs=source.crs,
        height=source.height, width=source.width, transform=source.transform, tiled=True,
        blockxsize=min(512, job.core), blockysize=min(512, job.core), compress="zstd",
        num_threads="all_cpus", bigtiff="if_safer",
    )  # fmt: skip


def plain(job: Job) -> Run:
    """The fastest plain loop we could write: rasterio, onnxruntime with all threads, GeoTIFF."""
    import rasterio
    from rasterio.windows import Window

    predict = onnx_session(job, job.threads)

    def run() -> dict[str, Any]:
        steps: dict[str, float] = defaultdict(float)
        image_CHW = np.zeros((4, job.window, job.window), np.uint16)
        with (
            rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES),
            rasterio.open(job.raster, num_threads="all_cpus") as source,
            created(job, source) as target,
        ):
            for row, col, height, width in tiles(source.height, source.width, job.core):
                began = time.perf_counter()
                read_padded(source, job, row, col, image_CHW)
                asked = time.perf_counter()
                said = predict(image_CHW)
                answered = time.perf_counter()
                inside = np.s_[job.halo : job.halo + height, job.halo : job.halo + width]
                found_HW = classes(job, [array[inside] for array in said])
                target.write(found_HW, 1, window=Window(col, row, width, height))
                steps["read"] += asked - began
                steps["infer"] += answered - asked
                steps["write"] += time.perf_counter() - answered
        return {"steps": steps}

    return run


def dask(job: Job) -> Run:
    """dask and xarray: map_overlap over chunks, written as Zarr; a thread for every core."""
    import dask as dask_package
    import rioxarray
    import xarray
    from dask.array.overlap import overlap

    predict = onnx_session(job, 1)

    def block(image_CHW: Any) -> Any:
        _, height, width = image_CHW.shape
        padded_CHW = np.zeros((4, job.window, job.window), np.uint16)
        padded_CHW[:, :height, :width] = image_CHW
        said = predict(padded_CHW)
        return classes(job, said)[None, job.halo : height - job.halo, job.halo : width - job.halo]

    def run() -> dict[str, Any]:
        chunks = {"band": -1, "y": job.core, "x": job.core}
        image = rioxarray.open_rasterio(job.raster, chunks=chunks, lock=False).data
        depth = {0: 0, 1: job.halo, 2: job.halo}
        seen = overlap(image, depth=depth, boundary=0)
        core = seen.map_blocks(block, chunks=((1,), *image.chunks[1:]), dtype=np.uint8)
        with dask_package.config.set(scheduler="threads", num_workers=job.threads):
            xarray.DataArray(core[0], dims=("y", "x"), name="landcover").to_zarr(job.into)
        return {}

    return run


def torchgeo(job: Job, *, graph: bool = False) -> Run:
    """torchgeo as its tutorials use it, with torch; ``graph``: with the same ONNX graph.

    It reads with the halo and writes the cores; what its grid leaves out at the edge stays empty.
    """
    import rasterio
    import torch
    from rasterio.windows import Window
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    torch.set_num_threads(job.threads)
    predict = onnx_session(job, job.threads) if graph else torch_network(job)

    class Scene(RasterDataset):  # type: ignore[misc]
        filename_glob = Path(job.raster).name
        is_image = True
        dtype = torch.float32

    def run() -> dict[str, Any]:
        dataset = Scene(str(Path(job.raster).parent))
        sampler = GridGeoSampler(dataset, size=job.window, stride=job.core)
        loader = DataLoader(dataset, sampler=sampler, collate_fn=stack_samples, batch_size=1)
        inside = np.s_[job.halo : job.halo + job.core]
        with rasterio.open(job.raster) as source, created(job, source) as target:
            for sample in loader:
                found_HW = classes(job, predict(sample["image"][0].numpy().astype(np.uint16)))
                x, y, _ = sample["bounds"][0]
                row, col = (job.halo + int(n) for n in source.index(x.start + 1e-6, y.stop - 1e-6))
                height = min(job.core, source.height - row)
                width = min(job.core, source.width - col)
                if row >= 0 and height > 0 and width > 0:
                    core_HW = found_HW[inside, inside][:height, :width]
                    target.write(core_HW, 1, window=Window(col, row, width, height))
        return {}

    return run


def torch_network(job: Job) -> Callable[[Any], Any]:
    from terrafine.mapping.predictor import open_torch

    network = open_torch(Path(job.bundle), window=job.window)

    def predict(image_CHW: Any) -> Any:
        said = network.predict(image_CHW[None])
        return [said.enhanced_NHW[0], said.other_class_NHW[0], said.other_NHW[0]]

    predict(np.ones((4, job.window, job.window), np.uint16))
    return predict


class Nothing:
    """A network that costs nothing: smooth probabilities and patches of classes."""

    def __init__(self, window: int) -> None:
        import cv2

        from terrafine.mapping import Prediction

        rng = np.random.default_rng(0)
        self.window = window
        smooth = cv2.GaussianBlur(rng.normal(size=(window, window)), (0, 0), 12)
        self._enhanced = (smooth * 2000 + 60).clip(0, 255).astype(np.uint8)[None]
        patches = rng.integers(1, 7, (window // 16 + 1,) * 2, dtype=np.uint8)
        self._class = patches.repeat(16, 0).repeat(16, 1)[None, :window, :window]
        self._other = np.maximum(self._enhanced, 255 - self._enhanced) // 32 * 32
        self._prediction = Prediction

    def predict(self, windows_NCHW: Any) -> Any:
        seen = windows_NCHW[:, 0] != 0
        return self._prediction(self._enhanced, self._class * seen, self._other)


def terrafine(job: Job, *, engine: str = "onnx", ray: bool = False) -> Run:
    """A whole map into an Icechunk store: CLAHE, confidence, source, checksums and commits too."""
    from serving.engines import mapper_for
    from serving.ray_cluster import connected
    from terrafine.legend import SEVEN
    from terrafine.mapping import OnnxPredictor, OpenVinoPredictor, map_all
    from terrafine.raster import open_mosaics
    from terrafine.spec import EnhanceSpec, ImagerySpec, MappingSpec

    raster = Path(job.raster)
    scenes = [{"name": "scene", "files": [raster.name]}]
    imagery = ImagerySpec.model_validate({"scenes": scenes, "nodata": 0})
    spec = MappingSpec(
        core=job.core, halo=job.halo, shard=job.shard, enhance=EnhanceSpec(block=job.block)
    )
    graph = Path(job.graph)
    makes: dict[str, Callable[[], Any]] = {
        "nothing": partial(Nothing, job.window),
        "onnx": partial(OnnxPredictor, graph, threads=job.threads),
        "openvino": partial(OpenVinoPredictor, graph, threads=job.threads),
        "bfloat16": partial(OpenVinoPredictor, graph, threads=job.threads, bfloat16=True),
    }
    model = makes[engine]()
    model.predict(np.ones((1, 4, job.window, job.window), np.uint16))
    watch = Watch()

    def map_it() -> None:
        if ray:
            from serving.mapper.runner import RayShardRunner

            runner: Any = RayShardRunner(1)
        else:
            runner = mapper_for(spec, watch)  # type: ignore[arg-type]
        map_all(
            Path(job.into), open_mosaics(imagery, raster.parent), makes[engine] if ray else
            (lambda: model), spec=spec, legend=SEVEN, scenes=("scene",), model_digest="m",
            spec_digest="s", run=runner, observer=watch,
            at_once=job.threads if engine == "bfloat16" else 1,
        )  # fmt: skip

    def run() -> dict[str, Any]:
        if not ray:
            map_it()
            return {"steps": watch.steps, "commits": watch.commits}
        with connected(cpus=job.threads):
            began = time.perf_counter()
            map_it()
            return {"seconds": time.perf_counter() - began, "steps": watch.steps}

    return run


class Watch:
    """Adds up what the mapper tells of its steps."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = defaultdict(float)
        self.commits: list[float] = []

    def started(self, *_: Any) -> None:
        pass

    def shard(self, receipt: Any) -> None:
        for step, seconds in receipt.seconds.items():
            self.steps[step] += seconds

    def commit(self, _: int, seconds: float) -> None:
        self.steps["commit"] += seconds
        self.commits.append(seconds)

    def served(self, _: Any) -> None:
        pass


def floor(job: Job) -> Run:
    """What cannot be left out, each alone on one core: core-seconds of reading every block once,
    of CLAHE, and of compressing three arrays."""
    import cv2
    import rasterio
    from numcodecs.zstd import Zstd
    from rasterio.windows import Window

    model = Nothing(job.window)

    def timed(work: Callable[[], None]) -> float:
        before = cores()
        work()
        return cores() - before

    def run() -> dict[str, Any]:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), rasterio.open(job.raster) as source:
            height, width = source.shape

            def read() -> None:
                for row, col, tall, wide in tiles(height, width, job.core):
                    source.read(window=Window(col, row, wide, tall))

            reading = timed(read)
        said = model.predict(np.ones((1, 4, job.window, job.window), np.uint16))
        windows = list(tiles(height, width, job.core))
        cut = np.s_[0, : job.core, : job.core]
        enhanced, label, other = (
            np.ascontiguousarray(array[cut])
            for array in (said.enhanced_NHW, said.other_class_NHW, said.other_NHW)
        )
        clahe = cv2.createCLAHE(2.0, (max(1, job.core // job.block),) * 2)
        arrays = (label, other, np.ones(label.shape, np.uint16))

        def compress() -> None:
            for _ in windows:
                for array in arrays:
                    Zstd(3).encode(array)

        return {
            "steps": {
                "read": reading,
                "enhance": timed(lambda: [clahe.apply(enhanced) for _ in windows] and None),
                "write": timed(compress),
            }
        }

    return run


WAYS: dict[str, Callable[[Job], Run]] = {
    "plain": plain,
    "dask": dask,
    "torchgeo": torchgeo,
    "torchgeo, same graph": partial(torchgeo, graph=True),
    "terrafine onnx": terrafine,
    "terrafine openvino": partial(terrafine, engine="openvino"),
    "terrafine bfloat16": partial(terrafine, engine="bfloat16"),
    "terrafine nothing": partial(terrafine, engine="nothing"),
    "terrafine nothing, Ray": partial(terrafine, engine="nothing", ray=True),
    "floor": floor,
}

if __name__ == "__main__":
    main()
