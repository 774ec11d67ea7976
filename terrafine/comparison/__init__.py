"""Comparisons: one spec in several variants, assessed on the same held-out samples."""

from terrafine.comparison.chart import chart_png, front_png
from terrafine.comparison.matrix import crossed, paper_matrix, search_axes
from terrafine.comparison.measure import Comparison, Row, measure
from terrafine.comparison.plan import Cell, Plan, read_plan
from terrafine.comparison.run import CellOutcome, Watch, run_cells, stages_done
from terrafine.comparison.speed import front, measure_speed, with_speed
from terrafine.comparison.tables import to_csv, to_markdown, to_rich

__all__ = [
    "Cell",
    "CellOutcome",
    "Comparison",
    "Plan",
    "Row",
    "Watch",
    "chart_png",
    "crossed",
    "front",
    "front_png",
    "measure",
    "measure_speed",
    "paper_matrix",
    "read_plan",
    "run_cells",
    "search_axes",
    "stages_done",
    "to_csv",
    "to_markdown",
    "to_rich",
    "with_speed",
]
