"""How pictures look: size, colours that the colour-blind tell apart (Okabe and Ito), labels with units and n."""

from __future__ import annotations

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

mpl.use("Agg")

META, BASE, GREY = "#0072B2", "#D55E00", "#767676"
# For classes and other series, in this order; each with a marker and a line style of its own.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


def new_axes(width: float = 5.2, height: float = 4.0) -> tuple[Figure, Axes]:
    """A figure of one pair of axes; inches. No pyplot: nothing is kept that must be closed."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
