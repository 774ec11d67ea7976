"""The report's pictures: the same place as image, product, map, reference and confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from terrafine.geometry import PixelGrid, Window
from terrafine.legend import Legend, UInt8Array
from terrafine.publish.figures import (
    FALSE_COLOUR,
    TRUE_COLOUR,
    Stretch,
    UInt16Array,
    class_palette,
    confidence_palette,
    data_uri,
    display_bands,
    hide_where_unmapped,
    palette_png,
    render_image,
    rgba_png,
    rgba_webp,
    stretch_of,
)
from terrafine.publish.geography import pixel_width_metres, unit_name
from terrafine.publish.overviews import mode_downsample
from terrafine.publish.zooms import Zoom

# A photograph of more pixels, or of more bytes, is not worth being lossless: WebP takes over, at
# the first quality that keeps it small.
_LARGEST_PNG_PIXELS, _LARGEST_PHOTO = 600_000, 1_000_000
_QUALITIES = (82, 65, 50)

Kind = Literal["image", "classes", "confidence"]


@dataclass(frozen=True, eq=False)
class View:
    """One place, seen in every way there is.

    All arrays cover ``window`` (global pixel numbers) at every ``step``-th pixel.
    ``image_CHW`` uint16 with missing pixels ``fill``; ``product_HW``, ``map_HW``,
    ``reference_HW`` uint8 codes or None; ``confidence_HW`` uint8 percent (255 never written) or
    None. ValueError when the shapes differ.
    """

    window: Window
    image_CHW: UInt16Array
    fill: int
    product_HW: UInt8Array | None = None
    map_HW: UInt8Array | None = None
    reference_HW: UInt8Array | None = None
    confidence_HW: UInt8Array | None = None
    step: int = 1

    def __post_init__(self) -> None:
        expected = tuple(-(-side // self.step) for side in self.window.shape)
        for name in ("image_CHW", "product_HW", "map_HW", "reference_HW", "confidence_HW"):
            array = getattr(self, name)
            if array is not None and array.shape[-2:] != expected:
                raise ValueError(
                    f"{name} has shape {array.shape}, but window {self.window} at step "
                    f"{self.step} needs {expected}"
                )

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the arrays."""
        height, width = self.image_CHW.shape[-2:]
        return int(height), int(width)

    def coarser(self) -> View:
        """Half the resolution: the commonest class, every second pixel of image and confidence."""

        def halved(codes_HW: UInt8Array | None) -> UInt8Array | None:
            return None if codes_HW is None else mode_downsample(codes_HW)

        confidence = self.confidence_HW
        return replace(
            self,
            image_CHW=self.image_CHW[:, ::2, ::2],
            product_HW=halved(self.product_HW),
            map_HW=halved(self.map_HW),
            reference_HW=halved(self.reference_HW),
            confidence_HW=None if confidence is None else confidence[::2, ::2],
            step=self.step * 2,
        )

    def cut(self, window: Window) -> View:
        """The part inside ``window`` (global pixel numbers); only at full resolution."""
        if self.step != 1:
            raise ValueError(f"a view at step {self.step} cannot be cut; read the window anew")
        inside = self.window.intersection(window)
        if inside is None:
            raise ValueError(f"{window} lies outside {self.window}")
        rows, cols = inside.slices(self.window)

        def part(codes_HW: UInt8Array | None) -> UInt8Array | None:
            return None if codes_HW is None else codes_HW[rows, cols]

        return View(
            window=inside,
            image_CHW=self.image_CHW[:, rows, cols],
            fill=self.fill,
            product_HW=part(self.product_HW),
            map_HW=part(self.map_HW),
            reference_HW=part(self.reference_HW),
            confidence_HW=part(self.confidence_HW),
        )


@dataclass(frozen=True)
class Layer:
    """One picture: its name, its text for those who cannot see it, and its data URI."""

    name: str
    alt: str
    uri: str


@dataclass(frozen=True)
class Panel:
    """One frame of the page; a panel of several layers gets a switch."""

    key: str
    title: str
    kind: Kind
    layers: tuple[Layer, ...]

    @property
    def bytes(self) -> int:
        """Size in the page."""
        return sum(len(layer.uri) for layer in self.layers)


