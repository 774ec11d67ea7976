"""A real Triton on this machine, from the PyPI wheel: for development and tests.

Production runs NVIDIA's container with the same repository and the same ``config.pbtxt``
(docs/serving.md). The wheel (``nvidia-pytriton``) has the python backend only, so the onnxruntime
backend that the configuration names is the ``model.py`` beside this file. It is kept in a folder of
its own (``.triton``, or ``TERRAFINE_TRITON``; ``make triton``), since it does not fit numpy 2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from terrafine.errors import ServingError
from terrafine.storage import Storage

WHEEL_VARIABLE = "TERRAFINE_TRITON"
_BACKEND = Path(__file__).with_name("backends") / "onnxruntime" / "model.py"
_HOST = "127.0.0.1"


def wheel_folder() -> Path:
    """Where the wheel was installed; ServingError when it is not there."""
    default = Path(__file__).parents[2] / ".triton"
    folder = Path(os.environ.get(WHEEL_VARIABLE) or default)
    if not (folder / "pytriton" / "tritonserver" / "bin" / "tritonserver").is_file():
        raise ServingError(
            f"{folder}: no Triton here; install it with `make triton`, or set {WHEEL_VARIABLE} to "
            "the folder it was installed into with `pip install --no-deps --target`"
        )
    return folder.resolve()


def begin_repository(location: str) -> None:
    """Put a file into a folder that is not there or, in a bucket, holds nothing: Triton does not
    start over that."""
    repository = Storage.at(location)
    if not repository.names():
        repository.write(".keep", b"")


class TritonServer:
    """A Triton process over a model repository (a folder or ``s3://``), with ports of its own.

    Models are loaded on demand only (explicit control), those named in ``load`` at every start; a
    model that cannot be loaded does not end or unready the server. ``options``: further
    command-line flags. ``folder``: for its log and its backends; default: a temporary one, removed
    at the end. ``ports``: of HTTP, gRPC and metrics; default: free ones. Used as a context manager;
    ServingError when it does not start.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        load: Sequence[str] = (),
        options: Sequence[str] = (),
        folder: Path | None = None,
        ports: tuple[int, int, int] | None = None,
    ) -> None:
        self.repository = Storage.at(repository).location
        self._load = load
        self._options = options
        self._wheel = wheel_folder()
        self._given_folder = folder
        self.folder = folder or Path(tempfile.mkdtemp(prefix="terrafine-triton-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.shared_memory_prefix = f"terrafine-{uuid.uuid4().hex[:12]}-"
        self._http, self._grpc, self._metrics = ports or _free_ports(3)

    @property
    def grpc_url(self) -> str:
        """``grpc://host:port``, the same after a restart."""
        return f"grpc://{_HOST}:{self._grpc}"

    @property
    def http_url(self) -> str:
        """``http://host:port`` of the HTTP endpoint, which has the probes."""
        return f"http://{_HOST}:{self._http}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus reads."""
        return f"http://{_HOST}:{self._metrics}/metrics"

    @property
    def log(self) -> Path:
        """What the server and its backends wrote, over all restarts."""
        return self.folder / "triton.log"

    @property
    def pid(self) -> int:
        """Id of the server's process, which is also its process group's."""
        if self._process is None:
            raise ServingError(f"the Triton of {self.repository} is not running; start it first")
        return self._process.pid

    def start(self, *, seconds: float = 60) -> None:
        """Start and wait until it is live; ServingError with the end of its log otherwise."""
        self.folder.mkdir(parents=True, exist_ok=True)
        backends = self._backends()
        begin_repository(self.repository)
        with self.log.open("ab") as log:
            # a group of its own, so that no backend process outlives a server that was killed
            self._process = subprocess.Popen(
                self._command(backends),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + seconds
        while not self._live():
            code = self._process.poll()
            if code is not None or time.monotonic() > deadline:
                self.kill()
                happened = "ended" if code is not None else f"was not live after {seconds:.0f} s"
                raise ServingError(
                    f"Triton over {self.repository} {happened}; its log says: {self._last_words()}"
                )
            time.sleep(0.05)

    def stop(self, *, seconds: float = 15) -> None:
        """End it as Kubernetes would: a signal, some time, then the kill."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=seconds)
        self.kill()

    def kill(self) -> None:
        """Kill server and backends at once, and remove the shared memory they cannot."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        for region in Path("/dev/shm").glob(f"{self.shared_memory_prefix}*"):
            region.unlink(missing_ok=True)

    def restart(self, *, kill: bool = False) -> None:
        """Stop (or kill) and start again, on the same ports and over the same repository."""
        if kill:
            self.kill()
        else:
            self.stop()
        self.start()

    def ended(self, *, seconds: float) -> bool:
        """Whether the process has ended by itself within so many seconds."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=seconds)
        return self._process is None or self._process.poll() is not None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if self._given_folder is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _backends(self) -> Path:
        """The folder of backends: the wheel's python backend, and onnxruntime on top of it."""
        folder = self.folder / "backends"
        shutil.rmtree(folder, ignore_errors=True)
        triton = self._wheel / "pytriton" / "tritonserver"
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
        shutil.copytree(triton / "backends" / "python", folder / "python")
        shutil.copy(stub, folder / "python")
        (folder / "onnxruntime").mkdir()
        shutil.copy(_BACKEND, folder / "onnxruntime")
        return folder

    def _command(self, backends: Path) -> list[str]:
        return [
            str(self._wheel / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
            f"--model-repository={_as_triton_names_it(self.repository)}",
            f"--backend-directory={backends}",
            "--model-control-mode=explicit",
            "--strict-readiness=false",
            "--exit-on-error=false",
            "--exit-timeout-secs=5",
            f"--http-address={_HOST}",
            f"--http-port={self._http}",
            f"--grpc-address={_HOST}",
            f"--grpc-port={self._grpc}",
            f"--metrics-address={_HOST}",
            f"--metrics-port={self._metrics}",
            f"--backend-config=python,shm-region-prefix-name={self.shared_memory_prefix}",
            *(f"--load-model={name}" for name in self._load),
            *self._options,
        ]

    def _environment(self) -> dict[str, str]:
        """The stub finds this environment's packages by PATH and its libpython by LIBDIR."""
        libraries = [
            str(self._wheel / "nvidia_pytriton.libs"),
            str(sysconfig.get_config_var("LIBDIR")),
            os.environ.get("LD_LIBRARY_PATH", ""),
        ]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }

    def _live(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.http_url}/v2/health/live", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:]) or "nothing"


def _as_triton_names_it(repository: str) -> str:
    """Triton takes the address of an object store other than AWS inside the URL."""
    server = os.environ.get("AWS_ENDPOINT_URL")
    if server and repository.startswith("s3://"):
        return f"s3://{server}/{repository.removeprefix('s3://')}"
    return repository


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all are held until all are known, so that they differ."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((_HOST, 0))
        return [int(each.getsockname()[1]) for each in sockets]
