"""What lies where in a map store: one group per zone, three arrays, and what explains them.

Attributes follow CF (``grid_mapping``, ``flag_values``) and GDAL (``GeoTransform``), so that xarray
with rioxarray places the arrays without knowing terrafine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from pydantic import ValidationError
from pyproj import CRS
from zarr.codecs import ZstdCodec

from terrafine.errors import MapStoreError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import UNWRITTEN, Legend
from terrafine.mapping.plan import Plan

SCHEMA = "terrafine map store 1"
CHUNK = 512

# what reads where nothing was written; no class and no scene has these numbers
FILLS: Mapping[str, tuple[str, int]] = {
    "landcover": ("uint8", UNWRITTEN),
    "confidence": ("uint8", UNWRITTEN),
    "source": ("uint16", 65535),
}
# Class maps compress 14-35 to 1 at level 3; higher levels cost time and gain nothing.
_COMPRESSORS = (ZstdCodec(level=3),)


@dataclass(frozen=True)
class ZoneLayout:
    """One group: where its arrays lie and how they are cut."""

    zone: str
    grid: PixelGrid
    extent: Window
    shard: int

    @classmethod
    def of(cls, plan: Plan) -> ZoneLayout:
        """The group that a plan's shards are written into."""
        return cls(plan.zone, plan.grid, plan.extent, plan.shard)

    def shard_at(self, row: int, col: int) -> Window:
        """The shard of a place in the arrays' grid of shards."""
        size = self.shard
        return Window(self.extent.row + row * size, self.extent.col + col * size, size, size)


@dataclass(frozen=True)
class Layout:
    """The whole store: legend and zones."""

    legend: Legend
    zones: Mapping[str, ZoneLayout]

    @classmethod
    def of(cls, plans: Iterable[Plan], legend: Legend) -> Layout:
        """The store that holds these plans' maps."""
        return cls(legend, {plan.zone: ZoneLayout.of(plan) for plan in plans})

    def difference(self, plans: Iterable[Plan], legend: Legend) -> str | None:
        """Why the shards of these plans cannot be written here, or None.

        Zones without shards to write, and where scenes lie beyond them, count for nothing: another
        year has other scenes of the same ground.
        """
        if self.legend.digest != legend.digest:
            return f"legend {self.legend.name!r}, not {legend.name!r} as it is now"
        found = (self._misfit(plan) for plan in plans if plan.touched)
        return next((misfit for misfit in found if misfit), None)

    def _misfit(self, plan: Plan) -> str | None:
        here = self.zones.get(plan.zone)
        if here is None:
            return f"zones {', '.join(self.zones)}, not {plan.zone}"
        for what in ("grid", "shard"):
            if getattr(here, what) != getattr(plan, what):
                return f"zone {plan.zone}: {what} {getattr(here, what)}, not {getattr(plan, what)}"
        beyond = [shard for shard in plan.touched if shard.intersection(here.extent) != shard]
        if not beyond:
            return None
        extent, first = here.extent, beyond[0]
        return (
            f"zone {plan.zone}: rows {extent.row}..{extent.stop_row} and columns {extent.col}.."
            f"{extent.stop_col}, not {len(beyond)} shards beyond them, the first at row "
            f"{first.row}, column {first.col} (map.region leaves out what is not wanted)"
        )


def write_layout(store: Any, layout: Layout) -> None:
    """Make the groups and empty arrays in an empty Zarr store."""
    root = zarr.create_group(
        store, attributes={"schema": SCHEMA, "legend": layout.legend.model_dump(mode="json")}
    )
    for zone in layout.zones.values():
        group = root.create_group(zone.zone, attributes=_zone_attributes(zone))
        write_axes(group, zone.grid, zone.extent, suffix="")
        for name, (dtype, fill) in FILLS.items():
            group.create_array(
                name,
                shape=zone.extent.shape,
                shards=(zone.shard, zone.shard),
                chunks=(min(CHUNK, zone.shard),) * 2,
                dtype=dtype,
                fill_value=fill,
                compressors=_COMPRESSORS,
                dimension_names=("y", "x"),
                attributes={
                    "grid_mapping": "spatial_ref",
                    **_describe(name, layout.legend),
                },
            )


def open_overview(group: zarr.Group, zone: ZoneLayout, factor: int) -> zarr.Array[Any]:
    """``landcover_<factor>``, the zone's class map ``factor`` times coarser, made if absent.

    Its chunks are those of :data:`CHUNK` pixels, counted from the array's corner.
    """
    grid, window = overview_grid(zone, factor)
    suffix = f"_{factor}"
    stored = group.get(f"landcover{suffix}")
    if isinstance(stored, zarr.Array):
        return stored
    write_axes(group, grid, window, suffix=suffix)
    return group.create_array(
        f"landcover{suffix}",
        shape=window.shape,
        chunks=(min(CHUNK, window.height), min(CHUNK, window.width)),
        dtype="uint8",
        fill_value=UNWRITTEN,
        compressors=_COMPRESSORS,
        dimension_names=(f"y{suffix}", f"x{suffix}"),
        attributes={"grid_mapping": f"spatial_ref{suffix}", "factor": factor},
    )


