import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork
from triangulation_pipeline.plots.style import png

LARGEST = 50 * 1024


def drawn(figure: Figure) -> str:
    """All words of a picture that is a PNG of the promised size."""
    content = png(figure)
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        assert 700 <= image.width <= 800
    assert len(content) < LARGEST
    words = [text.get_text() for text in figure.texts]
    if figure.get_suptitle():
        words.append(figure.get_suptitle())
    for axes in figure.axes:
        words += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *(text.get_text() for text in axes.texts)]
        words += axes.get_legend_handles_labels()[1]
    return "\n".join(words)


def curves(axes: Axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The points of each line that the legend names."""
    return {
        str(line.get_label()): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


def named(*names: str) -> ReceiverNetwork:
    """The default network with other names for its first sites."""
    sites = NORTH_WEST_ITALY.sites
    first = tuple(site.model_copy(update={"name": name}) for site, name in zip(sites, names, strict=False))
    return NORTH_WEST_ITALY.model_copy(update={"sites": first + sites[len(first) :]})
