"""What the pictures have in common: size, colours, titles, axes in metres, and how a figure becomes a PNG file.

A picture is a Matplotlib figure of its own: no pyplot, no global state. The colours are those of Okabe and Ito (2008),
which differ for every kind of colour vision.
"""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

DPI = 100
COLOURS = 96
WIDTH_IN = 7.4

PALETTE = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
}
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = PALETTE.values()
GREY = "#8C8C8C"


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file: the same bytes for the same data and fonts.

    It has a palette of 96 colours, which makes the file a third as large as in full colour.
    """
    # Names are texts of users: a $ in them does not begin a formula.
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    # Maximum coverage keeps the colour of a thin line; the median cut would give it to the greys.
    image = image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def blank_figure(height_in: float) -> Figure:
    """A figure of the common width and this height, inches."""
    return Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")


def blank_axes(height_in: float) -> tuple[Figure, Axes]:
    """A figure of this height, inches, with one pair of axes."""
    figure = blank_figure(height_in)
    return figure, figure.subplots()


def set_title(axes: Axes, text: str, size: float = 11) -> None:
    """Puts a title above the axes; ``size`` is in points."""
    axes.set_title(text, fontsize=size)


def tidy(axes: Axes) -> None:
    """Removes the frame at the top and at the right, and sets the sizes of labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)


def say_empty(figure: Figure, axes: Axes, text: str) -> Figure:
    """Shows a text instead of data, and returns the figure."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    return figure


def counted(number: int, noun: str) -> str:
    """The number with its noun, as in 1 epoch or 1,200 epochs."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def metre_axis(axes: Axes, which: str) -> None:
    """Labels the ticks of a logarithmic axis, ``x`` or ``y``, in metres and kilometres instead of powers of ten."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    decades = np.log10(max(high, 1e-9) / max(low, 1e-9))
    axis.set_major_locator(LogLocator(subs=(1,) if decades > 5 else (1, 3) if decades > 2 else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: metres(x)))
    axis.set_minor_formatter(NullFormatter())


def metres(value_m: float) -> str:
    """A length with at most three digits: 8.3 m, 24 m, 1.5 km, 120 km."""
    value, unit = (value_m / 1e3, "km") if value_m >= 1e3 else (value_m, "m")
    return f"{value:.0f} {unit}" if value >= 10 or value == round(value) else f"{value:.1f} {unit}"
