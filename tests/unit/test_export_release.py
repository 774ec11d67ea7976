"""A release holds all that a server needs, is whole or not there, and only of a promoted model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from terrafine.accuracy import GateDecision
from terrafine.errors import ExportError, ModelError
from terrafine.export import (
    BundleInfo,
    Release,
    load_bundle,
    open_graph,
    read_release,
    write_release,
)
from terrafine.export.release import CANARY, DESCRIPTION, ReleaseInfo
from terrafine.export.session import INPUT, OUTPUTS
from terrafine.models import RawModel
from terrafine.spec import ExportSpec
from tests.exported import PASSED, WINDOW, images, small_release

REFUSED = GateDecision(passed=False, subject="a model", evidence="none", rules=())


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return small_release(
        tmp_path_factory.mktemp("release") / "release", variants=("fp32", "fp16", "int8")
    )


@pytest.fixture(scope="module")
def bundle(release: Release) -> tuple[RawModel, BundleInfo]:
    return load_bundle(release.folder.with_name("release-model"))


@pytest.fixture
def copied(release: Release, tmp_path: Path) -> Path:
    return Path(shutil.copytree(release.folder, tmp_path / "release"))


def test_what_was_written_is_what_is_read(release: Release) -> None:
    read = read_release(release.folder)
    assert read.digest == release.digest
    assert read.info == release.info
    assert list(read.info.graphs) == ["fp32", "fp16", "int8"]


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8"])
def test_the_canary_is_what_each_graph_answers_to_real_windows(
    release: Release, variant: str
) -> None:
    windows, answers = release.canary(variant)  # type: ignore[arg-type]
    session, info = open_graph(release.graph(variant))  # type: ignore[arg-type]
    said = session.run(list(OUTPUTS), {INPUT: windows})
    assert windows.dtype == np.uint16
    assert windows.shape[1:] == (info.bands, info.window, info.window)
    for one, other in zip(
        said, (answers.enhanced_NHW, answers.other_class_NHW, answers.other_NHW), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_two_models_give_two_releases_with_other_answers(release: Release, tmp_path: Path) -> None:
    other = small_release(tmp_path / "other", seed=1)
    assert other.digest != release.digest
    mine, theirs = (r.canary("fp32")[1].other_class_NHW for r in (release, other))
    assert (mine != theirs).mean() > 0.1


def test_a_smaller_variant_is_smaller_and_says_how_far_it_agrees(release: Release) -> None:
    graphs = release.info.graphs
    assert graphs["fp16"].bytes < 0.6 * graphs["fp32"].bytes
    assert graphs["int8"].bytes < 0.5 * graphs["fp32"].bytes
    assert graphs["fp32"].parity.class_agreement == 1.0
    assert 0.99 < graphs["fp16"].parity.class_agreement <= 1.0
    assert graphs["int8"].parity.mean_probability_error > 0
    assert graphs["fp16"].parity.mean_probability_error > 0


def test_int8_is_judged_on_windows_that_it_was_not_calibrated_on(release: Release) -> None:
    reports = {variant: entry.parity for variant, entry in release.info.graphs.items()}
    assert [reports[v].windows for v in ("fp32", "fp16", "int8")] == [3, 3, 1]
    (judged,) = images(3, seed=9)[1::2]
    assert reports["int8"].pixels == (judged != release.info.fill).all(axis=0).sum()


def test_int8_is_refused_where_it_would_be_judged_on_the_window_that_calibrated_it(
    bundle: tuple[RawModel, BundleInfo], tmp_path: Path
) -> None:
    spec = ExportSpec(
        variants=("fp32", "int8"),
        reduced_class_agreement={"int8": 0.0},
        reduced_probability_error={"int8": 1.0},
    )
    made = _written(tmp_path / "release", bundle, images(1, seed=9), spec=spec)
    assert list(made.info.graphs) == ["fp32"]
    assert "with one window int8 would be judged on what it" in made.info.refused["int8"]
    assert "ask for two or more (export.parity_windows)" in made.info.refused["int8"]


def test_the_convolutions_of_a_variant_are_in_its_numbers(release: Release) -> None:
    half = onnx.load(release.graph("fp16")).graph
    weights = {i.name: i.data_type for i in half.initializer}
    convolutions = [n for n in half.node if n.op_type == "Conv"]
    assert convolutions
    assert {weights[n.input[1]] for n in convolutions} == {onnx.TensorProto.FLOAT16}
    eight = onnx.load(release.graph("int8")).graph
    quantised = {i.data_type for i in eight.initializer if len(i.dims) == 4}
    assert onnx.TensorProto.INT8 in quantised


def test_numbers_beyond_fp16_reach_the_scaling_whole(release: Release) -> None:
    """65504 is the largest number of fp16: raw numbers above must not become infinite."""
    bright = np.full((1, 4, WINDOW, WINDOW), 65530, np.uint16)
    bright[:, :, : WINDOW // 2] = 65000
    exact, half = (
        open_graph(release.graph(v))[0].run(list(OUTPUTS), {INPUT: bright})
        for v in ("fp32", "fp16")
    )
    assert (exact[1] > 0).all()
    assert (exact[1] == half[1]).mean() > 0.95


def test_a_variant_below_its_floor_is_left_out_and_the_others_are_kept(
    bundle: tuple[RawModel, BundleInfo], tmp_path: Path
) -> None:
    spec = ExportSpec(
        variants=("fp32", "int8"), reduced_class_agreement={"fp16": 0.9, "int8": 0.999}
    )
    made = _written(tmp_path / "release", bundle, images(2, seed=9), spec=spec)
    assert list(made.info.graphs) == ["fp32"]
    assert "export.reduced_class_agreement.int8 asks for 0.999" in made.info.refused["int8"]
    assert not (tmp_path / "release" / "model.int8.onnx").exists()
    with pytest.raises(ModelError, match=r"holds no int8 graph .*asks for 0\.999"):
        made.graph("int8")


def test_a_variant_of_other_probabilities_is_left_out_and_the_release_says_why(
    bundle: tuple[RawModel, BundleInfo], tmp_path: Path
) -> None:
    spec = ExportSpec(
        variants=("fp32", "int8"),
        reduced_class_agreement={"int8": 0.0},
        reduced_probability_error={"int8": 0.0001},
    )
    made = _written(tmp_path / "release", bundle, images(2, seed=9), spec=spec)
    assert list(made.info.graphs) == ["fp32"]
    assert "export.reduced_probability_error.int8 allows 0.0001" in made.info.refused["int8"]
    assert not (tmp_path / "release" / "model.int8.onnx").exists()


def test_a_model_that_the_gate_refused_is_not_released(
    bundle: tuple[RawModel, BundleInfo], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="the gate refused the model"):
        _written(tmp_path / "release", bundle, images(1, seed=9), gate=REFUSED)
    assert not (tmp_path / "release").exists()


def test_windows_without_a_pixel_leave_no_half_release(
    bundle: tuple[RawModel, BundleInfo], tmp_path: Path
) -> None:
    nothing = np.zeros((2, 4, WINDOW, WINDOW), np.uint16)
    with pytest.raises(ExportError, match="without a single valid pixel"):
        _written(tmp_path / "release", bundle, nothing)
    assert not (tmp_path / "release").exists()


def _written(
    folder: Path,
    bundle: tuple[RawModel, BundleInfo],
    windows: np.ndarray,
    *,
    gate: GateDecision = PASSED,
    spec: ExportSpec | None = None,
) -> Release:
    return write_release(
        folder, *bundle, windows, name="test", gate=gate, window=WINDOW, spec=spec or ExportSpec()
    )


@pytest.mark.parametrize("file", ["model.fp32.onnx", "model.int8.onnx", CANARY])
def test_one_changed_byte_in_any_file_is_found(copied: Path, file: str) -> None:
    data = bytearray((copied / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / file).write_bytes(data)
    with pytest.raises(ModelError, match=rf"{file}: the file was damaged or edited"):
        read_release(copied)


def test_a_missing_file_is_named(copied: Path) -> None:
    (copied / "model.fp16.onnx").unlink()
    with pytest.raises(ModelError, match=r"model\.fp16\.onnx: a file of the release is missing"):
        read_release(copied)


@pytest.mark.parametrize(
    ("text", "match"),
    [("", "not readable"), ("[]", "not readable"), ("{}", "not readable"), ('{"digest": 1}', "no")],
)
def test_a_description_that_is_none_is_refused(copied: Path, text: str, match: str) -> None:
    (copied / DESCRIPTION).write_text(text)
    with pytest.raises(ModelError, match=match):
        read_release(copied)


def test_an_edited_description_is_found(copied: Path) -> None:
    path = copied / DESCRIPTION
    path.write_text(path.read_text().replace('"window": 64', '"window": 32'))
    with pytest.raises(ModelError, match="the description was damaged or edited"):
        read_release(copied)


def test_a_gate_that_did_not_pass_is_refused_whoever_wrote_the_release(
    release: Release, copied: Path
) -> None:
    """Even with a digest that fits."""
    forged: ReleaseInfo = release.info.model_copy(update={"gate": REFUSED})
    text = json.dumps({**forged.model_dump(mode="json"), "digest": forged.digest})
    (copied / DESCRIPTION).write_text(text)
    with pytest.raises(ModelError, match="the gate refused this model"):
        read_release(copied)


def test_no_release_at_all(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model release here"):
        read_release(tmp_path)
