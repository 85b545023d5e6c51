import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from triangulation_pipeline.evaluation.comparison import Comparison
from triangulation_pipeline.evaluation.estimators import MODEL
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.plots.dataset import dataset_map
from triangulation_pipeline.plots.evaluation import error_cdf, error_map
from triangulation_pipeline.plots.style import png
from triangulation_pipeline.samples import Samples
from triangulation_pipeline_tests.plots.pictures import drawn, named


def test_a_picture_has_few_colours_and_keeps_those_of_its_lines(handmade: Comparison) -> None:
    figure = error_cdf(handmade)
    with Image.open(io.BytesIO(png(figure))) as image:
        assert image.mode == "P"
        shown = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0).astype(float)
    assert len(shown) <= 96
    for line in figure.axes[0].lines:
        wanted = 255 * np.array(to_rgb(line.get_color()))
        assert np.abs(shown - wanted).max(1).min() < 25


def test_same_data_same_bytes(handmade: Comparison) -> None:
    assert png(error_map(NORTH_WEST_ITALY, handmade)) == png(error_map(NORTH_WEST_ITALY, handmade))


def picture(figure: Figure) -> np.ndarray:
    with Image.open(io.BytesIO(png(figure))) as image:
        return np.asarray(image.convert("L"))


@pytest.mark.parametrize(
    ("decades", "steps"), [(1, {1, 2, 5}), (2, {1, 3}), (4, {1, 3}), (5, {1})], ids=lambda value: str(value)
)
def test_an_axis_of_more_decades_has_fewer_ticks_in_each(handmade: Comparison, decades: int, steps: set[int]) -> None:
    model_m = np.array([1.0, 1.0, 10.0**decades / 2, 10.0**decades / 2, 1.0])
    axes = error_cdf(replace(handmade, distance_m={MODEL: model_m})).axes[0]
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low < tick < high]
    assert {round(tick / 10 ** np.floor(np.log10(tick) + 1e-9)) for tick in ticks} == steps


HOSTILE = ("Ba$$in Hill", "A$B$C", r"$\frac{1}{2}$", "_x", r"$\nonsense{", "<b>a^2_3</b> %s {0}", "a\\b & c#d")


def test_names_are_shown_as_they_are_written(handmade: Comparison, default_batch: Samples) -> None:
    for figure in (error_map(named(*HOSTILE), handmade), dataset_map(named(*HOSTILE), default_batch)):
        words = drawn(figure)
        assert all(name in words for name in HOSTILE)
        assert not any(text.get_parse_math() for text in figure.findobj(Text))


def test_a_name_is_not_set_as_a_formula(handmade: Comparison) -> None:
    """A formula of the same letters has no dollar signs and other letters: the names' ink is the judge."""
    as_written, as_formula = (
        picture(error_map(named(name), handmade)).astype(int) for name in ("A$B$C", r"A$\mathit{B}$C")
    )
    without_dollars = picture(error_map(named("ABC"), handmade)).astype(int)
    assert np.count_nonzero(as_written != without_dollars) > 20
    assert np.count_nonzero(as_written != as_formula) > 20
