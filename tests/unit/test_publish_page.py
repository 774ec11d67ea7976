"""The report in a real browser: panels move together and name what lies under the pointer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from terrafine.legend import SEVEN
from terrafine.publish.report import render_report
from tests import reports
from tests.browser import Page, chromium, find_chromium

VALUES = "[...document.querySelectorAll('.panel .value')].map((e) => e.textContent)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = find_chromium()
    if program is None:
        pytest.skip("no chromium or chrome on this machine: the report's script is not run")
    with chromium(program, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page, tmp_path: Path) -> Page:
    """The promoted report, opened from a file, panels in view."""
    file = tmp_path / "report.html"
    file.write_text(render_report(reports.promoted()), encoding="utf-8")
    browser.open(file)
    browser.run("document.getElementById('panels').scrollIntoView({ behavior: 'instant' })")
    browser.run("new Promise((done) => setTimeout(done, 300))")  # a wheel right after is a scroll
    browser.settle()
    return browser


def place(page: Page, panel: str, row: float, col: float) -> tuple[float, float]:
    """Screen position of the middle of a pixel, with the whole scene shown."""
    left, top, width, height = page.run(
        f"(() => {{ const r = document.querySelector('#panel-{panel} canvas')"
        ".getBoundingClientRect(); return [r.left, r.top, r.width, r.height]; })()"
    )
    scale = min(width / 64, height / 48)
    return (
        left + width / 2 + (col + 0.5 - 32) * scale,
        top + height / 2 + (row + 0.5 - 24) * scale,
    )


def named(code: int) -> str:
    return SEVEN.names[SEVEN.codes.index(code)] if code in SEVEN.codes else "no class"


def coordinates(page: Page) -> str:
    return str(page.run("document.getElementById('coordinates').textContent"))


def test_script_runs_without_errors_and_loads_nothing(page: Page) -> None:
    state: dict[str, Any] = page.run("({ ...document.body.dataset })")

    assert state == {"ready": "1", "panels": "5"}
    assert (
        page.run(
            "performance.getEntriesByType('resource').map((e) => e.name)"
            ".filter((name) => !name.startsWith('data:'))"
        )
        == []
    )


def test_every_panel_names_what_lies_under_the_pointer(page: Page) -> None:
    seen = reports.view()
    assert seen.product_HW is not None
    assert seen.map_HW is not None
    assert seen.reference_HW is not None
    assert seen.confidence_HW is not None
    for row, col in ((0, 5), (10, 20), (23, 1), (30, 63), (47, 63), (40, 33)):
        page.mouse("mouseMoved", *place(page, "map", row, col))
        at = row, col
        mapped = int(seen.map_HW[at])
        sure = "none" if mapped in (0, 255) else f"{seen.confidence_HW[at]} %"
        assert page.run(VALUES) == [
            *("", named(int(seen.product_HW[at])), named(mapped)),
            *(named(int(seen.reference_HW[at])), sure),
        ]
        assert f"row {row}, column {col}" in coordinates(page)


def test_coordinates_are_those_of_the_grid(page: Page) -> None:
    page.mouse("mouseMoved", *place(page, "product", 12, 34))
    x, y = (float(word) for word in coordinates(page).split()[1:4:2])
    left, _, _, top = reports.GRID.bounds(reports.WINDOW)

    assert x == pytest.approx(left + 34.5 * 30, abs=5)
    assert y == pytest.approx(top - 12.5 * 30, abs=5)
    assert "EPSG:32612" in coordinates(page)


def test_wheel_zooms_about_the_pointer_and_drag_moves_all_panels(page: Page) -> None:
    spot = place(page, "image", 20, 30)
    page.mouse("mouseMoved", *spot)
    page.mouse("mouseWheel", *spot, deltaX=0, deltaY=-500)
    assert "row 20, column 30" in coordinates(page)

    same = place(page, "reference", 20, 30)
    page.mouse("mouseMoved", *same)
    assert "row 20, column 30" in coordinates(page), "the panels do not show the same place"

    held = {"button": "left", "buttons": 1}
    page.mouse("mousePressed", *same, clickCount=1, **held)
    page.mouse("mouseMoved", same[0] + 60, same[1] + 30, **held)
    page.mouse("mouseReleased", same[0] + 60, same[1] + 30, **held)
    assert "row 20, column 30" in coordinates(page), "the pixel did not follow the pointer"
    page.mouse("mouseMoved", *spot)
    assert "row 20, column 30" not in coordinates(page)


def test_keyboard_moves_zooms_and_returns(page: Page) -> None:
    page.run("document.querySelector('#panel-map canvas').focus()")
    page.key("+")
    page.key("+")
    assert "row 24, column 32" in coordinates(page)
    page.key("ArrowRight")
    page.key("ArrowUp")
    row, column = (int(w.strip(",")) for w in coordinates(page).split()[-3::2])
    assert row < 24
    assert column > 32
    page.key("0")
    assert "row 24, column 32" in coordinates(page)


def test_a_class_can_be_seen_alone(page: Page) -> None:
    spot = place(page, "reference", 10, 20)
    color = (
        "(() => {{ const c = document.querySelector('#panel-reference canvas');"
        "const r = c.getBoundingClientRect();"
        "return [...c.getContext('2d').getImageData({} - r.left, {} - r.top, 1, 1).data]; }})()"
    ).format(*spot)
    seen = reports.view()
    assert seen.reference_HW is not None
    shown = int(seen.reference_HW[10, 20])
    other = next(code for code in SEVEN.codes if code != shown)

    assert page.run(color) == [*SEVEN.classes[SEVEN.codes.index(shown)].rgb, 255]
    page.run(f"document.querySelector('[data-code=\"{other}\"]').click()")
    page.settle()
    assert page.run(color)[3] < 60
    page.run(f"document.querySelector('[data-code=\"{other}\"]').click()")
    page.settle()
    assert page.run(color)[3] == 255


def test_a_refused_report_runs_too(browser: Page, tmp_path: Path) -> None:
    file = tmp_path / "refused.html"
    file.write_text(render_report(reports.refused()), encoding="utf-8")
    browser.open(file, width=800)

    assert browser.run("({ ...document.body.dataset })") == {"ready": "1", "panels": "3"}
    assert browser.run("document.documentElement.scrollWidth") <= 800
