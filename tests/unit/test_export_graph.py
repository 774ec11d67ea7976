from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from terrafine.errors import ModelError
from terrafine.export import BundleInfo, GraphInfo, ServedModel, export_onnx, open_graph
from terrafine.export.variants import to_int8
from terrafine.legend import SEVEN, Legend
from terrafine.mapping import OnnxPredictor, TorchPredictor
from terrafine.models import RawInput, RawModel
from terrafine.spec import ExportSpec, ModelSpec

PLAIN = SEVEN.model_copy(update={"enhanced": None})
SNOW = SEVEN.model_copy(update={"enhanced": "snow/ice"})
SIZE = 16


def identity(legend: Legend = SEVEN) -> RawModel:
    """A network whose logits are its input: seven bands, no scaling."""
    bands = len(legend.classes)
    return RawModel(RawInput([0.0] * bands, [1.0] * bands, 65535), nn.Identity()).eval()


def describe(legend: Legend, bands: int) -> BundleInfo:
    return BundleInfo(
        model=ModelSpec(),
        bands=tuple(f"b{i}" for i in range(bands)),
        scale=10000.0,
        fill=65535,
        mean=(0.0,) * bands,
        std=(1.0,) * bands,
        legend=legend,
        weights_sha256="w" * 64,
    )


def serve(logits_CHW: np.ndarray, legend: Legend) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    served = ServedModel(identity(legend), legend)
    with torch.inference_mode():
        found = served(torch.from_numpy(logits_CHW[None].astype(np.float32)))
    return tuple(array[0].numpy() for array in found)


def softmax(logits_CHW: np.ndarray) -> np.ndarray:
    raised = np.exp(logits_CHW - logits_CHW.max(axis=0))
    return raised / raised.sum(axis=0)


@pytest.mark.parametrize("legend", [SEVEN, SNOW], ids=["impervious", "last class"])
def test_the_bytes_are_the_enhanced_probability_and_the_best_other_class(legend):
    logits = np.random.default_rng(0).normal(0, 2, (7, 40, 40))
    enhanced, code, other = serve(logits, legend)
    probability = softmax(logits)
    index = legend.enhanced_index
    rest = np.delete(probability, index, axis=0)
    rest_codes = np.delete(np.array(legend.codes), index)
    assert (enhanced.dtype, code.dtype, other.dtype) == (np.uint8,) * 3
    assert np.abs(enhanced - 255 * probability[index]).max() <= 0.501
    assert np.array_equal(code, rest_codes[rest.argmax(axis=0)])
    assert np.abs(other - 255 * rest.max(axis=0)).max() <= 1.501
    wins = probability[index] > rest.max(axis=0)
    assert np.array_equal(enhanced > other, wins)
    assert 0.02 < wins.mean() < 0.6


@settings(max_examples=200, deadline=None)
@given(
    enhanced=st.floats(-3, 3),
    gap=st.floats(-0.02, 0.02),
    rest=st.floats(-9, 0),
)
@example(enhanced=1.0, gap=0.0, rest=-9.0)
@example(enhanced=0.0, gap=1e-4, rest=0.0)
def test_rounding_to_bytes_never_changes_which_class_wins(enhanced, gap, rest):
    """Probabilities that differ by less than a byte are where rounding could decide."""
    logits = np.full((7, 1, 1), min(rest, enhanced - 1), np.float32)
    logits[SEVEN.enhanced_index], logits[0] = enhanced, enhanced - gap
    probability = torch.softmax(torch.from_numpy(logits)[None], dim=1)[0, :, 0, 0]
    wins = bool(probability[SEVEN.enhanced_index] > probability[0])
    said, code, other = (int(a[0, 0]) for a in serve(logits, SEVEN))
    assert code == SEVEN.codes[0]
    assert (said > other) == wins
    assert 0 <= other <= 255


def test_as_many_classes_as_a_legend_can_have_still_show_the_winner():
    """With 254 equal classes each probability rounds to 1, and 1 > 0 must still be possible."""
    colors = [{"code": i, "name": f"c{i}", "color": "#000000"} for i in range(1, 255)]
    legend = Legend.model_validate({"name": "all", "classes": colors, "enhanced": "c9"})
    logits = np.zeros((254, 1, 1), np.float32)
    logits[8] = 1e-3
    said, _, other = (int(a[0, 0]) for a in serve(logits, legend))
    assert said > other


def test_without_an_enhanced_class_its_probability_is_zero_and_the_best_class_is_said():
    logits = np.random.default_rng(1).normal(0, 2, (7, 20, 20))
    enhanced, code, other = serve(logits, PLAIN)
    assert (enhanced == 0).all()
    assert np.array_equal(code, np.array(PLAIN.codes)[logits.argmax(axis=0)])
    assert np.abs(other - 255 * softmax(logits).max(axis=0)).max() <= 0.501


def test_a_missing_pixel_is_three_zeros_even_when_only_one_band_is_missing():
    raw = np.random.default_rng(2).integers(0, 9, (1, 7, SIZE, SIZE), dtype=np.uint16)
    raw[0, :, 0] = 65535
    raw[0, 3, 5, 5] = 65535
    found = ServedModel(identity(), SEVEN).predict(raw)
    missing = (raw == 65535).any(axis=1)
    assert missing.sum() == SIZE + 1
    for array in found:
        assert (array[missing] == 0).all()
    assert (found[1][~missing] > 0).all()


@pytest.fixture(scope="module")
def convolution() -> RawModel:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Conv2d(12, 7, 1))
    network.train()(torch.randn(4, 3, 16, 16) * 3 + 1)
    return RawModel(RawInput([100.0] * 3, [30.0] * 3, 65535), network).eval()


