from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch

from terrafine.errors import ModelError
from terrafine.export import BundleInfo, load_bundle, save_bundle
from terrafine.legend import FBP, SEVEN
from terrafine.models import RawInput, RawModel, build_network
from terrafine.spec import ModelSpec

INFO = BundleInfo(
    model=ModelSpec(arch="hrnet_w1"),
    bands=("red", "nir"),
    fill=65535,
    mean=(500.25, 1234.5),
    std=(100.0, 350.125),
    legend=SEVEN,
    provenance={"chips": 12, "trained_on": ["a", "b"]},
)


def model_of(info: BundleInfo, seed: int = 0) -> RawModel:
    network = build_network(
        info.model, bands=len(info.bands), classes=len(info.legend.classes), seed=seed
    )
    return RawModel(RawInput(info.mean, info.std, info.fill), network).eval()


@pytest.fixture(scope="module")
def model() -> RawModel:
    return model_of(INFO)


@pytest.fixture
def folder(tmp_path: Path, model: RawModel) -> Path:
    save_bundle(tmp_path / "model", model, INFO)
    return tmp_path / "model"


def edit(folder: Path, **changes: object) -> None:
    path = folder / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_loaded_model_says_the_same_as_the_one_saved(folder, model):
    loaded, info = load_bundle(folder)
    windows = torch.randint(1, 3000, (2, 2, 32, 32), dtype=torch.int32)
    windows[0, 1, :5] = 65535
    with torch.inference_mode():
        assert torch.equal(loaded(windows), model(windows))
    assert not loaded.training
    assert info.model_copy(update={"weights_sha256": ""}) == INFO


def test_a_bundle_is_safetensors_and_json_and_nothing_that_runs(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["bundle.json", "weights.safetensors"]
    raw = (folder / "weights.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    assert "network.stem.0.weight" in json.loads(raw[8 : 8 + length])


def test_the_digest_names_weights_scaling_and_legend_but_not_who_trained_it(tmp_path, model):
    def digest(model: RawModel = model, **changes: object) -> str:
        return save_bundle(tmp_path / "x", model, INFO.model_copy(update=changes)).digest

    assert digest() == digest(provenance={"chips": 13})
    different = {
        digest(),
        digest(model=model_of(INFO, seed=1)),
        digest(fill=0),
        digest(mean=(500.25, 1234.0)),
        digest(bands=("nir", "red")),
        digest(legend=SEVEN.model_copy(update={"enhanced": None})),
    }
    assert len(different) == 6


def test_saving_again_replaces_the_bundle_and_leaves_nothing_beside_it(tmp_path, model):
    save_bundle(tmp_path / "model", model, INFO)
    other = model_of(INFO, seed=1)
    save_bundle(tmp_path / "model", other, INFO)
    loaded, _ = load_bundle(tmp_path / "model")
    state = loaded.state_dict()
    assert all(torch.equal(state[name], value) for name, value in other.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_bundle_of_another_legend_is_refused(folder):
    load_bundle(folder, legend=SEVEN)
    with pytest.raises(ModelError, match=r"model bundle of another legend \('seven': cropland"):
        load_bundle(folder, legend=FBP)
    renamed = SEVEN.model_copy(update={"enhanced": None})
    with pytest.raises(ModelError, match="another legend"):
        load_bundle(folder, legend=renamed)


def test_edited_weights_are_refused(folder):
    path = folder / "weights.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ModelError, match=f"{path}: damaged or edited"):
        load_bundle(folder)


@pytest.mark.parametrize("changes", [{"fill": 0}, {"mean": [0.0, 0.0]}, {"bands": ["nir", "red"]}])
def test_an_edited_description_is_refused(folder, changes):
    edit(folder, **changes)
    with pytest.raises(ModelError, match=r"bundle\.json: edited since it was saved"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"surprise": 1}, "surprise"),
        ({"format": "something else"}, "format"),
        ({"std": [1.0]}, "2 bands, 2 means and 1 standard deviations"),
    ],
)
def test_a_description_that_does_not_parse_names_the_key(folder, changes, reason):
    edit(folder, **changes)
    with pytest.raises(ModelError, match=rf"bundle\.json: .*{reason}"):
        load_bundle(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", "\udcff"])
def test_a_description_that_is_no_json_object_is_one_sentence(folder, text):
    (folder / "bundle.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=r"bundle\.json: not a readable bundle description"):
        load_bundle(folder)


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(ModelError, match="nowhere: no model bundle here"):
        load_bundle(tmp_path / "nowhere")
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match=r"weights\.safetensors: the bundle's weights are missing"):
        load_bundle(folder)


def test_weights_of_another_network_do_not_fit(tmp_path, model):
    wider = INFO.model_copy(update={"model": ModelSpec(arch="hrnet_w2")})
    save_bundle(tmp_path / "model", model, wider)
    with pytest.raises(ModelError, match="do not fit hrnet_w2 with 2 bands and 7 classes"):
        load_bundle(tmp_path / "model")


def test_a_folder_that_is_no_bundle_is_not_replaced(tmp_path, model):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(ModelError, match="photos: already exists and is no model bundle"):
        save_bundle(tmp_path / "photos", model, INFO)
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"


def test_a_target_below_a_file_is_an_error_from_the_disk(tmp_path, model):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OSError, match="file"):
        save_bundle(tmp_path / "file" / "model", model, INFO)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