@dataclass(frozen=True)
class Renderer:
    """Draws views of one map alike: one stretch per scene, one palette per legend."""

    legend: Legend
    bands: tuple[str, ...]
    stretches: tuple[tuple[str, tuple[int, int, int], Stretch], ...]
    reference_title: str = "Reference"

    @classmethod
    def of(
        cls, view: View, bands: tuple[str, ...], legend: Legend, reference_title: str
    ) -> Renderer:
        """With the stretch of ``view``'s valid pixels. Bands without names R, G, B: the first."""
        true = display_bands(bands, TRUE_COLOUR)
        false = display_bands(bands, FALSE_COLOUR)
        wanted = [("True colour", true), ("False colour (NIR)", false)]
        named = [(name, indexes) for name, indexes in wanted if indexes is not None]
        if not named:
            first = [min(index, len(bands) - 1) for index in range(3)]
            shown = ", ".join(dict.fromkeys(bands[index] for index in first))
            named = [(f"Bands {shown}", (first[0], first[1], first[2]))]
        return cls(
            legend=legend,
            bands=bands,
            stretches=tuple(
                (name, indexes, stretch_of(view.image_CHW, view.fill, indexes))
                for name, indexes in named
            ),
            reference_title=reference_title,
        )

    def panels(self, view: View) -> list[Panel]:
        """A panel for everything that ``view`` has."""
        made = [self._image(view)]
        for key, title, codes_HW in (
            ("product", "Label product", view.product_HW),
            ("map", "Map", view.map_HW),
            ("reference", self.reference_title, view.reference_HW),
        ):
            if codes_HW is not None:
                uri = data_uri(palette_png(codes_HW, class_palette(self.legend)))
                alt = f"{title}: {_composition(codes_HW, self.legend)}"
                made.append(Panel(key, title, "classes", (Layer(title, alt, uri),)))
        if view.confidence_HW is not None:
            made.append(self._confidence(view, view.confidence_HW))
        return made

    def _image(self, view: View) -> Panel:
        layers = []
        for name, indexes, stretch in self.stretches:
            rgba = render_image(view.image_CHW, view.fill, indexes, stretch)
            layers.append(Layer(name, f"Image, {name}", data_uri(_photo(rgba))))
        return Panel("image", "Image", "image", tuple(layers))

    def _confidence(self, view: View, confidence_HW: UInt8Array) -> Panel:
        shown = confidence_HW
        if view.map_HW is not None:
            shown = hide_where_unmapped(confidence_HW, view.map_HW)
        known = shown[shown <= 100]
        middle = f"median {np.median(known):.0f} %" if known.size else "nowhere known"
        uri = data_uri(palette_png(shown, confidence_palette()))
        layer = Layer("Confidence", f"Confidence of the map: {middle}", uri)
        return Panel("confidence", "Confidence", "confidence", (layer,))


@dataclass(frozen=True, eq=False)
class ZoomView:
    """A zoom and what is seen there at full resolution."""

    zoom: Zoom
    view: View


def cut_zooms(view: View, zooms: Sequence[Zoom]) -> tuple[ZoomView, ...]:
    """The zooms of a view that is held at full resolution."""
    return tuple(ZoomView(zoom, view.cut(zoom.window)) for zoom in zooms)


def fit(renderer: Renderer, view: View, budget: int) -> tuple[View, list[Panel]]:
    """Panels of at most ``budget`` bytes in all: the view is halved until they fit."""
    made = renderer.panels(view)
    while sum(panel.bytes for panel in made) > budget and min(view.shape) > 64:
        view = view.coarser()
        made = renderer.panels(view)
    return view, made


def script_data(
    renderer: Renderer, view: View, panels: Sequence[Panel], zooms: Sequence[Zoom], grid: PixelGrid
) -> dict[str, Any]:
    """What the page's script needs: sizes, georeference, palettes and the zooms' frames."""
    height, width = view.shape
    transform = grid.transform(view.window)
    return {
        "width": width,
        "height": height,
        "step": view.step,
        "left": transform.c,
        "top": transform.f,
        "dx": grid.dx * view.step,
        "dy": grid.dy * view.step,
        "metres": pixel_width_metres(grid, view.window) * view.step,
        "crs": grid.crs[:24],
        "unit": unit_name(grid.crs),
        "panels": [{"key": p.key, "kind": p.kind} for p in panels],
        "classes": [
            {"code": c.code, "name": c.name, "rgb": _rgb(class_palette(renderer.legend), c.code)}
            for c in renderer.legend.classes
        ],
        "confidence": [_rgb(confidence_palette(), percent) for percent in range(101)],
        "zooms": [
            [
                (zoom.window.row - view.window.row) / view.step,
                (zoom.window.col - view.window.col) / view.step,
                zoom.window.height / view.step,
                zoom.window.width / view.step,
            ]
            for zoom in zooms
        ],
    }


def _photo(rgba_HW4: UInt8Array) -> bytes:
    """A photograph as PNG, or as WebP where that would be large."""
    if rgba_HW4.shape[0] * rgba_HW4.shape[1] <= _LARGEST_PNG_PIXELS:
        picture = rgba_png(rgba_HW4)
        if len(picture) <= _LARGEST_PHOTO:
            return picture
    for quality in _QUALITIES:
        picture = rgba_webp(rgba_HW4, quality)
        if len(picture) <= _LARGEST_PHOTO:
            break
    return picture


def _rgb(palette: UInt8Array, index: int) -> list[int]:
    return [int(value) for value in palette[index, :3]]


def _composition(codes_HW: UInt8Array, legend: Legend) -> str:
    """The three commonest classes, for the alternative text."""
    counts = np.bincount(codes_HW.ravel(), minlength=256)[list(legend.codes)]
    total = max(int(counts.sum()), 1)
    order = np.argsort(-counts, kind="stable")[:3]
    return ", ".join(f"{legend.names[k]} {counts[k] / total:.0%}" for k in order if counts[k])
