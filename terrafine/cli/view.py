"""``terrafine view``: a map store in the browser."""

from __future__ import annotations

import errno
import socket
import warnings
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from terrafine.cli.options import DataOption
from terrafine.errors import TerrafineError
from terrafine.mapping import open_map
from terrafine.spec import data_root, load_spec

if TYPE_CHECKING:
    from terrafine.view import Atlas


def view(
    store: Annotated[
        str,
        typer.Argument(
            metavar="STORE", help="folder or s3:// URL of the map store, e.g. RUN/map.icechunk"
        ),
    ],
    spec: Annotated[
        Path | None, typer.Option(help="spec of the map: adds its imagery and its coarse product")
    ] = None,
    data: DataOption = None,
    name: Annotated[
        str | None,
        typer.Option("--map", help="release or run to show first; default: the current release"),
    ] = None,
    host: Annotated[
        str, typer.Option(help="address to listen on; 0.0.0.0 shows the map to the whole network")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8765,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="start a web browser")] = True,
) -> None:
    """Look at a map store in the browser, also while it is being mapped.

    The map with its legend, confidence and, with `--spec`, imagery and coarse product, side by
    side or blended; a click says why a pixel is what it is. Nothing is loaded from the internet,
    and nothing can be changed. Ctrl-C ends it.

    Example: `terrafine view runs/zion/map.icechunk --spec examples/zion.yaml`
    """
    from aiohttp import web  # slow to import, and no other command needs it

    from terrafine.view import make_site

    # rasterio hides it itself, but not from several threads
    warnings.filterwarnings("ignore", "Dataset has no geotransform")
    atlas = _atlas(store, spec, data, name)
    with _listening(host, port) as listener:
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        url = f"http://{f'[{shown}]' if ':' in shown else shown}:{listener.getsockname()[1]}/"
        typer.echo(f"{store} is shown at {url} until Ctrl-C")
        if browser:
            webbrowser.open(url)
        web.run_app(
            make_site(atlas, host=host),
            sock=listener,
            print=None,
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=1,
        )


def _atlas(store: str, spec: Path | None, data: Path | None, name: str | None) -> Atlas:
    from terrafine.view import Atlas, Imagery, Product

    reader = open_map(store if "://" in store else Path(store))
    if spec is None:
        return Atlas(reader, start=name)
    loaded, root = load_spec(spec), data_root(spec, data)
    return Atlas(
        reader,
        imagery=Imagery.of(loaded, root),
        product=Product.of(loaded, root),
        start=name,
    )


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise TerrafineError(
            f"port {port} on {host}: {'already in use' if taken else error.strerror or error}; "
            "give another with --port (0: any that is free) or --host"
        ) from error
