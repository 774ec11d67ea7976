"""What people get to see: overviews, the report, the quick look, the STAC item."""

from terrafine.publish.figures import paint_points
from terrafine.publish.overviews import (
    mode_downsample,
    overview_factors,
    overview_shape,
)
from terrafine.publish.panels import View, ZoomView, cut_zooms
from terrafine.publish.quicklook import quicklook
from terrafine.publish.report import ReportData, render_report
from terrafine.publish.stac import item
from terrafine.publish.write_overviews import write_overviews
from terrafine.publish.zooms import Zoom, most_different

__all__ = [
    "ReportData",
    "View",
    "Zoom",
    "ZoomView",
    "cut_zooms",
    "item",
    "mode_downsample",
    "most_different",
    "overview_factors",
    "overview_shape",
    "paint_points",
    "quicklook",
    "render_report",
    "write_overviews",
]
