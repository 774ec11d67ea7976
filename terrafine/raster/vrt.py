"""GDAL's virtual rasters: many class maps of one grid, opened as one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from terrafine.geometry import PixelGrid, Window
from terrafine.legend import Legend
from terrafine.raster.files import parse_crs

_TYPES = {"uint8": "Byte", "uint16": "UInt16"}


def write_vrt(
    path: Path,
    files: Mapping[Window, Path],
    grid: PixelGrid,
    window: Window,
    *,
    dtype: str,
    nodata: int,
    legend: Legend | None,
) -> None:
    """Write a VRT over ``window`` from the files that cover the windows ``files`` of one grid.

    The files have one band; they are named relative to the VRT, below whose folder they lie.
    """
    root = Element("VRTDataset", rasterXSize=str(window.width), rasterYSize=str(window.height))
    SubElement(root, "SRS").text = parse_crs(grid.crs, where=str(path)).to_wkt()
    transform = ", ".join(repr(float(v)) for v in grid.transform(window).to_gdal())
    SubElement(root, "GeoTransform").text = transform
    band = SubElement(root, "VRTRasterBand", dataType=_TYPES[dtype], band="1")
    SubElement(band, "NoDataValue").text = str(nodata)
    if legend is not None:
        _add_colors(band, legend)
    for place, file in files.items():
        source = SubElement(band, "SimpleSource")
        name = SubElement(source, "SourceFilename", relativeToVRT="1")
        name.text = file.relative_to(path.parent).as_posix()
        SubElement(source, "SourceBand").text = "1"
        # spares GDAL opening thousands of files to learn it
        SubElement(
            source, "SourceProperties", RasterXSize=str(place.width), RasterYSize=str(place.height),
            DataType=_TYPES[dtype],
        )  # fmt: skip
        rows, cols = place.slices(window)
        for tag, x, y in (("SrcRect", 0, 0), ("DstRect", cols.start, rows.start)):
            SubElement(
                source, tag, xOff=str(x), yOff=str(y),
                xSize=str(place.width), ySize=str(place.height),
            )  # fmt: skip
    ElementTree.indent(root)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(ElementTree.tostring(root, encoding="unicode"), encoding="utf-8")
    temporary.replace(path)


def _add_colors(band: Element, legend: Legend) -> None:
    SubElement(band, "ColorInterp").text = "Palette"
    table = SubElement(band, "ColorTable")
    for rgba in legend.color_table.tolist():
        SubElement(table, "Entry", {f"c{n}": str(value) for n, value in enumerate(rgba, 1)})
    names = dict(zip(legend.codes, legend.names, strict=True))
    categories = SubElement(band, "CategoryNames")
    for code in range(max(names) + 1):
        SubElement(categories, "Category").text = names.get(code, "")
