from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from terrafine.errors import ExportError
from terrafine.export import (
    BundleInfo,
    Floors,
    ParityReport,
    check_parity,
    export_model,
    export_onnx,
)
from terrafine.export.session import Variant
from terrafine.legend import SEVEN
from terrafine.mapping import OnnxPredictor, Prediction
from terrafine.models import RawInput, RawModel
from terrafine.spec import ExportSpec, ModelSpec
from tests.exported import Exported, images

SIZE = 16
INFO = BundleInfo(
    model=ModelSpec(),
    bands=("a", "b", "c"),
    fill=0,
    mean=(128.0,) * 3,
    std=(40.0,) * 3,
    legend=SEVEN,
)


def model_of(seed: int) -> RawModel:
    torch.manual_seed(seed)
    return RawModel(RawInput(INFO.mean, INFO.std, INFO.fill), nn.Conv2d(3, 7, 3, padding=1)).eval()


def windows(count: int = 2) -> np.ndarray:
    return images(count, size=SIZE)[:, :3].copy()


def as_bytes(prediction: Prediction, index: int = 0) -> bytes:
    arrays = (prediction.enhanced_NHW, prediction.other_class_NHW, prediction.other_NHW)
    return b"".join(array[index].tobytes() for array in arrays)


def test_an_hrnet_says_the_same_exported_as_in_torch_on_real_windows(exported_hrnet: Exported):
    report = exported_hrnet.report
    assert report.class_agreement >= 0.9999
    assert report.max_probability_error <= 0.02
    assert (report.windows, report.pixels) == (3, int(report.pixels))
    valid = (exported_hrnet.windows_NCHW != exported_hrnet.info.fill).all(axis=1)
    assert report.pixels == valid.sum() < valid.size


def test_the_exported_hrnet_tells_classes_apart(exported_hrnet: Exported):
    """Parity of a network that says one class everywhere would mean nothing."""
    said = OnnxPredictor(exported_hrnet.graph).predict(images(4, seed=77))
    assert len(np.unique(said.other_class_NHW)) >= 6
    assert 0.02 < (said.enhanced_NHW > said.other_NHW).mean() < 0.98
    assert len(np.unique(said.enhanced_NHW)) > 100


def test_the_bytes_do_not_depend_on_the_number_of_threads_or_the_run(exported_hrnet: Exported):
    raw = images(1, seed=3)
    said = {
        as_bytes(OnnxPredictor(exported_hrnet.graph, threads=threads).predict(raw))
        for threads in (1, 2, 3, 0, 1)
    }
    assert len(said) == 1


def test_a_graph_that_passes_is_the_only_file_left(tmp_path):
    report = export_model(
        model_of(0), INFO, tmp_path / "m.onnx", windows(), window=SIZE, spec=ExportSpec()
    )
    assert report.class_agreement == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    OnnxPredictor(tmp_path / "m.onnx").predict(windows())


@pytest.fixture(scope="module")
def other_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other") / "other.onnx"
    export_onnx(model_of(1), path, window=SIZE, spec=ExportSpec(), info=INFO)
    return path


def test_a_graph_that_says_other_classes_is_refused(other_graph):
    with pytest.raises(ExportError, match=r"agree on 0\.\d+ of the pixels.*asks for 0\.9999"):
        check_parity(model_of(0), INFO, other_graph, windows(), Floors.of(ExportSpec()))


def test_a_graph_with_other_probabilities_is_refused_even_when_the_classes_agree(other_graph):
    spec = ExportSpec(min_class_agreement=0.0)
    with pytest.raises(ExportError, match=r"differ by 0\.\d+ in a probability.*allows 0\.02"):
        check_parity(model_of(0), INFO, other_graph, windows(), Floors.of(spec))


@pytest.fixture(scope="module")
def unsure_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half the logits: every class stays, every probability is nearer to the others'."""
    unsure = model_of(0)
    with torch.no_grad():
        for parameter in unsure.network.parameters():
            parameter.mul_(0.5)
    path = tmp_path_factory.mktemp("unsure") / "unsure.onnx"
    export_onnx(unsure, path, window=SIZE, spec=ExportSpec(), info=INFO)
    return path


@pytest.mark.parametrize(("variant", "most"), [("fp16", "0.01"), ("int8", "0.03")])
def test_a_variant_of_shifted_probabilities_is_refused_though_every_class_is_right(
    unsure_graph: Path, variant: Variant, most: str
) -> None:
    lenient = ExportSpec(reduced_probability_error={variant: 1})
    report = check_parity(model_of(0), INFO, unsure_graph, windows(), Floors.of(lenient, variant))
    assert report.class_agreement >= 0.999
    with pytest.raises(
        ExportError,
        match=rf"not exported: {variant} graph and network differ by 0\.\d+ in a probability in "
        rf"the mean .*export\.reduced_probability_error\.{variant} allows {most}; .*leave it out",
    ):
        check_parity(model_of(0), INFO, unsure_graph, windows(), Floors.of(ExportSpec(), variant))


def test_bounds_that_the_spec_does_not_name_stay() -> None:
    assert ExportSpec(reduced_probability_error={"int8": 0.1}).reduced_probability_error == {
        "fp16": 0.01,
        "int8": 0.1,
    }


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("broken", ["class_agreement", "both errors"])
def test_a_report_that_is_no_number_is_refused(variant: Variant, broken: str) -> None:
    good = {"class_agreement": 1.0, "max_probability_error": 0.0, "mean_probability_error": 0.0}
    floors = Floors.of(ExportSpec(), variant)
    assert not floors.refusal(ParityReport(**good, windows=1, pixels=1))
    names = [broken] if broken in good else [name for name in good if name.endswith("error")]
    bad = good | dict.fromkeys(names, float("nan"))
    assert floors.refusal(ParityReport(**bad, windows=1, pixels=1))


def test_a_graph_that_takes_other_pixels_for_missing_is_refused(other_graph):
    one = model_of(1)
    other_fill = RawModel(RawInput(INFO.mean, INFO.std, 200), one.network).eval()
    real = windows()
    real[1, :, 5] = 200
    check_parity(one, INFO, other_graph, real, Floors.of(ExportSpec()))
    with pytest.raises(ExportError, match="not exported"):
        check_parity(other_fill, INFO, other_graph, real, Floors.of(ExportSpec()))


def test_windows_without_a_valid_pixel_prove_nothing_and_the_old_graph_stays(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"the graph in production")
    with pytest.raises(ExportError, match=r"m\.onnx: not exported: 2 windows without a single"):
        export_model(model_of(0), INFO, path, windows() * 0, window=SIZE, spec=ExportSpec())
    assert path.read_bytes() == b"the graph in production"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_network_that_says_nan_is_refused(tmp_path):
    broken = model_of(0)
    with torch.no_grad():
        broken.network.bias.fill_(float("nan"))
    with pytest.raises(ExportError, match="not exported"):
        export_model(broken, INFO, tmp_path / "m.onnx", windows(), window=SIZE, spec=ExportSpec())
    assert list(tmp_path.iterdir()) == []


def test_a_target_below_a_file_is_an_error_from_the_disk(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OSError, match="file"):
        export_model(
            model_of(0), INFO, tmp_path / "file" / "m.onnx", windows(), window=SIZE,
            spec=ExportSpec(),
        )  # fmt: skip
