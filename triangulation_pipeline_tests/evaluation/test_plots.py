import importlib
import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image
from scipy.stats import chi2

from triangulation_pipeline.evaluation import plots
from triangulation_pipeline.evaluation.comparison import Comparison, Estimator, Subset
from triangulation_pipeline.evaluation.plots import (
    calibration_curve,
    dataset_histograms,
    dataset_map,
    error_cdf,
    error_map,
    png,
    training_curves,
)
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Site
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.simulator import simulate_chunk
from triangulation_pipeline.positions import chi_square_2
from triangulation_pipeline.samples import Samples
from triangulation_pipeline_tests.evaluation.conftest import cut, some_comparison

LARGEST = 50 * 1024


def history(epochs: int) -> list[dict[str, float | int | None]]:
    return [
        {
            "epoch": epoch,
            "train_loss": 6 + 1 / epoch,
            "val_loss": 6 + abs(epoch - 30) / 100,
            "train_rmse_m": 700 / epoch,
            "val_rmse_m": 300 / epoch,
            "val_rmse_good_geom_m": None if epoch == 2 else 100 / epoch,
            "val_distance_p50_m": 25.0,
            "learning_rate": 3e-3 / epoch,
        }
        for epoch in range(1, epochs + 1)
    ]


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


def test_error_cdf(by_time: Comparison, by_level: Comparison) -> None:
    words = drawn(error_cdf(by_time))
    rows = int(by_time.common_rows(Subset.good_geometry).sum())
    assert f"{rows:,} test rows with GDOP < 5" in words
    for label in ("model (", "Huber Gauss-Newton (", "likelihood, knows the truth (", "Cramér-Rao", "off scale"):
        assert label in words
    words = drawn(error_cdf(by_level, Subset.all))
    assert "posterior mean" in words
    assert "Gauss-Newton" not in words
    assert "Cramér-Rao" not in words


NAMES = {
    Estimator.model: "model",
    Estimator.mixture_ml_from_truth: "mixture likelihood, knows the truth",
    Estimator.mixture_ml: "mixture likelihood",
    Estimator.huber_gauss_newton: "Huber Gauss-Newton",
    Estimator.gauss_newton: "Gauss-Newton",
    Estimator.level_posterior_mean: "posterior mean, knows the site gains",
    Estimator.power_weighted_centroid: "power-weighted centroid",
}


