from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from terrafine.errors import MapStoreError, ModelError, ServingError
from terrafine.geometry import PixelGrid
from terrafine.legend import SEVEN
from terrafine.mapping import MapOutcome, in_sequence, map_all, open_map
from tests.imagery import QuickPredictor, map_two_scenes, small_spec, two_scenes


def run_map(path, *, imagery=None, run=in_sequence, spec=None, model="m", predictor=None):
    spec = spec or small_spec()
    mosaics = imagery or [two_scenes()]
    return map_all(
        path,
        {mosaic.zone: mosaic for mosaic in mosaics},
        lambda: predictor or QuickPredictor(spec.window),
        spec=spec,
        legend=SEVEN,
        scenes=("upper", "lower"),
        model_digest=model,
        spec_digest="s",
        run=run,
    )


def arrays(path, outcome: MapOutcome):
    reader = open_map(path)
    return {
        (zone, name): reader.read(zone, reader.window(zone), name, ref=outcome.run)
        for zone in reader.zones()
        for name in ("landcover", "confidence", "source")
    }


def assert_same_map(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert np.array_equal(one[key], other[key]), key


def backwards(shards, write):
    return in_sequence(shards[::-1], write)


def at_least_once(shards, write):
    """As workers that are restarted deliver: some twice, one after its wave was committed."""
    return in_sequence([*shards, *shards[::2], shards[0]], write)


@pytest.mark.parametrize("run", [backwards, at_least_once])
def test_the_map_does_not_depend_on_order_or_repeated_delivery(tmp_path, run):
    plain = run_map(tmp_path / "plain")
    other = run_map(tmp_path / "other", run=run)
    assert other.computed == plain.computed == plain.shards
    assert_same_map(arrays(tmp_path / "plain", plain), arrays(tmp_path / "other", other))


def test_a_finished_run_is_not_computed_again(tmp_path):
    first = run_map(tmp_path / "map")
    predictor = QuickPredictor(small_spec().window)
    again = run_map(tmp_path / "map", predictor=predictor)
    assert predictor.asked == []
    assert (again.computed, again.resumed) == (0, first.shards)
    assert again.snapshot == first.snapshot


def test_waves_hold_as_many_shards_as_the_spec_says(tmp_path):
    seen = []

    def watched(shards, write):
        for shard in shards:
            yield write(shard)
            reader = open_map(tmp_path / "map")
            codes = reader.read("epsg32650", reader.window("epsg32650"), ref=reader.runs()[0])
            seen.append(int((codes != 255).sum()) // 64**2)

    run_map(tmp_path / "map", run=watched)
    assert seen[:7] == [0, 0, 3, 3, 3, 6, 6]


def test_a_runner_that_loses_shards_is_found_out_and_the_rest_is_kept(tmp_path):
    def lossy(shards, write):
        return in_sequence(shards[1:], write)

    with pytest.raises(MapStoreError, match=r"1 shards were not delivered.*epsg32650.*resumes"):
        run_map(tmp_path / "map", run=lossy)
    done = run_map(tmp_path / "map")
    assert done.computed == 1
    whole = run_map(tmp_path / "whole")
    assert_same_map(arrays(tmp_path / "map", done), arrays(tmp_path / "whole", whole))


def test_zones_are_mapped_side_by_side_without_reprojection(tmp_path):
    west = two_scenes()
    east = replace(two_scenes(seed=5), zone="epsg32651", grid=PixelGrid("EPSG:32651", 3, 3, 0, 0))
    done = run_map(tmp_path / "map", imagery=[west, east])
    together = arrays(tmp_path / "map", done)
    alone = run_map(tmp_path / "alone", imagery=[east])
    assert open_map(tmp_path / "map").grid("epsg32651").crs == "EPSG:32651"
    for (zone, name), array in arrays(tmp_path / "alone", alone).items():
        assert np.array_equal(together[zone, name], array)


def test_a_model_for_other_windows_is_refused_before_a_store_is_made(tmp_path):
    with pytest.raises(ModelError, match=r"windows of 64 pixels, but .* is 48"):
        run_map(tmp_path / "map", predictor=QuickPredictor(64))
    assert not (tmp_path / "map").exists()


def test_a_failing_model_keeps_what_was_committed(tmp_path):
    class Failing(QuickPredictor):
        def predict(self, windows_NCHW):
            if len(self.asked) == 60:
                raise ModelError("out of memory")
            return super().predict(windows_NCHW)

    with pytest.raises(ModelError, match="out of memory"):
        run_map(tmp_path / "map", predictor=Failing(small_spec().window))
    resumed = run_map(tmp_path / "map")
    assert 0 < resumed.resumed < resumed.shards
    assert resumed.resumed % small_spec().wave, "the finished shards of the last wave too"
    whole = run_map(tmp_path / "whole")
    assert_same_map(arrays(tmp_path / "map", resumed), arrays(tmp_path / "whole", whole))


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB"), OSError(5, "I/O error")],
)
def test_whatever_an_engine_raises_names_the_window_and_finished_shards_are_kept(tmp_path, error):
    class Failing(QuickPredictor):
        def predict(self, windows_NCHW):
            if len(self.asked) == 60:
                raise error
            return super().predict(windows_NCHW)

    says = rf"zone epsg32650, window at row -\d+, column \d+: .*{str(error)[:9]}.*map\.workers"
    with pytest.raises(ModelError, match=says) as raised:
        run_map(tmp_path / "map", predictor=Failing(small_spec().window), spec=small_spec(wave=99))
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is error
    assert run_map(tmp_path / "map").resumed > 0


def test_an_engine_that_cannot_be_opened_says_so_in_one_sentence(tmp_path):
    def broken() -> QuickPredictor:
        raise RuntimeError("Check failed at plugin.cpp:12:\nno such device")

    with pytest.raises(ModelError, match=r"cannot be opened: .*plugin\.cpp") as raised:
        map_two_scenes(tmp_path / "map", open_predictor=broken)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("error", [KeyError("a bug"), SystemExit(143), KeyboardInterrupt()])
def test_whatever_ends_the_work_finished_shards_are_kept(tmp_path, error):
    def broken_off(shards, write):
        yield from in_sequence(shards[:2], write)
        raise error

    with pytest.raises(type(error)):
        run_map(tmp_path / "map", run=broken_off, spec=small_spec(wave=99))
    assert run_map(tmp_path / "map").resumed == 2


@dataclass
class Silent(QuickPredictor):
    """A model on servers that do not answer any more after a while."""

    failed_tries: dict[str, int] = field(default_factory=dict)
    waits: threading.Event = field(default_factory=threading.Event)
    given_up: threading.Event = field(default_factory=threading.Event)
    waited_in_vain: bool = False

    def predict(self, windows_NCHW):
        if len(self.asked) >= 60:
            self.waits.set()
            if not self.given_up.wait(60):
                self.waited_in_vain = True
            raise ServingError("nobody waits any more")
        return super().predict(windows_NCHW)

    counted: tuple[()] = ()

    def answered(self) -> tuple[()]:
        return ()

    def queue_seconds(self) -> None:
        return None

    def give_up(self) -> None:
        self.given_up.set()


def map_until_ctrl_c(folder: str) -> None:
    """Says whether the servers were given up, and whether a window was waited for in vain."""
    # where tests run in the background it is ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    servers = Silent(small_spec().window)

    def interrupt() -> None:
        servers.waits.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    try:
        run_map(Path(folder), predictor=servers, spec=small_spec(wave=99))
    except KeyboardInterrupt:
        print(servers.given_up.is_set(), servers.waited_in_vain)


def test_ctrl_c_waits_for_no_window_and_finished_shards_are_kept(tmp_path):
    # in a process of its own, so that Ctrl-C reaches no other test
    code = f"import sys; from {__name__} import map_until_ctrl_c; map_until_ctrl_c(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "map"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=250,
    )  # fmt: skip
    assert done.stdout.split() == ["True", "False"], done.stderr
    assert run_map(tmp_path / "map").resumed > 0


def test_a_window_that_two_shards_of_a_row_need_is_inferred_once(tmp_path):
    spec = small_spec()
    predictor = QuickPredictor(spec.window)
    alone = QuickPredictor(spec.window)
    mosaic = two_scenes()

    def without_a_memory(shards, write):
        for shard in shards:
            fresh = replace(write)
            vars(fresh)["predictor"] = alone
            yield fresh(shard)

    together = run_map(tmp_path / "a", imagery=[mosaic], predictor=predictor)
    apart = run_map(tmp_path / "b", imagery=[mosaic], run=without_a_memory)
    assert len(predictor.asked) < 0.85 * len(alone.asked)
    assert_same_map(arrays(tmp_path / "a", together), arrays(tmp_path / "b", apart))
