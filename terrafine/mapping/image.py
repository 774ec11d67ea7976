"""One image from a model, without a map store: for looking at, and for small jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from terrafine.errors import ModelError
from terrafine.geometry import Window
from terrafine.legend import Legend, UInt8Array
from terrafine.mapping.plan import Imagery
from terrafine.mapping.predictor import Predictor
from terrafine.mapping.shard import Looked, compute_shard
from terrafine.progress import progress
from terrafine.spec import EnhanceSpec, MappingSpec


def cut_for(window: int, *, core: int | None, enhance: EnhanceSpec) -> MappingSpec:
    """How an image is cut for a model that takes windows of ``window`` pixels.

    Without a ``core`` it is the largest power of two that leaves a halo around it: 1024 of 1280,
    as `terrafine map` cuts by default. ModelError when the model leaves no room for the halo.
    """
    core = core or 1 << ((window - 1).bit_length() - 1)
    if core & (core - 1) or not 16 <= core <= window:
        raise ModelError(
            f"windows of {window} pixels have no core of {core}: it must be a power of two from 16 "
            "up to that; give another core"
        )
    shard = max(core, enhance.block)
    return MappingSpec(core=core, halo=(window - core) // 2, shard=shard, enhance=enhance)


def map_image(
    imagery: Imagery,
    predictor: Predictor,
    *,
    spec: MappingSpec,
    legend: Legend,
    at_once: int = 1,
) -> UInt8Array:
    """Legend codes (H, W) of all of ``imagery.window``, the same as in a map store.

    It is held in memory as one shard, about ten bytes per pixel. ``at_once``: windows asked about
    at the same time, where that is worth while: of a server.
    """

    def each(look: Callable[[Window], Looked], cores: list[Window]) -> Iterator[Looked]:
        with (
            ThreadPoolExecutor(at_once) as pool,
            progress("predict", total=len(cores), unit="window") as task,
        ):
            try:
                for looked in pool.map(look, cores):
                    yield looked
                    task.advance()
            finally:
                # after an error nobody wants the windows that were not begun
                pool.shutdown(cancel_futures=True)

    whole = imagery.window.snapped(spec.shard)
    done = compute_shard(
        whole, imagery=imagery, predictor=predictor, spec=spec, legend=legend, each=each
    )
    return done.landcover[imagery.window.slices(within=whole)]