@pytest.fixture(scope="module")
def graph(convolution: RawModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_onnx(convolution, path, window=SIZE, spec=ExportSpec(), info=describe(SEVEN, 3))
    return path


def shape_of(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_the_graph_takes_uint16_windows_of_one_size_in_batches_of_any(graph):
    model = onnx.load(graph)
    onnx.checker.check_model(model, full_check=True)
    (image,) = model.graph.input
    assert image.name == "image"
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT16
    batch, *rest = shape_of(image)
    assert isinstance(batch, str)
    assert rest == [3, SIZE, SIZE]
    names = [output.name for output in model.graph.output]
    assert names == ["enhanced_probability", "other_class", "other_probability"]
    for output in model.graph.output:
        assert output.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert shape_of(output) == [batch, SIZE, SIZE]
    assert next(o.version for o in model.opset_import if not o.domain) == 18


def test_the_graph_says_what_it_was_made_from(graph):
    _, info = open_graph(graph)
    described = describe(SEVEN, 3)
    assert info == GraphInfo(
        window=SIZE,
        band_names=("b0", "b1", "b2"),
        scale=10000.0,
        fill=65535,
        legend=SEVEN,
        model=described.digest,
        weights_sha256="w" * 64,
    )


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_batch_of_any_size_gives_what_torch_gives(graph, convolution, count):
    raw = np.random.default_rng(count).integers(0, 300, (count, 3, SIZE, SIZE), dtype=np.uint16)
    raw[0, :, :4] = 65535
    served = TorchPredictor(ServedModel(convolution, SEVEN), window=SIZE).predict(raw)
    onnxed = OnnxPredictor(graph).predict(raw)
    assert np.array_equal(served.other_class_NHW, onnxed.other_class_NHW)
    for name in ("enhanced_NHW", "other_NHW"):
        difference = getattr(served, name).astype(int) - getattr(onnxed, name)
        assert np.abs(difference).max() <= 1


def test_the_same_model_gives_the_same_file_without_the_folders_of_this_machine(
    graph, convolution, tmp_path
):
    again = tmp_path / "again.onnx"
    export_onnx(convolution, again, window=SIZE, spec=ExportSpec(), info=describe(SEVEN, 3))
    assert again.read_bytes() == graph.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in graph.read_bytes()


def test_graphs_that_differ_in_anything_differ_in_the_name_that_engines_are_kept_by(
    graph, convolution, tmp_path
):
    """TensorRT's cache knows a graph by its name, and not by its weights."""
    described = describe(SEVEN, 3)
    other = copy.deepcopy(convolution)
    with torch.no_grad():
        other.network[2].bias[0] += 1e-3
    raw = np.random.default_rng(0).integers(0, 300, (2, 3, SIZE, SIZE), dtype=np.uint16)
    paths = [graph, *(tmp_path / f"{name}.onnx" for name in ("other", "half"))]
    export_onnx(other, paths[1], window=SIZE, spec=ExportSpec(), info=described)
    export_onnx(convolution, paths[2], window=SIZE, spec=ExportSpec(), info=described, half=True)
    for name, source, windows in (
        ("8", graph, raw),
        ("8 o", paths[1], raw),
        ("8 w", graph, raw * 9),
    ):
        paths.append(tmp_path / f"{name}.onnx")
        to_int8(source, paths[-1], windows)
    names = [onnx.load(path).graph.name for path in paths]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z0-9_]+", name) for name in names)
    to_int8(graph, tmp_path / "again.onnx", raw)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "8.onnx").read_bytes()


def test_exporting_leaves_the_model_as_it_was(graph, convolution):
    kinds = [type(m) for m in convolution.network]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]


def test_windows_of_another_size_type_or_number_of_bands_are_refused(graph):
    predictor = OnnxPredictor(graph)
    for shape, dtype in (((1, 3, 8, 8), "u2"), ((1, 4, SIZE, SIZE), "u2"), ((1, 3, 16, 16), "f4")):
        with pytest.raises(ModelError, match=rf"{graph}: takes uint16 windows of \(3, 16, 16\)"):
            predictor.predict(np.zeros(shape, dtype))


def test_a_graph_of_another_legend_or_nodata_is_told_apart_before_mapping(graph):
    predictor = OnnxPredictor(graph)
    predictor.require(legend=SEVEN, fill=65535)
    with pytest.raises(ModelError, match="exported for another legend"):
        predictor.require(legend=PLAIN, fill=65535)
    with pytest.raises(ModelError, match=r"takes 65535 for a missing pixel.*by 0; set imagery"):
        predictor.require(legend=SEVEN, fill=0)


def test_a_file_that_is_no_graph_of_terrafine_is_refused(graph, tmp_path):
    with pytest.raises(ModelError, match=r"nowhere\.onnx: no exported model here"):
        OnnxPredictor(tmp_path / "nowhere.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(ModelError, match=r"text\.onnx: not a readable ONNX graph"):
        OnnxPredictor(tmp_path / "text.onnx")
    (tmp_path / "cut.onnx").write_bytes(graph.read_bytes()[:-500])
    with pytest.raises(ModelError, match=r"cut\.onnx: not a"):
        OnnxPredictor(tmp_path / "cut.onnx")
    foreign = onnx.load(graph)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    without_scale = onnx.load(graph)
    kept = [entry for entry in without_scale.metadata_props if entry.key != "terrafine.scale"]
    del without_scale.metadata_props[:]
    without_scale.metadata_props.extend(kept)
    onnx.save(without_scale, tmp_path / "old.onnx")
    for name, reason in (("foreign", "KeyError.*terrafine"), ("old", "'terrafine.scale'")):
        with pytest.raises(
            ModelError, match=rf"{name}\.onnx: an ONNX graph, but not one .* exported \(.*{reason}"
        ):
            OnnxPredictor(tmp_path / f"{name}.onnx")
