"""A network between a client and a server that a test can disturb."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

_CHUNK = 65536


@dataclass
class Network:
    """TCP to ``upstream`` (host:port), under the address ``address``.

    ``passed``: pieces that clients sent through it.
    """

    upstream: str
    address: str = ""
    passed: int = 0
    _delay: float = 0.0
    _stopped: bool = False
    _port: int = 0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _server: asyncio.Server | None = None
    _links: set[_Link] = field(default_factory=set)

    def drop(self) -> None:
        """End every connection in the middle of what it carries."""
        self._do(self._abort())

    def slow(self, seconds: float) -> None:
        """Hold back everything for so long."""
        self._delay = seconds

    def silence(self) -> None:
        """Let nothing through, and nobody know."""
        self._do(self._hold(stopped=True))

    def refuse(self) -> None:
        """Refuse connections, and end those there are."""
        self._do(self._close())

    def forget(self) -> None:
        """Carry nothing any more over the connections that there are; new ones are well."""
        self._do(self._lose())

    def restore(self) -> None:
        """Be well again; what was held back arrives."""
        self._delay = 0.0
        self._do(self._open())
        self._do(self._hold(stopped=False))

    def wait_for(self, pieces: int, seconds: float = 120.0) -> None:
        """Until so many more pieces have passed."""
        goal, deadline = self.passed + pieces, time.monotonic() + seconds
        while self.passed < goal:
            assert time.monotonic() < deadline, "nobody used the network"
            time.sleep(0.01)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _open(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._carry, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]
            self.address = f"127.0.0.1:{self._port}"

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._abort()

    async def _lose(self) -> None:
        for link in self._links:
            link.flows.clear()
            link.lost = True

    async def _abort(self) -> None:
        for link in self._links:
            link.near.transport.abort()
            link.far.transport.abort()

    async def _end(self) -> None:
        await self._close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _hold(self, *, stopped: bool) -> None:
        for link in self._links:
            if stopped:
                link.flows.clear()
            elif not link.lost:
                link.flows.set()
        self._stopped = stopped

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.upstream.rpartition(":")
        try:
            there_reader, there_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, there_writer)
        if not self._stopped:
            link.flows.set()
        self._links.add(link)
        with suppress(ConnectionError):
            await asyncio.gather(
                self._pump(reader, there_writer, link, counted=True),
                self._pump(there_reader, writer, link, counted=False),
            )
        self._links.discard(link)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        link: _Link,
        *,
        counted: bool,
    ) -> None:
        try:
            while data := await reader.read(_CHUNK):
                self.passed += counted
                if self._delay:
                    await asyncio.sleep(self._delay)
                await link.flows.wait()
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


@dataclass(eq=False)
class _Link:
    """One connection, and its other half."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    flows: asyncio.Event = field(default_factory=asyncio.Event)
    lost: bool = False


@contextmanager
def network(upstream: str) -> Iterator[Network]:
    """A network that is well at first."""
    made = Network(upstream)
    thread = threading.Thread(target=made._loop.run_forever, daemon=True)
    thread.start()
    made.restore()
    try:
        yield made
    finally:
        made._do(made._end())
        made._loop.call_soon_threadsafe(made._loop.stop)
        thread.join()
        made._loop.close()