def curves(axes: Axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The points of each line that the legend names."""
    return {
        str(line.get_label()): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


@pytest.mark.parametrize("subset", list(Subset))
def test_error_cdf_curves_are_the_distances(subset: Subset) -> None:
    comparison = some_comparison()
    axes = error_cdf(comparison, subset).axes[0]
    rows = comparison.common_rows(subset)
    assert 10 < rows.sum() < len(rows)
    found = {label.partition(" (")[0]: points for label, points in curves(axes).items()}
    assert found.keys() == {*NAMES.values(), "Gaussian Cramér-Rao bound"}
    for name, distance_m in comparison.distance_m.items():
        assert distance_m is not None
        x, y = found[NAMES[name]]
        np.testing.assert_allclose(x[1:], np.sort(distance_m[rows]))
        np.testing.assert_allclose(y, np.arange(rows.sum() + 1) / rows.sum())
        assert x[0] == x[1]
    assert (axes.get_xscale(), axes.get_ylim()) == ("log", (0, 1.01))


def test_error_cdf_names_the_median_and_the_95th_percentile(handmade: Comparison) -> None:
    """Of 10, 20 and 40 metres, and so on: the rows that all have a fix on."""
    axes = error_cdf(handmade).axes[0]
    assert curves(axes).keys() == {
        "model (20 m / 38 m)",
        "mixture likelihood, knows the truth (10 m / 19 m)",
        "Huber Gauss-Newton (40 m / 76 m)",
        "Gauss-Newton (50 m / 86 m)",
        "Gaussian Cramér-Rao bound",
    }
    assert axes.get_title() == "How far off each estimator is: 3 test rows with GDOP < 5"
    assert error_cdf(handmade, Subset.all).axes[0].get_title() == "How far off each estimator is: 4 test rows"
    # From a little below the least of the good ones to twice their largest.
    assert axes.get_xlim() == pytest.approx((0.8 * 5.1, 2 * 89.2), rel=1e-3)


def test_error_cdf_begins_at_half_a_metre_at_the_least(handmade: Comparison) -> None:
    for shrunk, least_m in ((10, 0.51), (1000, 0.5)):
        distance_m = {name: None if d is None else d / shrunk for name, d in handmade.distance_m.items()}
        low, _ = error_cdf(replace(handmade, distance_m=distance_m)).axes[0].get_xlim()
        assert low == pytest.approx(0.8 * least_m, rel=1e-3)


def test_error_cdf_shows_what_the_bound_leaves_possible(handmade: Comparison) -> None:
    """The share of circular Gaussian errors of the bound's rms that lie below a distance, over the rows."""
    axes = error_cdf(handmade).axes[0]
    x, y = curves(axes)["Gaussian Cramér-Rao bound"]
    assert (x[0], x[-1]) == pytest.approx(axes.get_xlim())
    bounds_m = [10.0, 20.0, 40.0]
    np.testing.assert_allclose(y, np.mean([1 - np.exp(-((x / bound) ** 2)) for bound in bounds_m], axis=0))
    np.testing.assert_allclose(np.diff(np.log(x)), np.log(x[-1] / x[0]) / 199)  # smooth on an axis of decades
    by_level = replace(handmade, ceiling=Estimator.level_posterior_mean)
    assert "Gaussian Cramér-Rao bound" not in curves(error_cdf(by_level).axes[0])
    unbound = replace(handmade, crlb_m=np.full(5, np.nan))
    assert "Gaussian Cramér-Rao bound" not in curves(error_cdf(unbound).axes[0])


@pytest.mark.parametrize("subset", list(Subset))
def test_calibration_curve(subset: Subset) -> None:
    comparison = some_comparison()
    figure = calibration_curve(comparison, subset)
    assert ("GDOP < 4.5" in drawn(figure)) == (subset is Subset.good_geometry)
    whole, difference = figure.axes
    nees = comparison.nees[comparison.rows(subset)]
    assert f"{len(nees)} test rows" in figure.get_suptitle()
    nominal, observed = curves(whole)["model"]
    np.testing.assert_allclose(nominal, np.arange(100) / 100)
    # A row without an ellipse lies outside of every one.
    np.testing.assert_allclose(observed, [np.mean(nees <= chi2(2).ppf(share)) for share in nominal])
    np.testing.assert_array_equal(curves(whole)["perfect"], ([0, 1], [0, 1]))
    line, dot = difference.lines[1:]
    np.testing.assert_allclose(line.get_xdata(), nominal)
    np.testing.assert_allclose(line.get_ydata(), 100 * (observed - nominal))
    np.testing.assert_allclose((dot.get_xdata(), dot.get_ydata()), [[0.95], [100 * (observed[95] - 0.95)]])
    assert f"covers {100 * np.mean(nees <= 5.991464547):.1f} %" in difference.get_title()


def test_an_error_on_the_ellipse_lies_inside(handmade: Comparison) -> None:
    """As coverage counts it."""
    at_half = replace(handmade, nees=np.full(5, chi_square_2(0.5)))
    _, observed = curves(calibration_curve(at_half).axes[0])["model"]
    assert observed.tolist() == [0.0] * 50 + [1.0] * 50


def test_the_band_of_the_calibration_is_that_of_chance(handmade: Comparison) -> None:
    """Of four rows: at 50 %, 1.96 standard errors of a quarter each."""
    whole, difference = (axes.collections[0].get_paths()[0].vertices for axes in calibration_curve(handmade).axes)
    at_half = difference[np.isclose(difference[:, 0], 0.5), 1]
    assert sorted(at_half) == pytest.approx([-49, 49])
    assert sorted(whole[np.isclose(whole[:, 0], 0.5), 1]) == pytest.approx([0.01, 0.99])
    assert (whole[:, 1].min(), whole[:, 1].max()) == (0, 1)


def test_maps(by_time: Comparison, default_batch: Samples, rss_batch: Samples) -> None:
    words = drawn(error_map(NORTH_WEST_ITALY, by_time))
    assert all(site.name in words for site in NORTH_WEST_ITALY.sites)
    assert f"{len(by_time.nees):,} test transmitters" in words
    assert "4,000 of 4,096 transmitters" in drawn(dataset_map(NORTH_WEST_ITALY, default_batch))
    assert "east, km" in drawn(dataset_map(NORTH_WEST_ITALY, rss_batch))


def points(figure: Figure, marker: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the squares (values), crosses (none) or triangles (sites) of a map stand, km, and their values."""
    squares, crosses, sites = None, None, None
    for found in figure.axes[0].collections:
        if isinstance(found, PathCollection):
            if found.get_array() is not None:
                squares = found
            elif found.get_label() == "receiver":
                sites = found
            else:
                crosses = found
    chosen = {"squares": squares, "crosses": crosses, "sites": sites}[marker]
    assert chosen is not None
    return np.asarray(chosen.get_offsets()), np.asarray(chosen.get_array())


def test_a_map_shows_each_error_where_its_transmitter_stands() -> None:
    comparison = some_comparison()
    figure = error_map(NORTH_WEST_ITALY, comparison)
    error_m = comparison.distance_m[Estimator.model]
    assert error_m is not None
    located = np.isfinite(error_m)
    assert 0 < located.sum() < 60
    # The worst are drawn last, over the others.
    order = np.argsort(error_m[located])
    places_km, values_m = points(figure, "squares")
    np.testing.assert_allclose(places_km, comparison.truth_en_m[located][order] / 1e3)
    np.testing.assert_allclose(values_m, error_m[located][order])
    np.testing.assert_allclose(points(figure, "crosses")[0], comparison.truth_en_m[~located] / 1e3)
    np.testing.assert_allclose(points(figure, "sites")[0], NORTH_WEST_ITALY.site_enu_m[:, :2] / 1e3)
    assert figure.axes[0].get_aspect() == 1.0
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("east, km", "north, km")
    assert figure.axes[0].get_title() == "Where the model errs: 60 test transmitters"
    assert "no position" in figure.axes[0].get_legend_handles_labels()[1]


def test_a_map_of_a_dataset_shows_each_bound_where_its_transmitter_stands(default_batch: Samples) -> None:
    figure = dataset_map(NORTH_WEST_ITALY, default_batch)
    # The first 4,000 rows.
    bound_m = default_batch.crlb_m[:4000].astype(float)
    en_m = NORTH_WEST_ITALY.frame.enu_m(default_batch.tx_lat, default_batch.tx_lon, 0.0)[:4000, :2]
    order = np.argsort(bound_m)
    places_km, values_m = points(figure, "squares")
    np.testing.assert_allclose(places_km, en_m[order] / 1e3)
    np.testing.assert_allclose(values_m, bound_m[order])
    assert figure.axes[1].get_ylabel() == "Cramér-Rao bound (rms position error)"


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_the_colours_of_a_map_have_round_borders_within_the_values(spread: float) -> None:
    comparison = some_comparison()
    error_m = 50 * np.random.default_rng(1).lognormal(0.0, spread, 60)
    figure = error_map(NORTH_WEST_ITALY, replace(comparison, distance_m={Estimator.model: error_m}))
    edges = np.array(figure.axes[1].get_yticks())
    labels = [text.get_text() for text in figure.axes[1].get_yticklabels()]
    low, high = np.quantile(error_m, (0.01, 0.99))
    assert 2 <= len(edges) <= 12
    assert (low < edges).all()
    assert (edges < high).all()
    # The ends are not left without a border.
    assert edges[0] < 10 * low
    assert edges[-1] > high / 10
    units = {"m": 1.0, "km": 1000.0}
    assert [float(text.split()[0]) * units[text.split()[1]] for text in labels] == pytest.approx(list(edges))


def test_a_map_of_fixes_without_any_error_can_be_drawn(handmade: Comparison) -> None:
    exact = replace(handmade, distance_m={Estimator.model: np.zeros(5)})
    assert "5 test transmitters" in drawn(error_map(NORTH_WEST_ITALY, exact))


@pytest.mark.parametrize(
    ("decades", "steps"), [(1, {1, 2, 5}), (2, {1, 3}), (4, {1, 3}), (5, {1})], ids=lambda value: str(value)
)
def test_an_axis_of_more_decades_has_fewer_ticks_in_each(handmade: Comparison, decades: int, steps: set[int]) -> None:
    model_m = np.array([1.0, 1.0, 10.0**decades / 2, 10.0**decades / 2, 1.0])
    axes = error_cdf(replace(handmade, distance_m={Estimator.model: model_m})).axes[0]
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low < tick < high]
    assert {round(tick / 10 ** np.floor(np.log10(tick) + 1e-9)) for tick in ticks} == steps


def test_unlocated_rows_are_shown_as_such(handmade: Comparison) -> None:
    assert "no position" not in drawn(error_map(NORTH_WEST_ITALY, handmade))
    model = handmade.distance_m[Estimator.model]
    assert model is not None
    model[:] = np.nan
    assert "no position" in drawn(error_map(NORTH_WEST_ITALY, handmade))


def bars(axes: Axes) -> dict[float, float]:
    """The height of each bar that has one, by its middle."""
    found = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return {round(bar.get_x() + bar.get_width() / 2, 6): bar.get_height() for bar in found if bar.get_height()}


def test_dataset_histograms(default_batch: Samples, rss_batch: Samples) -> None:
    figure = dataset_histograms(default_batch)
    assert f"{len(default_batch):,} transmissions" in drawn(figure)
    assert "three arrival times" in drawn(dataset_histograms(rss_batch))
    snr, dilution, detections = figure.axes
    snr_db = default_batch.snr_db[default_batch.signal_present]
    heights, edges = np.histogram(snr_db, 40)
    middles = (edges[1:] + edges[:-1]) / 2
    some = heights > 0
    assert list(bars(snr)) == pytest.approx(list(middles[some]), abs=1e-3)
    assert list(bars(snr).values()) == pytest.approx(list(heights[some] / len(snr_db)))
    assert snr.get_title() == f"median {np.median(snr_db):.0f} dB"

    hdop = default_batch.hdop[np.isfinite(default_batch.hdop)]
    assert sum(bars(dilution).values()) == pytest.approx(1)
    last = max(np.quantile(hdop, 0.99), 1.5 * hdop.min())
    assert dilution.get_title() == f"median {np.median(hdop):.2f}, last bar: {last:.2g} and more"
    assert dilution.get_xscale() == "log"
    # Whatever is above is in the last bar.
    width = np.log(last / hdop.min()) / 40
    in_last = np.mean(np.log(hdop / hdop.min()) >= 39 * width)
    assert bars(dilution)[max(bars(dilution))] == pytest.approx(in_last, abs=2 / len(hdop))

    counts = default_batch.signal_present.sum(1)
    assert bars(detections) == pytest.approx({n: np.mean(counts == n) for n in range(8) if (counts == n).any()})
    assert detections.get_title() == f"mean {counts.mean():.1f} of 7"
    # A receiver detects also what it cannot time.
    heard = rss_batch.signal_present.sum(1).mean()
    assert dataset_histograms(rss_batch).axes[2].get_title() == f"mean {heard:.1f} of 7"


def test_training_curves() -> None:
    words = drawn(training_curves(history(40), limit_m=33.2, limit_p50_m=21.4))
    assert "limit, good geometry: 33 m rms" in words
    assert "limit of the median: 21 m" in words
    assert "lowest validation loss in epoch 30" in words
    assert "limit, good geometry: 33 m rms" in words
    assert "limit" not in drawn(training_curves(history(3)))
    assert "1 epoch:" in drawn(training_curves(history(1), limit_m=33.2))
    assert "no epoch yet" in drawn(training_curves([]))


def test_training_curves_are_the_metrics_by_epoch() -> None:
    given = history(40)
    loss, error, rate = training_curves(given, limit_m=33.2, limit_p50_m=21.4).axes
    expected = {
        "training": (loss, "train_loss"),
        "validation": (loss, "val_loss"),
        "RMSE, training": (error, "train_rmse_m"),
        "RMSE, validation": (error, "val_rmse_m"),
        "RMSE, validation, good geometry": (error, "val_rmse_good_geom_m"),
        "median, validation": (error, "val_distance_p50_m"),
        "learning rate": (rate, "learning_rate"),
    }
    for label, (axes, name) in expected.items():
        epochs, values = curves(axes)[label]
        np.testing.assert_array_equal(epochs, range(1, 41))
        # Where an epoch has no such number the curve has a gap.
        np.testing.assert_array_equal(values, [np.nan if each[name] is None else each[name] for each in given])
    for label, height_m in (("limit, good geometry: 33 m rms", 33.2), ("limit of the median: 21 m", 21.4)):
        assert curves(error)[label][1].tolist() == [height_m, height_m]
    for axes in (loss, error, rate):
        (dotted,) = (line for line in axes.lines if line.get_linestyle() == ":")
        assert dotted.get_xdata() == [30, 30]
    assert error.get_yscale() == "log"
    assert rate.get_ylim() == pytest.approx((0, 1.1 * 3e-3))
    assert loss.get_title() == "Training, 40 epochs: lowest validation loss in epoch 30 (dotted)"


@pytest.mark.parametrize(
    ("limit_m", "words"),
    [
        (8.27, "8.3 m"),
        (5.0, "5 m"),
        (10.0, "10 m"),
        (24.4, "24 m"),
        (999.0, "999 m"),
        (1000.0, "1 km"),
        (1530.0, "1.5 km"),
        (120e3, "120 km"),
    ],
)
def test_metres_have_three_digits_at_most(limit_m: float, words: str) -> None:
    error = training_curves(history(3), limit_m=limit_m).axes[1]
    assert f"limit, good geometry: {words} rms" in curves(error)


def test_metrics_that_do_not_exist_are_left_out() -> None:
    without = [{**epoch, "val_rmse_good_geom_m": None} for epoch in history(5)]
    assert "good geometry" not in drawn(training_curves(without))


@pytest.mark.parametrize("draw", [error_cdf, calibration_curve])
def test_no_row_of_good_geometry_is_said(draw: Callable[[Comparison], Figure], by_level: Comparison) -> None:
    words = drawn(draw(by_level))
    assert "no test row with GDOP < 5" in words
    assert "0 test rows with GDOP < 5" in words


@pytest.mark.parametrize("rows", [slice(0, 0), slice(0, 1)])
def test_tiny_subsets(rows: slice, by_time: Comparison, by_level: Comparison, default_batch: Samples) -> None:
    for comparison in (cut(by_time, rows), cut(by_level, rows)):
        for subset in Subset:
            drawn(error_cdf(comparison, subset))
            drawn(calibration_curve(comparison, subset))
        drawn(error_map(NORTH_WEST_ITALY, comparison))
    drawn(dataset_map(NORTH_WEST_ITALY, default_batch.take(rows)))
    drawn(dataset_histograms(default_batch.take(rows)))


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


def named(*names: str) -> ReceiverNetwork:
    """The default network with other names for its first sites."""
    sites = NORTH_WEST_ITALY.sites
    first = tuple(site.model_copy(update={"name": name}) for site, name in zip(sites, names, strict=False))
    return NORTH_WEST_ITALY.model_copy(update={"sites": first + sites[len(first) :]})


def picture(figure: Figure) -> np.ndarray:
    with Image.open(io.BytesIO(png(figure))) as image:
        return np.asarray(image.convert("L"))


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


@pytest.fixture
def fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Leaves the machine only Matplotlib's own font and those whose families' names begin so."""
    installed = list(fontManager.ttflist)

    def only(*beginnings: str) -> None:
        kept = [entry for entry in installed if entry.name.startswith(("DejaVu Sans", *beginnings))]
        monkeypatch.setattr(fontManager, "ttflist", kept)
        importlib.reload(plots)  # which forgets the fonts that it found

    yield only
    monkeypatch.undo()
    importlib.reload(plots)


JAPANESE = ("東京タワー", "大阪", "Kyōto 京都", "Hill")


def test_names_without_a_font_give_way_to_numbers_without_a_warning(
    handmade: Comparison,
    fonts: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fonts("Last Resort")
    with caplog.at_level(logging.WARNING):
        words = drawn(plots.error_map(named(*JAPANESE), handmade)).splitlines()
    assert [word for word in words if word in {"1", "2", "3", "4"}] == ["1", "2", "3"]
    assert "Hill" in words
    assert "receiver (its number, where no font here has its name)" in words
    assert not any(name in words for name in JAPANESE[:3])
    assert (caplog.records, capfd.readouterr()) == ([], ("", ""))
    assert "receiver" in drawn(error_map(NORTH_WEST_ITALY, handmade)).splitlines()


def test_names_are_written_in_a_font_that_the_machine_has(
    handmade: Comparison, fonts: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """With a font that comes with Matplotlib in the place of one that has Japanese."""
    charmaps = {
        entry.name: get_font(entry.fname).get_charmap().keys()
        for entry in fontManager.ttflist
        if entry.name in {"DejaVu Sans", "STIXGeneral"} and (entry.style, entry.weight) == ("normal", 400)
    }
    letter = chr(min(charmaps["STIXGeneral"] - charmaps["DejaVu Sans"] - {0}))
    fonts()
    assert f"Hill {letter}" not in drawn(plots.error_map(named(f"Hill {letter}"), handmade))
    fonts("Last Resort", "STIXGeneral")
    with caplog.at_level(logging.WARNING):
        figure = plots.error_map(named(f"Hill {letter}"), handmade)
        assert f"Hill {letter}" in drawn(figure)
    (text,) = (text for text in figure.findobj(Text) if text.get_text() == f"Hill {letter}")
    assert text.get_fontfamily() == ["DejaVu Sans", "STIXGeneral"]
    assert caplog.records == []


def test_long_names_are_cut(handmade: Comparison) -> None:
    words = drawn(error_map(named("x" * 100, "y" * 30), handmade)).splitlines()
    assert "x" * 30 + "…" in words
    assert "y" * 30 in words


def degrees_on_the_map(network: ReceiverNetwork, batch: Samples) -> dict[str, list[tuple[float, float]]]:
    """The labels of latitude and longitude, and where they stand, km east and north."""
    figure = dataset_map(network, batch)
    figure.canvas.draw()
    found: dict[str, list[tuple[float, float]]] = {}
    for text in figure.axes[0].texts:
        if "°" in text.get_text():
            found.setdefault(text.get_text(), []).append(text.get_position())
    return found


def test_maps_show_latitude_and_longitude(default_batch: Samples) -> None:
    found = degrees_on_the_map(NORTH_WEST_ITALY, default_batch)
    assert found.keys() >= {"44.5° N", "45° N", "45.5° N", "8° E", "9° E"}
    for label, places in found.items():
        for east_km, north_km in places:
            lat, lon = NORTH_WEST_ITALY.frame.geodetic(np.array([1e3 * east_km, 1e3 * north_km]), 0.0)
            assert float(label.split("°")[0]) == pytest.approx(float(lat if "N" in label else lon), abs=0.03)


def test_maps_across_the_180th_meridian_and_around_a_pole_have_their_degrees(default_batch: Samples) -> None:
    fiji = ((-17.8, 177.4), (-16.8, -179.9), (-18.1, 178.4))
    pole = ((89.5, 0.0), (89.4, 90.0), (89.6, 180.0), (89.2, -60.0))
    for places, expected in ((fiji, {"178° E", "179° E", "180°", "17.5° S"}), (pole, {"89.5° N"})):
        network = ReceiverNetwork(
            name="n", sites=tuple(Site(name=f"{i}", lat=lat, lon=lon) for i, (lat, lon) in enumerate(places))
        )
        batch = simulate_chunk(DatasetSpec(network, PRESETS[Preset.default], 300, 0), 0).batch
        found = degrees_on_the_map(network, batch)
        assert found.keys() >= expected
        for label, places_km in found.items():
            lat, lon = network.frame.geodetic(1e3 * np.array(places_km), 0.0)
            shown = float(label.split("°")[0]) * (-1 if label[-1] in "SW" else 1)
            off = lat - shown if label[-1] in "NS" else (lon - shown + 180) % 360 - 180
            assert np.abs(off).max() < 0.05 * (1 if label[-1] in "NS" else 1 / np.cos(np.radians(lat)).min())
