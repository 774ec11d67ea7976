"""The landscape's folder: files that fit together, the same for a seed, ready to train on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from PIL import Image
from typer.testing import CliRunner

from terrafine.accuracy.published import DONG_PRODUCT_10M
from terrafine.cli.main import app
from terrafine.errors import DatasetError
from terrafine.landscape import Landscape, generate
from terrafine.legend import CROSSWALKS, SEVEN
from terrafine.raster import open_class_raster, open_mosaics, read_points
from terrafine.spec import LabelSource, ReferenceSpec, load_spec

SIZE = 256
PAPER = dict(zip(SEVEN.names, DONG_PRODUCT_10M.sum(axis=0).tolist(), strict=True))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Landscape:
    return generate(tmp_path_factory.mktemp("landscape"), seed=0, size=SIZE, scenes=2)


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(made: Landscape, tmp_path: Path) -> None:
    again = generate(tmp_path / "again", seed=0, size=SIZE, scenes=2)
    assert digests(again.root) == digests(made.root)
    assert set(digests(made.root)) == {
        "landscape.json", "landscape.png", "spec.yaml",
        "train/scene-0.tif", "train/scene-1.tif", "train/product.tif",
        "train/truth.tif", "train/truth.tif.aux.xml",
        "test/scene.tif", "test/product.tif", "test/points.gpkg",
        "test/truth.tif", "test/truth.tif.aux.xml",
    }  # fmt: skip


def test_another_seed_is_another_landscape(made: Landscape, tmp_path: Path) -> None:
    other = generate(tmp_path / "other", seed=1, size=SIZE, scenes=1)
    with rasterio.open(made.test.truth) as first, rasterio.open(other.test.truth) as second:
        assert (first.read(1) == second.read(1)).mean() < 0.6


def test_the_scenes_of_one_landscape_differ(made: Landscape) -> None:
    with rasterio.open(made.train.images[0]) as first, rasterio.open(made.test.images[0]) as second:
        assert (first.read() == second.read()).mean() < 0.1


def test_all_files_lie_in_one_place_on_one_grid(made: Landscape) -> None:
    for part in (made.train, made.test):
        with rasterio.open(part.truth) as truth, rasterio.open(part.product) as product:
            assert truth.crs == product.crs == "EPSG:32650"
            assert product.transform.a == 10
            for path, window in zip(part.images, part.windows, strict=True):
                with rasterio.open(path) as image:
                    assert image.crs == truth.crs
                    assert image.dtypes == ("uint16",) * 4
                    assert image.descriptions == ("red", "green", "blue", "nir")
                    assert image.nodata == 0
                    assert image.shape == (SIZE, SIZE)
                    assert image.transform == made.grid.transform(window)
                    inside = rasterio.coords.disjoint_bounds(image.bounds, truth.bounds)
                    assert not inside
                    assert product.bounds.left <= image.bounds.left
                    assert product.bounds.top >= image.bounds.top
                    assert product.bounds.right >= image.bounds.right
                    assert product.bounds.bottom <= image.bounds.bottom
    windows = [*made.train.windows, *made.test.windows]
    for number, window in enumerate(windows):
        for other in windows[number + 1 :]:
            assert window.buffered(256).intersection(other) is None


def read(source: LabelSource, made: Landscape, part: str, scene: int = 0) -> np.ndarray:
    raster = open_class_raster(source, SEVEN, made.root)
    window = (made.train if part == "train" else made.test).windows[scene]
    return raster.read(made.grid, window)


def test_the_product_read_as_labels_is_as_right_as_the_summary_says(made: Landscape) -> None:
    summary = json.loads(made.summary.read_text())
    pairs = []
    for scene in range(2):
        truth = read(made.truth_labels, made, "train", scene)
        assert (truth > 0).all()
        pairs.append((read(made.product_labels, made, "train", scene), truth))
    right = float(np.mean([product == truth for product, truth in pairs]))
    assert right == pytest.approx(made.train.product_oa, abs=1e-9)
    assert summary["train"]["product_oa"] == made.train.product_oa
    held = read(LabelSource(file="test/product.tif"), made, "test")
    truth = read(LabelSource(file="test/truth.tif", crosswalk="seven"), made, "test")
    assert float((held == truth).mean()) == pytest.approx(made.test.product_oa, abs=1e-9)
    for oa in (made.train.product_oa, made.test.product_oa):
        assert oa == pytest.approx(0.812, abs=0.005)


def test_every_class_occurs_in_training_and_held_out(made: Landscape) -> None:
    for part in (made.train, made.test):
        assert all(share > 0.001 for share in part.shares.values())
        assert sum(part.shares.values()) == pytest.approx(1)
        assert (part.matrix.sum(axis=1) > 0).all(), "and the product has every class"


def test_points_stand_in_the_papers_counts_on_their_class(made: Landscape) -> None:
    points = read_points(
        ReferenceSpec(file="test/points.gpkg", crosswalk="seven"), SEVEN, made.root
    )
    frame = geopandas.read_file(made.points)
    assert frame["name"].value_counts().to_dict() == PAPER == made.point_counts
    with rasterio.open(made.test.truth) as truth, rasterio.open(made.test.images[0]) as image:
        places = list(zip(points.x, points.y, strict=True))
        assert [int(value[0]) for value in truth.sample(places)] == points.codes.tolist()
        assert all(bool((value > 0).all()) for value in image.sample(places))
    assert len(set(places)) == len(places), "no pixel twice"


def test_a_scene_too_small_for_the_papers_counts_says_which_points_are_short(
    tmp_path: Path,
) -> None:
    small = generate(tmp_path / "small", seed=0, size=128, scenes=1)
    summary = json.loads(small.summary.read_text())
    short = summary["points_short"]
    assert all(0 < count < PAPER[name] for name, count in short.items())
    assert all(small.point_counts[name] == PAPER[name] - count for name, count in short.items())
    assert {name for name in PAPER if small.point_counts[name] < PAPER[name]} == set(short)


def test_the_spec_trains_on_the_product_and_never_sees_the_held_out_scene(made: Landscape) -> None:
    spec = load_spec(made.spec)
    mosaics = open_mosaics(spec.imagery, made.root).values()
    assert sum(len(mosaic.scenes) for mosaic in mosaics) == 2
    for mosaic in mosaics:
        for scene in mosaic.scenes:
            assert scene.window.intersection(made.test.windows[0]) is None
    assert spec.labels == made.product_labels
    assert spec.assess.reference.file == made.truth_labels.file
    labels = open_class_raster(spec.labels, spec.resolve_legend(), made.root)
    assert labels.crosswalk == CROSSWALKS["FROM-GLC10"]


def test_the_picture_shows_image_truth_and_product(made: Landscape) -> None:
    with Image.open(made.picture) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    height, width, _ = pixels.shape
    truth = pixels[: height // 2, width // 3 : 2 * width // 3].reshape(-1, 3)
    colours = {tuple(colour) for colour in np.unique(truth, axis=0).tolist()}
    assert {item.rgb for item in SEVEN.classes if item.name != "snow/ice"} <= colours


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"size": 64}, "size 64"),
        ({"scenes": 0}, "0 training scenes"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**31}, "seed 2147483648: a spec's seed"),
    ],
)
def test_arguments_that_will_not_do_are_refused(
    tmp_path: Path, arguments: dict[str, int], said: str
) -> None:
    with pytest.raises(DatasetError, match=said):
        generate(tmp_path / "refused", **arguments)
    assert not (tmp_path / "refused").exists()


def test_a_folder_that_cannot_be_made_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DatasetError, match="taken: is a file"):
        generate(tmp_path / "taken", size=128, scenes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_the_command_prints_its_figures_as_json(tmp_path: Path) -> None:
    into = tmp_path / "made"
    arguments = ["landscape", str(into), "--size", "128", "--scenes", "1", "--seed", "3"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found == json.loads((into / "landscape.json").read_text())
    assert found["seed"] == 3
    shown = CliRunner().invoke(app, arguments)
    assert "woodland" in shown.output
    assert "landscape.png" in shown.output.replace("\n", "")
