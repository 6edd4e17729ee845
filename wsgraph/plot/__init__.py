"""Figures for papers: readable in greyscale, safe for colour-blind readers, vector output by file name; pages of networks."""

from wsgraph.plot.barriers import barrier_curves
from wsgraph.plot.curves import bar_panel, cost_chart, curve_panels, robustness_curve, robustness_data
from wsgraph.plot.lineage import lineage_tree
from wsgraph.plot.networks import draw_graph
from wsgraph.plot.page import graph_page
from wsgraph.plot.styles import in_order_of_styles
from wsgraph.plot.zoos import picture_grid, prediction_scatter, zoo_map

__all__ = [
    "bar_panel",
    "barrier_curves",
    "cost_chart",
    "curve_panels",
    "draw_graph",
    "graph_page",
    "in_order_of_styles",
    "lineage_tree",
    "picture_grid",
    "prediction_scatter",
    "robustness_curve",
    "robustness_data",
    "zoo_map",
]
