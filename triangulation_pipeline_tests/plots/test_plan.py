"""Maps of a plan."""

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Site, random_network
from triangulation_pipeline.physics.plan import NetworkPlan, best_further_site, plan_network
from triangulation_pipeline.physics.plan_cells import service_cells
from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
from triangulation_pipeline.plots.plan import bound_map, difference_map, hdop_map, receiver_map
from triangulation_pipeline_tests.plots.pictures import drawn


def planned(network: ReceiverNetwork, scenario: Scenario | None = None) -> NetworkPlan:
    scenario = scenario or PRESETS[Preset.valley]
    return plan_network(network, scenario, service_cells([network], scenario, 16))


@pytest.fixture(scope="module")
def valley() -> NetworkPlan:
    return planned(NORTH_WEST_ITALY)


def ticks(figure: Figure) -> tuple[list[str], list[str]]:
    axes = figure.axes[0]
    return (
        [label.get_text() for label in axes.get_xticklabels()],
        [label.get_text() for label in axes.get_yticklabels()],
    )


def test_a_map_has_sites_degrees_and_what_its_colours_mean(valley: NetworkPlan) -> None:
    for draw, meaning in (
        (bound_map, "least rms position error (median transmission)"),
        (hdop_map, "HDOP of the receivers that hear (median)"),
        (receiver_map, "receivers of 7, on average"),
    ):
        figure = draw(valley)
        words = drawn(figure)
        assert all(site.name in words for site in NORTH_WEST_ITALY.sites)
        assert "north-west-italy" in words
        assert meaning in words
        assert ticks(figure) == (["7.5° E", "8° E", "8.5° E", "9° E"], ["44.5° N", "45° N", "45.5° N"])


def test_degrees_stand_where_they_are(valley: NetworkPlan) -> None:
    axes = bound_map(valley).axes[0]
    south_km, west_km = axes.get_ylim()[0], axes.get_xlim()[0]
    for east_km, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True):
        _, lon = NORTH_WEST_ITALY.frame.geodetic(1e3 * np.array([east_km, south_km]), 0.0)
        assert float(label.get_text().split("°")[0]) == pytest.approx(float(lon), abs=1e-3)
    for north_km, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True):
        lat, _ = NORTH_WEST_ITALY.frame.geodetic(1e3 * np.array([west_km, north_km]), 0.0)
        assert float(label.get_text().split("°")[0]) == pytest.approx(float(lat), abs=1e-3)


def test_the_best_further_site_and_places_without_a_bound_are_shown(valley: NetworkPlan) -> None:
    best = best_further_site(valley)
    figure = bound_map(valley, best)
    words = drawn(figure)
    assert "best further site" in words
    assert "no bound: too few receivers hear" in words
    (star,) = (
        found
        for found in figure.axes[0].collections
        if isinstance(found, PathCollection) and found.get_label() == "best further site"
    )
    expected_km = NORTH_WEST_ITALY.frame.en_m(best.site.lat, best.site.lon, best.site.altitude_m) / 1e3
    np.testing.assert_allclose(np.asarray(star.get_offsets())[0], expected_km)
    assert "no bound" not in drawn(bound_map(planned(NORTH_WEST_ITALY, Scenario())))


def test_colours_serve_both_plans_that_stand_side_by_side(valley: NetworkPlan) -> None:
    better = planned(NORTH_WEST_ITALY, Scenario())

    def edges(figure: Figure) -> list[float]:
        return list(figure.axes[1].get_yticks())

    assert edges(bound_map(valley, None, better)) == edges(bound_map(better, None, valley))
    assert edges(bound_map(valley)) != edges(bound_map(better))


def test_a_difference_shows_what_is_lost(valley: NetworkPlan) -> None:
    fewer = NORTH_WEST_ITALY.model_copy(update={"name": "fewer", "sites": NORTH_WEST_ITALY.sites[:5]})
    figure = difference_map(valley, plan_network(fewer, valley.scenario, valley.cells))
    words = drawn(figure)
    assert "Bound with fewer, as a multiple of that with north-west-italy" in words
    assert "Genova" in words, "the sites of both"
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()][::7] == ["x 0.25", "x 4"]
    (filled,) = (found for found in figure.axes[0].collections if getattr(found, "filled", False))
    assert np.nanmax(filled.get_array()) > 4  # type: ignore[arg-type]


def test_maps_around_a_pole_and_across_the_180th_meridian_have_degrees() -> None:
    def at(*places: tuple[float, float]) -> ReceiverNetwork:
        return ReceiverNetwork(
            name="n", sites=tuple(Site(name=f"{i}", lat=a, lon=b) for i, (a, b) in enumerate(places))
        )

    fiji = bound_map(planned(at((-17.8, 177.4), (-16.8, -179.9), (-18.1, 178.4), (-18.2, -178.8)), Scenario()))
    assert ticks(fiji)[0] == ["178° E", "179° E", "180°", "179° W"]
    drawn(fiji)
    pole = bound_map(planned(at((89.5, 0.0), (89.4, 90.0), (89.6, 180.0), (89.2, -60.0))))
    assert "° N" in drawn(pole)
    assert pole.axes[0].get_xlabel() == "east, km"


def test_a_network_of_levels_alone_and_one_of_64_sites_can_be_drawn() -> None:
    assert "fewer than three arrival times" in drawn(hdop_map(planned(NORTH_WEST_ITALY, PRESETS[Preset.rss])))
    many = drawn(receiver_map(planned(random_network(64, 1))))
    assert "receiver (its number)" in many
    assert "\n64" in many
