"""The report: everything a reader needs is on the page, and nothing comes from outside."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from terrafine.accuracy import DONG_MAP_3M, ConfusionMatrix, Figure, Front, Place, Samples, assess
from terrafine.geometry import Window
from terrafine.legend import SEVEN, LandClass, Legend
from terrafine.pruning import Cost, PrunedLayer, PruningRecord
from terrafine.publish.findings import cautions, verdict
from terrafine.publish.panels import Renderer, View, fit
from terrafine.publish.report import PANEL_BUDGET, render_report
from terrafine.spec import PruneSpec
from tests import reports

VOID = {"meta", "img", "br", "input", "link", "hr"}


class Reader(HTMLParser):
    """Collects text and addresses, and checks that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action", "data") and v]
        if tag == "img":
            self.images.append(values)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def text_of(page: str) -> str:
    return " ".join(" ".join(read(page).words).split())


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(reports.promoted())


def test_page_is_well_formed_and_asks_no_one_for_anything(page: str) -> None:
    reader = read(page)

    assert all(address.startswith(("data:image/", "#")) for address in reader.addresses)
    assert "default-src 'none'" in page
    assert not re.search(r"@import|url\((?!data:)|fetch\(|XMLHttpRequest|https?://", page)
    assert all(image["alt"] for image in reader.images)
    assert len(page) < 6_000_000


def test_headline_says_the_outcome_and_the_figures(page: str) -> None:
    text, data = text_of(page), reports.promoted()
    assert data.accuracy is not None
    assert data.class_pixels is not None

    assert "promoted The gate promoted this model: its map agrees with the reference map" in text
    assert f"{100 * data.accuracy.overall_accuracy.value:.1f} %" in text
    assert "The reference is older than the image." in text
    mapped = sum(data.class_pixels.values())
    assert f"{mapped * 0.0009:.2f} km²" in text
    assert f"{data.class_pixels[4] * 0.0009:.2f}" in text


def test_every_cell_of_both_confusion_matrices_is_there(page: str) -> None:
    data = reports.promoted()
    tables = re.findall(r'<table class="matrix">.*?</table>', page, flags=re.DOTALL)
    assert len(tables) == 2
    for table, accuracy in zip(tables, (data.accuracy, data.product_accuracy), strict=True):
        assert accuracy is not None
        cells = re.findall(r'<td class="cell[^>]*>([^<]*)</td>', table)
        counts = [int(cell.replace("\u202f", "")) for cell in cells]
        assert counts == [count for row in accuracy.matrix for count in row]


def test_gate_training_and_provenance_are_there(page: str) -> None:
    text = text_of(page)

    for expected in (
        "better than the label product",
        "3 of 4 training chips were kept (75.0 %)",
        "model release r-17",
        "stage seconds label 1.5 map 2.5",
        "name: test",
        "1 · ",
        "Show in the panels",
    ):
        assert expected in text
    assert page.count("<svg") == 5


def test_the_search_that_the_network_was_chosen_by_is_drawn_and_the_own_network_ringed() -> None:
    assert "Accuracy against speed" not in text_of(render_report(reports.promoted()))
    places = [
        Place(
            network=name, engine="openvino_bf16", threads=2, seconds_per_megapixel=seconds,
            overall_accuracy=Figure(value=value, low=value - 0.004, high=value + 0.004),
            over_first=None if over is None else Figure(value=over, low=-0.006, high=0.002),
            parameters=1000, macs_per_pixel=400, models=(f"model-{name}",),
        )
        for name, seconds, value, over in (
            ("half-whole", 2.4, 0.88, None), ("half-late", 1.4, 0.86, -0.02),
            ("quarter-late", 0.4, 0.878, -0.002), ("quarter-<even>", 0.3, 0.8, -0.08),
        )
    ]  # fmt: skip
    front = Front(name="s", first="half-whole", statement="", within=0.005, places=tuple(places))
    data = replace(reports.promoted(), front=front, model="model-quarter-late")
    page = render_report(data)
    text = text_of(page)
    assert "The fastest within 0.5 points of half-whole: quarter-late, 6.0 times faster" in text
    assert "openvino_bf16 on 2 threads" in text
    assert "Ringed: the one that made this map." in text
    assert "quarter-late 87.80 (87.40 to 88.20) -0.20 (-0.60 to +0.20) 0.4 6.00" in text
    chart = re.findall(r'<svg[^>]*aria-label="Overall accuracy of each network.*?</svg>', page)[0]
    assert chart.count('class="ring"') == 1
    assert chart.count('class="dot map"') == 3, "half-late is slower and worse than quarter-late"
    assert chart.count('class="dot product"') == 1
    other = text_of(render_report(replace(data, model="another")))
    assert "The network of this map is none of them." in other


def test_what_was_pruned_is_told_part_by_part_and_layer_by_layer() -> None:
    assert "pruned" not in text_of(render_report(reports.promoted()))
    layers = [
        PrunedLayer(
            layer=f"stage1.{i}",
            before=10,
            removed=4,
            left=6,
            why="ratio 0.4",
            group=i,
            filters=(i, 4, 5, 6),
        )
        for i in range(3)
    ]
    layers.append(
        PrunedLayer(layer="stage1.3", before=9, removed=0, left=9, why="last before a sum", group=3)
    )
    pruning = PruningRecord(
        spec=PruneSpec(ratio=0.4),
        parent="",
        layers=tuple(layers),
        before=Cost(parameters=1000, macs_per_pixel=400),
        after=Cost(parameters=580, macs_per_pixel=190),
        agreement={"trained": 0.81, "zeroed": 0.62, "compact": 0.805},
    )
    text = text_of(render_report(replace(reports.promoted(), pruning=pruning)))
    assert "(42.0 % fewer)" in text
    assert "(52.5 % fewer)" in text
    assert "81.0 % as trained, 62.0 % with filters at zero, 80.5 % at the end" in text
    assert "stage1 3 30 18 ratio 0.4 stage1 1 9 9 last before a sum" in text
    assert "stage1.2 10 6 2, 4-6 ratio 0.4 stage1.3 9 9 last before a sum" in text
    assert "undone" not in text
    worse = pruning.model_copy(update={"worse_tuning": 0.312})
    text = text_of(render_report(replace(reports.promoted(), pruning=worse)))
    assert "more, which made it worse (agreement 31.2 %) and was undone" in text