def write_axes(group: zarr.Group, grid: PixelGrid, window: Window, *, suffix: str) -> None:
    """Write the pixel centres ``x``, ``y`` and the CF grid mapping ``spatial_ref``."""
    transform = grid.transform(window)
    centres = {
        "y": transform.f + transform.e * (np.arange(window.height) + 0.5),
        "x": transform.c + transform.a * (np.arange(window.width) + 0.5),
    }
    for axis, values in centres.items():
        array = group.create_array(
            axis + suffix,
            shape=values.shape,
            dtype="float64",
            dimension_names=(axis + suffix,),
            attributes={"standard_name": f"projection_{axis}_coordinate"},
            overwrite=True,
        )
        array[:] = values
    group.create_array(
        f"spatial_ref{suffix}",
        shape=(),
        dtype="int64",
        attributes={
            **CRS.from_user_input(grid.crs).to_cf(),
            "spatial_ref": CRS.from_user_input(grid.crs).to_wkt(),
            "GeoTransform": " ".join(repr(float(v)) for v in transform.to_gdal()),
        },
        overwrite=True,
    )


def overview_grid(zone: ZoneLayout, factor: int) -> tuple[PixelGrid, Window]:
    """Grid and window of a zone's overview; whole, because shards are powers of two."""
    grid, extent = zone.grid, zone.extent
    if factor < 1 or zone.shard % factor:
        raise MapStoreError(
            f"zone {zone.zone}: no overview by {factor}; it must divide the shard of {zone.shard}"
        )
    return (
        PixelGrid(grid.crs, grid.dx * factor, grid.dy * factor, grid.x0, grid.y0),
        Window(
            extent.row // factor,
            extent.col // factor,
            extent.height // factor,
            extent.width // factor,
        ),
    )


def write_json(root: zarr.Group, name: str, value: Any) -> None:
    """Keep something long beside the zones: attributes are written anew with every commit."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    root.create_array(
        name, data=text, chunks=text.shape, compressors=_COMPRESSORS, overwrite=True,
        attributes={"long_name": "JSON, in UTF-8"},
    )  # fmt: skip


def read_json(root: zarr.Group, name: str) -> Any:
    """What :func:`write_json` has kept, or what an older store has among its attributes; None
    where neither has it."""
    array = root.get(name)
    if not isinstance(array, zarr.Array):
        attributes: Any = root.attrs.asdict()
        return (attributes.get("run", {}) | attributes).get(name)
    return json.loads(np.asarray(array[:]).tobytes())


def read_layout(root: zarr.Group, *, where: str) -> Layout:
    """The layout of an open store; MapStoreError when it is of another schema or damaged."""
    if root.attrs.get("schema") != SCHEMA:
        raise MapStoreError(
            f"{where}: schema {root.attrs.get('schema')!r} is not {SCHEMA!r}; it was not made by "
            "this version of terrafine; map into a new folder"
        )
    try:
        legend = Legend.model_validate(root.attrs["legend"])
        # zarr names groups in no fixed order
        groups = sorted(root.groups())
        zones = {name: _zone_of(name, group.attrs.asdict()) for name, group in groups}
    except (KeyError, TypeError, ValidationError) as error:
        raise MapStoreError(
            f"{where}: the store's description is damaged ({error!r}); map into a new folder"
        ) from error
    return Layout(legend, zones)


def _zone_attributes(zone: ZoneLayout) -> dict[str, Any]:
    grid, extent = zone.grid, zone.extent
    return {
        "crs": grid.crs,
        "GeoTransform": list(grid.transform(extent).to_gdal()),
        "grid": {"dx": grid.dx, "dy": grid.dy, "x0": grid.x0, "y0": grid.y0},
        "row_offset": extent.row,
        "col_offset": extent.col,
        "height": extent.height,
        "width": extent.width,
        "shard": zone.shard,
    }


def _zone_of(name: str, attributes: Mapping[str, Any]) -> ZoneLayout:
    return ZoneLayout(
        zone=name,
        grid=PixelGrid(crs=attributes["crs"], **attributes["grid"]),
        extent=Window(
            attributes["row_offset"],
            attributes["col_offset"],
            attributes["height"],
            attributes["width"],
        ),
        shard=attributes["shard"],
    )


def _describe(array: str, legend: Legend) -> dict[str, Any]:
    if array == "landcover":
        return {
            "long_name": f"land cover, legend {legend.name}",
            "flag_values": [0, *legend.codes],
            "flag_meanings": " ".join(["no_class", *(n.replace(" ", "_") for n in legend.names)]),
            "flag_colors": " ".join(["#000000", *(c.color for c in legend.classes)]),
        }
    if array == "confidence":
        return {"long_name": "the model's probability of the class", "units": "percent"}
    return {"long_name": "scene, 1-based number in the run's list of scenes, 0 for none"}
