"""Scenes, label products, points and GeoTIFFs: the only room that imports rasterio."""

from terrafine.raster.aggregate import majority
from terrafine.raster.geotiff import write_geotiff
from terrafine.raster.labels import ClassRaster, check_overlap, open_class_raster
from terrafine.raster.mosaic import Mosaic, open_mosaics
from terrafine.raster.points import Points, is_vector, read_points
from terrafine.raster.scene import Scene, UInt16Array, open_scene

__all__ = [
    "ClassRaster",
    "Mosaic",
    "Points",
    "Scene",
    "UInt16Array",
    "check_overlap",
    "is_vector",
    "majority",
    "open_class_raster",
    "open_mosaics",
    "open_scene",
    "read_points",
    "write_geotiff",
]