def test_how_the_labels_err_is_shown_as_the_training_took_it() -> None:
    data = reports.report()
    classes = len(data.legend.classes)
    # 70 of 100 pixels of every class are labelled so, 30 as the class after it
    shares = 0.7 * np.eye(classes) + 0.3 * np.roll(np.eye(classes), 1, axis=1)
    known = replace(data, label_confusion=shares.tolist(), label_confusion_source="estimated")
    text = text_of(render_report(known))
    assert "How the labels err" in text
    assert "estimated from the preliminary model" in text
    first, second = data.legend.names[:2]
    row = text[text.index("Product ↓ truth →") :]
    assert f" {first} 70 % " in row
    assert f" {second} 30 % 70 % " in row
    assert "How the labels err" not in text_of(render_report(data))


def test_a_refused_model_has_no_map_and_the_page_says_why() -> None:
    page = render_report(reports.refused())
    text = text_of(page)

    assert "refused The gate refused this model, so no map was made." in text
    assert "better than the label product: the map is not shown to be better" in text
    for absent in ('id="panel-map"', 'id="panel-confidence"', 'id="zooms"', "km²", 'data-goto="'):
        assert absent not in page
    assert page.count('class="panel"') == 3


def test_a_report_of_almost_nothing_still_renders() -> None:
    data = reports.report()
    page = render_report(
        replace(
            data,
            view=View(data.view.window, data.view.image_CHW, data.view.fill),
            zooms=(),
            class_pixels=None,
            accuracy=None,
            product_accuracy=None,
            difference=None,
            preliminary_history=(),
            history=(),
            agreement=None,
            provenance={},
            spec_text="",
        )
    )

    assert "No accuracy was measured" in text_of(page)


def test_text_from_outside_cannot_become_markup() -> None:
    evil = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'
    data = reports.promoted()
    legend = Legend(
        name="evil",
        classes=tuple(
            LandClass(code=c.code, name=evil if c.code == 1 else c.name, color=c.color)
            for c in SEVEN.classes
        ),
    )
    page = render_report(
        replace(
            data,
            title=evil,
            notes=(evil,),
            legend=legend,
            provenance={evil: [{evil: evil}]},
            spec_text=evil,
            reference_title=evil,
        )
    )

    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "<img src=x" not in page
    assert html.escape(evil, quote=False)[:40] in page
    read(page)


def test_values_that_are_not_finite_leave_gaps_and_break_nothing() -> None:
    data = reports.promoted()
    history = [{**row, "train_loss": float("nan")} for row in data.history]
    page = render_report(replace(data, history=history))

    assert "nan" not in "".join(re.findall(r"<svg.*?</svg>", page))


def test_panels_are_halved_until_they_fit_and_no_class_is_invented() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 60_000, (4, 300, 299), dtype=np.uint16)
    codes = rng.choice(np.array([0, 2, 5, 255], np.uint8), (300, 299))
    view = View(Window(0, 0, 300, 299), image, 65535, codes, codes, codes, codes // 3)
    renderer = Renderer.of(view, ("red", "green", "blue", "nir"), SEVEN, "Reference")
    smaller, panels = fit(renderer, view, 150_000)

    assert sum(panel.bytes for panel in panels) <= 150_000
    assert smaller.step in (2, 4)
    assert smaller.shape == (-(-300 // smaller.step), -(-299 // smaller.step))
    assert smaller.map_HW is not None
    assert set(np.unique(smaller.map_HW)) <= {0, 2, 5, 255}
    assert PANEL_BUDGET < 5_000_000


def test_arrays_of_another_place_are_refused() -> None:
    image = np.zeros((4, 10, 10), np.uint16)
    with pytest.raises(ValueError, match="map_HW has shape"):
        View(Window(0, 0, 10, 10), image, 65535, map_HW=np.zeros((10, 9), np.uint8))


def test_a_map_without_measurable_gain_is_called_that() -> None:
    data = reports.report()
    assert data.difference is not None
    figure = data.difference.difference.model_copy(update={"low": -0.01, "high": 0.02})
    difference = data.difference.model_copy(update={"difference": figure})
    said = verdict(
        reports.gate(passed=True), data.accuracy, None, difference, has_map=True
    ).sentence
    warned = " ".join(cautions(data.accuracy, difference, None, has_map=True))

    assert "not measurably different from the label product" in said
    assert "an interval that holds 0" in warned


def test_cautions_name_rare_and_weak_classes() -> None:
    accuracy = assess(
        Samples.from_matrix(ConfusionMatrix(np.array(DONG_MAP_3M), SEVEN.codes)),
        SEVEN,
        map_name="3-m map",
        reference_name="1940 points",
        kind="points",
        resamples=100,
    )
    confidence = np.array([[10, 20, 90, 255]], np.uint8)
    found = cautions(accuracy, None, confidence, has_map=True)

    assert "Too few reference samples to say much about snow/ice (10)." in found
    assert "More than half is missed of snow/ice (30 % found)." in found
    assert any("below 50 % on 66.7 % of the mapped pixels" in caution for caution in found)
    assert not any("More often wrong than right" in caution for caution in found)
