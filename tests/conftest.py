"""Fixtures that several rooms use."""

from __future__ import annotations

from pathlib import Path

import pytest

from terrafine.export import Release
from tests.exported import Exported, export_small_hrnet, small_release
from tests.scenes import Project, make_project
from tests.triton import releases as releases
from tests.triton import triton_server as triton_server

SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no worker is left alone with it in the end."""
    items.sort(key=_minutes, reverse=True)


def _minutes(item: pytest.Item) -> int:
    marked = item.get_closest_marker("minutes")
    return marked.args[0] if marked else 0


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A generated project of its own."""
    return make_project(tmp_path)


@pytest.fixture(scope="session")
def zion() -> Path:
    """The Zion scene of ../shared; the test is skipped where it is absent."""
    folder = SHARED / "data" / "zion_l8_nlcd2011"
    if not folder.is_dir():
        pytest.skip("../shared/data/zion_l8_nlcd2011 is not here: the Zion scene is not tested")
    return folder


@pytest.fixture(scope="session")
def exported_hrnet(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A small HRNet, exported once: tracing it takes as long as many other tests together."""
    return export_small_hrnet(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def champion_release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A released model that nobody trained, for the windows of a generated project."""
    return small_release(tmp_path_factory.mktemp("champion") / "release", window=96)
