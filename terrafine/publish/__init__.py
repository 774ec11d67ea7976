"""What people get to see: overviews, the report, the quick look, the STAC item."""

from terrafine.publish.figures import paint_points
from terrafine.publish.overviews import (
    OverviewTile,
    mode_downsample,
    overview_factors,
    overview_pyramid,
    overview_shape,
)
from terrafine.publish.panels import View, ZoomView, cut_zooms
from terrafine.publish.quicklook import quicklook
from terrafine.publish.report import ReportData, render_report
from terrafine.publish.stac import item
from terrafine.publish.zooms import Zoom, most_different

__all__ = [
    "OverviewTile",
    "ReportData",
    "View",
    "Zoom",
    "ZoomView",
    "cut_zooms",
    "item",
    "mode_downsample",
    "most_different",
    "overview_factors",
    "overview_pyramid",
    "overview_shape",
    "paint_points",
    "quicklook",
    "render_report",
]
