"""`terrafine view` as a person meets it: in a real browser, over a real server."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image
from pyproj import Transformer
from typer.testing import CliRunner

from terrafine.cli.main import app
from terrafine.errors import TerrafineError
from terrafine.geometry import Window
from terrafine.legend import SEVEN
from terrafine.mapping import MapReader
from terrafine.publish.figures import confidence_palette
from terrafine.view import Atlas
from terrafine.view.site import LEAFLET, WEB
from tests.browser import Page, chromium, find_chromium
from tests.map_stores import ZONES, release_maps, write_run
from tests.viewer import LATITUDE, LONGITUDE, atlas_of, served, two_zones

COLOURS = {item.code: item.rgb for item in SEVEN.classes}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two") / "map.icechunk"
    release_maps(path, "one", two_zones())
    return path


@pytest.fixture(scope="module")
def site(store: Path) -> Iterator[str]:
    with served(atlas_of(store)) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = find_chromium()
    if program is None:
        pytest.skip("no chromium or chrome on this machine: the viewer's page is not run")
    with chromium(program, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page, site: str) -> Iterator[Page]:
    """The released map, near enough to tell pixels apart; it must load nothing from elsewhere."""
    browser.open(f"{site}#at=17/{LATITUDE}/{LONGITUDE}", width=1200, height=800)
    quiet(browser)
    yield browser
    assert browser.complaints == []
    strangers = [url for url in browser.requests if not url.startswith((site, "data:", "about:"))]
    assert strangers == []


def quiet(page: Page) -> None:
    """Wait until every tile in view is drawn."""
    page.wait("Object.values(view.tiles).every((tiles) => !tiles.isLoading())")
    page.wait("[...document.images].every((image) => image.complete)")
    page.settle()


def places() -> list[tuple[float, float, int, int]]:
    """Longitude, latitude, code and confidence in the middle of 3 x 3 pixels of one class, in the
    zone that is seen where both have one."""
    found = []
    first, second = two_zones().items()
    for zone, (window, codes_HW) in (first, second):
        to = Transformer.from_crs(ZONES[zone].crs, "EPSG:4326", always_xy=True)
        for row in range(2, 126, 9):
            for col in range(2, 126, 9):
                code = int(codes_HW[row, col])
                if code == 0 or (codes_HW[row - 1 : row + 2, col - 1 : col + 2] != code).any():
                    continue
                a = ZONES[zone].transform(window) @ (col + 0.5, row + 0.5)
                lon, lat = to.transform(*a)
                if zone == first[0] or not covered(first[0], first[1][0], lon, lat):
                    found.append((lon, lat, code, code + 50))
    return found


def covered(zone: str, window: Window, lon: float, lat: float) -> bool:
    x, y = Transformer.from_crs("EPSG:4326", ZONES[zone].crs, always_xy=True).transform(lon, lat)
    row, col = ZONES[zone].pixel_of(x, y)
    return bool(
        window.row - 1 <= row <= window.stop_row and window.col - 1 <= col <= window.stop_col
    )


def on_screen(page: Page, lon: float, lat: float) -> tuple[float, float]:
    at = page.run(
        f"(() => {{ const p = view.map.latLngToContainerPoint([{lat}, {lon}]);"
        " return [p.x, p.y]; })()"
    )
    return float(at[0]), float(at[1])


def picture(page: Page, tmp_path: Path) -> np.ndarray:
    page.screenshot(tmp_path / "page.png")
    return np.asarray(Image.open(io.BytesIO((tmp_path / "page.png").read_bytes())).convert("RGB"))


def in_view(page: Page) -> list[tuple[float, float, int, int]]:
    """x and y on the screen, code and confidence of every place that no card covers."""
    found = [(*on_screen(page, lon, lat), code, sure) for lon, lat, code, sure in places()]
    found = [place for place in found if 300 < place[0] < 940 and 20 < place[1] < 730]
    assert len(found) > 40, "the map is not in view"
    return found


def seen(page: Page, shot: np.ndarray) -> list[tuple[float, tuple[int, ...], int, int]]:
    """x on the screen, colour there, code and confidence of every place that no card covers."""
    return [
        (x, tuple(int(v) for v in shot[int(y), int(x)]), code, sure)
        for x, y, code, sure in in_view(page)
    ]


def click(page: Page, x: float, y: float) -> None:
    page.mouse("mouseMoved", x, y)
    page.mouse("mousePressed", x, y, button="left", clickCount=1)
    page.mouse("mouseReleased", x, y, button="left", clickCount=1)


def press(page: Page, group: str, layer: str) -> None:
    page.run(f"document.querySelector('#{group} [data-layer=\"{layer}\"]').click()")
    quiet(page)


def test_the_map_is_in_the_legends_colours_where_its_pixels_lie(page: Page, tmp_path: Path) -> None:
    for _, colour, code, _ in seen(page, picture(page, tmp_path)):
        assert colour == COLOURS[code]
    names = page.run("[...document.querySelectorAll('#legend button')].map((b) => b.textContent)")
    assert names == list(SEVEN.names)


def test_a_click_tells_class_confidence_scene_and_model(page: Page) -> None:
    for number in (0, 17, 34):
        # the map moves to make room for the answer
        page.run(f"view.map.setView([{LATITUDE}, {LONGITUDE}], 17, {{ animate: false }}), 1")
        x, y, code, sure = in_view(page)[number]
        click(page, x, y)
        page.wait("document.querySelector('.pixel') !== null")
        told = page.run("document.querySelector('.pixel').innerText")
        assert SEVEN.names[SEVEN.codes.index(code)] in told
        for part in (f"{sure} %", "north", "m" * 12, "one", "run-"):
            assert part in told, told
        page.run("forget()")


def test_swipe_shows_one_layer_on_each_side_of_the_handle(page: Page, tmp_path: Path) -> None:
    press(page, "left", "confidence")
    ramp = confidence_palette()[:, :3]

    def check(handle: float) -> None:
        sides = {"left": 0, "right": 0}
        for x, colour, code, sure in seen(page, picture(page, tmp_path)):
            if abs(x - handle) < 30:
                continue
            side = "left" if x < handle else "right"
            assert colour == (tuple(ramp[sure]) if side == "left" else COLOURS[code]), side
            sides[side] += 1
        assert all(sides.values()), sides

    check(600)
    held = {"button": "left", "buttons": 1}
    page.mouse("mouseMoved", 600, 300)
    page.mouse("mousePressed", 600, 300, clickCount=1, **held)
    page.mouse("mouseMoved", 720, 310, **held)
    page.mouse("mouseReleased", 720, 310, **held)
    check(720)
    assert page.run("document.querySelector('.pixel')") is None, "the handle's press asked a pixel"
    page.run("document.getElementById('swipe').focus()")
    page.key("ArrowLeft")
    check(720 - 24)
    assert "swipe=0.58" in page.run("location.hash"), "the address does not hold what is shown"


def test_a_class_can_be_seen_alone_and_the_map_be_made_transparent(
    page: Page, tmp_path: Path
) -> None:
    page.run("document.querySelector('[data-code=\"2\"]').click()")
    page.settle()
    quiet(page)
    for _, colour, code, _ in seen(page, picture(page, tmp_path)):
        assert (colour == COLOURS[code]) is (code == 2)
    page.run("document.querySelector('[data-code=\"2\"]').click()")
    page.run(
        "(() => { const o = document.getElementById('opacity'); o.value = 0;"
        " o.dispatchEvent(new Event('input')); })()"
    )
    quiet(page)
    found = seen(page, picture(page, tmp_path))
    assert not any(colour == COLOURS[code] for _, colour, code, _ in found)


def test_a_running_map_grows_while_it_is_looked_at(browser: Page, tmp_path: Path) -> None:
    maps = two_zones()
    half = {zone: (window, codes_HW.copy()) for zone, (window, codes_HW) in maps.items()}
    for _, codes_HW in half.values():
        codes_HW[64:] = 255
    _, run = write_run(tmp_path / "m", "one", half)
    with served(atlas_of(tmp_path / "m")) as url:
        browser.open(f"{url}#at=17/{LATITUDE}/{LONGITUDE}", width=1200, height=800)
        quiet(browser)
        before = seen(browser, picture(browser, tmp_path))
        assert 0.2 < np.mean([colour == COLOURS[code] for _, colour, code, _ in before]) < 0.8
        assert browser.run("document.getElementById('state').value") == run
        browser.run("news()")
        write_run(tmp_path / "m", "one", maps)
        browser.run("news()")
        browser.wait("document.body.dataset.done === '8'")
        quiet(browser)
        browser.wait("!view.pixel")
        for _, colour, code, _ in seen(browser, picture(browser, tmp_path)):
            assert colour == COLOURS[code]
        assert browser.complaints == []


def get(site: str, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    """Status and body of a request whose path is sent as it is."""
    connection = http.client.HTTPConnection(urlsplit(site).netloc, timeout=20)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_only_the_map_is_served_and_nothing_can_be_written(site: str, store: Path) -> None:
    assert get(site, "/")[0] == 200
    for path in (
        *("/web/../site.py", "/web/..%2fsite.py", "/leaflet/../../../__init__.py"),
        *("/web/", "/etc/passwd", "/tiles/map/3/9/0?at=main", "/tiles/secret/0/0/0?at=main"),
        *("/tiles/map/99/0/0?at=main", "/tiles/map/0/0/0?at=nobody", "/api/state?ref=nobody"),
    ):
        assert get(site, path)[0] in (403, 404), path
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert get(site, "/api/state", method)[0] == 405
    assert get(site, "/api/pixel?at=main&lon=north&lat=1")[0] == 400
    assert get(site, "/", Host="evil.example")[0] == 403
    _, body = get(site, "/api/state?ref=nobody")
    assert "releases: one" in json.loads(body)["error"]
    with urlopen(site) as answer:
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_the_page_takes_leaflet_as_it_was_released() -> None:
    html = (WEB / "index.html").read_text()
    stated = re.findall(r'"leaflet/([a-z.]+)" integrity="sha256-([^"]+)"', html)

    assert {name for name, _ in stated} == {"leaflet.js", "leaflet.css"}
    for name, digest in stated:
        found = hashlib.sha256((LEAFLET / name).read_bytes()).digest()
        assert base64.b64encode(found).decode() == digest, "another release of Leaflet: look at it"
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"']?(https?:)?//", html)


def test_the_command_serves_until_ctrl_c(store: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "from terrafine.cli.main import main; main()", "view", str(store),
         "--port", "0", "--no-open"],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert url, line
        with urlopen(f"{url[0]}api/store") as answer:
            assert json.load(answer)["layers"] == ["map", "confidence"]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_what_cannot_be_shown_is_said_in_one_sentence(store: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["view", str(store), "--no-open", "--port", port])
    assert isinstance(result.exception, TerrafineError)
    assert f"port {port} on 127.0.0.1: already in use; give another" in str(result.exception)
    result = CliRunner().invoke(app, ["view", str(tmp_path), "--no-open"])
    assert "no map store here" in str(result.exception)
    with pytest.raises(TerrafineError, match="no release, run or snapshot 'two'"):
        Atlas(MapReader(store), start="two")
