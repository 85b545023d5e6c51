import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.text import Text

from triangulation_pipeline.evaluation.comparison import Comparison
from triangulation_pipeline.evaluation.estimators import MODEL
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Site
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.simulator import simulate_chunk
from triangulation_pipeline.plots import maps
from triangulation_pipeline.plots.dataset import dataset_map
from triangulation_pipeline.plots.evaluation import error_map
from triangulation_pipeline.samples import Samples
from triangulation_pipeline_tests.evaluation.conftest import some_comparison
from triangulation_pipeline_tests.plots.pictures import drawn, named


def test_maps(by_time: Comparison, default_batch: Samples, rss_batch: Samples) -> None:
    words = drawn(error_map(NORTH_WEST_ITALY, by_time))
    assert all(site.name in words for site in NORTH_WEST_ITALY.sites)
    assert f"{len(by_time.gdop):,} test transmitters" in words
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
    error_m = comparison.distance_m[MODEL]
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
    figure = error_map(NORTH_WEST_ITALY, replace(comparison, distance_m={MODEL: error_m}))
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
    exact = replace(handmade, distance_m={MODEL: np.zeros(5)})
    assert "5 test transmitters" in drawn(error_map(NORTH_WEST_ITALY, exact))


def test_unlocated_rows_are_shown_as_such(handmade: Comparison) -> None:
    assert "no position" not in drawn(error_map(NORTH_WEST_ITALY, handmade))
    model = handmade.distance_m[MODEL]
    assert model is not None
    model[:] = np.nan
    assert "no position" in drawn(error_map(NORTH_WEST_ITALY, handmade))


@pytest.fixture
def fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Leaves the machine only Matplotlib's own font and those whose families' names begin so."""
    installed = list(fontManager.ttflist)

    def only(*beginnings: str) -> None:
        kept = [entry for entry in installed if entry.name.startswith(("DejaVu Sans", *beginnings))]
        monkeypatch.setattr(fontManager, "ttflist", kept)
        maps._font_of.cache_clear()

    yield only
    monkeypatch.undo()
    maps._font_of.cache_clear()


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
    assert f"Hill {letter}" not in drawn(error_map(named(f"Hill {letter}"), handmade))
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
