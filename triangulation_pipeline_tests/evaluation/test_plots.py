import io
import logging
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.text import Text
from PIL import Image

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
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.simulator import DatasetSpec, simulate_chunk
from triangulation_pipeline.samples import SampleBatch
from triangulation_pipeline_tests.evaluation.conftest import cut

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


def test_error_cdf_curves_are_the_distances(by_time: Comparison) -> None:
    axes = error_cdf(by_time, Subset.all).axes[0]
    line = next(line for line in axes.lines if str(line.get_label()).startswith("model ("))
    rows = by_time.common_rows(Subset.all)
    distance = by_time.distance_m[Estimator.model]
    assert distance is not None
    np.testing.assert_allclose(line.get_xdata()[1:], np.sort(distance[rows]))
    np.testing.assert_allclose(line.get_ydata(), np.arange(rows.sum() + 1) / rows.sum())


def test_calibration_curve(by_time: Comparison) -> None:
    figure = calibration_curve(by_time)
    assert "GDOP < 5" in drawn(figure)
    line = next(line for line in figure.axes[0].lines if line.get_label() == "model")
    nees = by_time.nees[by_time.good_geometry]
    assert line.get_ydata()[95] == pytest.approx(np.mean(nees <= 5.991464547))
    assert f"{100 * np.mean(nees <= 5.991464547):.1f} %" in figure.axes[1].get_title()


def test_maps(by_time: Comparison, default_batch: SampleBatch, rss_batch: SampleBatch) -> None:
    words = drawn(error_map(NORTH_WEST_ITALY, by_time))
    assert all(site.name in words for site in NORTH_WEST_ITALY.sites)
    assert f"{len(by_time.nees):,} test transmitters" in words
    assert "4,000 of 4,096 transmitters" in drawn(dataset_map(NORTH_WEST_ITALY, default_batch))
    assert "east, km" in drawn(dataset_map(NORTH_WEST_ITALY, rss_batch))


def test_unlocated_rows_are_shown_as_such(handmade: Comparison) -> None:
    assert "no position" not in drawn(error_map(NORTH_WEST_ITALY, handmade))
    model = handmade.distance_m[Estimator.model]
    assert model is not None
    model[:] = np.nan
    assert "no position" in drawn(error_map(NORTH_WEST_ITALY, handmade))


def test_dataset_histograms(default_batch: SampleBatch, rss_batch: SampleBatch) -> None:
    assert f"{len(default_batch):,} transmissions" in drawn(dataset_histograms(default_batch))
    assert "three arrival times" in drawn(dataset_histograms(rss_batch))


def test_training_curves() -> None:
    words = drawn(training_curves(history(40), limit_m=33.2, limit_p50_m=21.4))
    assert "limit, good geometry: 33 m rms" in words
    assert "limit of the median: 21 m" in words
    assert "lowest validation loss in epoch 30" in words
    assert "limit, good geometry: 33 m rms" in words
    assert "limit" not in drawn(training_curves(history(3)))
    assert "1 epoch:" in drawn(training_curves(history(1), limit_m=33.2))
    assert "no epoch yet" in drawn(training_curves([]))


def test_metrics_that_do_not_exist_are_left_out() -> None:
    without = [{**epoch, "val_rmse_good_geom_m": None} for epoch in history(5)]
    assert "good geometry" not in drawn(training_curves(without))


@pytest.mark.parametrize("draw", [error_cdf, calibration_curve])
def test_no_row_of_good_geometry_is_said(draw: Callable[[Comparison], Figure], by_level: Comparison) -> None:
    assert "no test row with GDOP < 5" in drawn(draw(by_level))


@pytest.mark.parametrize("rows", [slice(0, 0), slice(0, 1)])
def test_tiny_subsets(rows: slice, by_time: Comparison, by_level: Comparison, default_batch: SampleBatch) -> None:
    for comparison in (cut(by_time, rows), cut(by_level, rows)):
        for subset in Subset:
            drawn(error_cdf(comparison, subset))
            drawn(calibration_curve(comparison, subset))
        drawn(error_map(NORTH_WEST_ITALY, comparison))
    drawn(dataset_map(NORTH_WEST_ITALY, default_batch.take(rows)))
    drawn(dataset_histograms(default_batch.take(rows)))


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


def test_names_are_shown_as_they_are_written(handmade: Comparison, default_batch: SampleBatch) -> None:
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
        plots._font_of.cache_clear()

    yield only
    plots._font_of.cache_clear()


JAPANESE = ("東京タワー", "大阪", "Kyōto 京都", "Hill")


def test_names_without_a_font_give_way_to_numbers_without_a_warning(
    handmade: Comparison,
    fonts: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fonts("Last Resort")
    with caplog.at_level(logging.WARNING):
        words = drawn(error_map(named(*JAPANESE), handmade)).splitlines()
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
    assert plots._fonts(letter) == []
    fonts("Last Resort", "STIXGeneral")
    with caplog.at_level(logging.WARNING):
        figure = error_map(named(f"Hill {letter}"), handmade)
        assert f"Hill {letter}" in drawn(figure)
    (text,) = (text for text in figure.findobj(Text) if text.get_text() == f"Hill {letter}")
    assert text.get_fontfamily() == ["DejaVu Sans", "STIXGeneral"]
    assert caplog.records == []


def test_long_names_are_cut(handmade: Comparison) -> None:
    words = drawn(error_map(named("x" * 100, "y" * 30), handmade)).splitlines()
    assert "x" * 30 + "…" in words
    assert "y" * 30 in words


def degrees_on_the_map(network: ReceiverNetwork, batch: SampleBatch) -> dict[str, list[tuple[float, float]]]:
    """The labels of latitude and longitude, and where they stand, km east and north."""
    figure = dataset_map(network, batch)
    figure.canvas.draw()
    found: dict[str, list[tuple[float, float]]] = {}
    for text in figure.axes[0].texts:
        if "°" in text.get_text():
            found.setdefault(text.get_text(), []).append(text.get_position())
    return found


def test_maps_show_latitude_and_longitude(default_batch: SampleBatch) -> None:
    found = degrees_on_the_map(NORTH_WEST_ITALY, default_batch)
    assert found.keys() >= {"44.5° N", "45° N", "45.5° N", "8° E", "9° E"}
    for label, places in found.items():
        for east_km, north_km in places:
            lat, lon = NORTH_WEST_ITALY.frame.geodetic(np.array([1e3 * east_km, 1e3 * north_km]), 0.0)
            assert float(label.split("°")[0]) == pytest.approx(float(lat if "N" in label else lon), abs=0.03)


def test_maps_across_the_180th_meridian_and_around_a_pole_have_their_degrees(default_batch: SampleBatch) -> None:
    fiji = ((-17.8, 177.4), (-16.8, -179.9), (-18.1, 178.4))
    pole = ((89.5, 0.0), (89.4, 90.0), (89.6, 180.0), (89.2, -60.0))
    for places, expected in ((fiji, {"178° E", "179° E", "180°", "17.5° S"}), (pole, {"89.5° N"})):
        network = ReceiverNetwork(
            name="n", sites=tuple(Site(name=f"{i}", lat=lat, lon=lon) for i, (lat, lon) in enumerate(places))
        )
        batch = simulate_chunk(DatasetSpec(network, PRESETS[Preset.default], 300, 0), 0).batch
        assert degrees_on_the_map(network, batch).keys() >= expected
