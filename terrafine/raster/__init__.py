"""Scenes, label products, points and GeoTIFFs: the only room that imports rasterio."""

from terrafine.raster.aggregate import majority
from terrafine.raster.bandfile import UInt16Array
from terrafine.raster.catalogue import catalogue_digest, catalogue_stamps
from terrafine.raster.geotiff import write_geotiff
from terrafine.raster.labels import ClassRaster, check_overlap, open_class_raster
from terrafine.raster.look import look_at, warp_nearest
from terrafine.raster.mosaic import Mosaic, open_mosaics, scene_names, unreadable_scenes
from terrafine.raster.points import Points, is_vector, read_points
from terrafine.raster.region import Region, lonlat_outlines
from terrafine.raster.regions import ELSEWHERE, Regions
from terrafine.raster.scene import ListedScene, Scene, open_scene
from terrafine.raster.vrt import write_vrt

__all__ = [
    "ELSEWHERE",
    "ClassRaster",
    "ListedScene",
    "Mosaic",
    "Points",
    "Region",
    "Regions",
    "Scene",
    "UInt16Array",
    "catalogue_digest",
    "catalogue_stamps",
    "check_overlap",
    "is_vector",
    "lonlat_outlines",
    "look_at",
    "majority",
    "open_class_raster",
    "open_mosaics",
    "open_scene",
    "read_points",
    "scene_names",
    "unreadable_scenes",
    "warp_nearest",
    "write_geotiff",
    "write_vrt",
]
