import hashlib
import json
import re
from typing import Any

import numpy as np
import pymap3d
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from triangulation_pipeline.frame import LocalFrame, surface_up_m
from triangulation_pipeline.network import (
    CLOCK_SIGMA_NS,
    NORTH_WEST_ITALY,
    ReceiverNetwork,
    Site,
    Timing,
    random_network,
)


def network_of(*places: tuple[float, float], names: str = "abcdefgh") -> ReceiverNetwork:
    sites = [Site(name=name, lat=lat, lon=lon) for name, (lat, lon) in zip(names, places, strict=False)]
    return ReceiverNetwork(name="n", sites=tuple(sites))


ALPS = ((45.0, 7.0), (45.2, 7.9), (44.6, 8.3))


def with_first(**change: Any) -> ReceiverNetwork:
    """The three sites of the Alps, of which the first is changed."""
    sites = network_of(*ALPS).model_dump()["sites"]
    return ReceiverNetwork.model_validate({"name": "n", "sites": [sites[0] | change, *sites[1:]]})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "A"),
        ("lat", 45.001),
        ("lon", 7.001),
        ("altitude_m", 1.0),
        ("timing", "none"),
        ("noise_figure_db", 5.0),
        ("gain_offset_db", 0.0),
    ],
)
def test_the_digest_is_of_every_field_of_a_site(field: str, value: object) -> None:
    assert with_first().digest == network_of(*ALPS).digest
    changed = with_first(**{field: value})
    assert changed.digest != network_of(*ALPS).digest
    assert changed != network_of(*ALPS)


def test_the_digest_is_of_the_sites_in_their_order_and_not_of_the_name() -> None:
    network = network_of(*ALPS)
    renamed = network.model_copy(update={"name": "m"})
    turned = ReceiverNetwork(name="n", sites=network.sites[::-1])
    assert ReceiverNetwork(name="m", sites=network.sites).digest == renamed.digest == network.digest
    assert turned.digest != network.digest
    assert renamed != network
    assert turned != network


def test_a_copy_with_other_sites_has_its_own_digest_and_frame() -> None:
    network = network_of(*ALPS)
    assert network.digest
    assert network.frame == network.model_copy().frame
    turned = network.model_copy(update={"sites": network.sites[:0:-1] + NORTH_WEST_ITALY.sites[-2:]})
    built = ReceiverNetwork(name="n", sites=turned.sites)
    assert (turned.digest, turned.frame) == (built.digest, built.frame)
    assert turned.digest != network.digest
    np.testing.assert_array_equal(turned.site_enu_m, built.site_enu_m)


def test_the_digest_of_a_description_stays_what_it_was() -> None:
    """Datasets and models name their network by it, and the sites' constants are drawn by it. The constant name stands
    where a network's own once stood."""
    written_out = json.dumps(
        {
            "name": "north-west-italy",
            "sites": [
                {
                    "altitude_m": 0.0,
                    "gain_offset_db": None,
                    "lat": lat,
                    "lon": lon,
                    "name": name,
                    "noise_figure_db": 5.5,
                    "timing": "gps",
                }
                for name, (lat, lon) in zip("abc", ALPS, strict=True)
            ],
        },
        separators=(",", ":"),
    )
    assert network_of(*ALPS).digest == hashlib.sha256(written_out.encode()).hexdigest()
    assert NORTH_WEST_ITALY.digest == "491d2d57dc5ce699d5b1809bc38cd17a8b7008cc270c2731e1fb652f05b64fa8"


@pytest.mark.parametrize(
    ("field", "least", "most", "step"),
    [
        ("lat", -90, 90, 1e-9),
        ("lon", -180, 180, 1e-9),
        ("altitude_m", -500, 9000, 1e-6),
        ("noise_figure_db", 0, 30, 1e-9),
        ("gain_offset_db", -30, 30, 1e-9),
    ],
)
def test_numbers_of_a_site_have_limits(field: str, least: float, most: float, step: float) -> None:
    site = {"name": "a", "lat": 45.0, "lon": 7.0}
    for good in (least, most):
        assert getattr(Site.model_validate(site | {field: good}), field) == good
    for bad in (least - step, most + step, float("nan"), float("inf"), "high", True):
        with pytest.raises(ValidationError, match=field):
            Site.model_validate(site | {field: bad})


@pytest.mark.parametrize("field", ["name", "lat", "lon"])
def test_a_site_must_have_a_name_and_a_place(field: str) -> None:
    site = {"name": "a", "lat": 45.0, "lon": 7.0}
    site.pop(field)
    with pytest.raises(ValidationError, match=f"(?s){field}.*Field required"):
        Site.model_validate(site)


def test_names_have_1_to_100_characters_and_none_that_controls() -> None:
    for good in ("a", "x" * 100, "a\u200db"):
        assert with_first(name=good).sites[0].name == good
        assert ReceiverNetwork(name=good, sites=network_of(*ALPS).sites).name == good
    for bad in ("", "x" * 101, "a\nb", "a\x1bb", "a\u202eb", "a\u2028b"):
        with pytest.raises(ValidationError, match="name"):
            with_first(name=bad)
        with pytest.raises(ValidationError, match="name"):
            ReceiverNetwork(name=bad, sites=network_of(*ALPS).sites)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="heigth_m"):
        with_first(heigth_m=3)
    with pytest.raises(ValidationError, match="seites"):
        ReceiverNetwork.model_validate({"name": "n", "sites": network_of(*ALPS).sites, "seites": []})


def test_a_network_has_3_to_64_sites() -> None:
    assert len(network_of(*ALPS).sites) == 3
    assert len(random_network(500, seed=0).sites) == 500
    with pytest.raises(ValueError, match="a network needs 3 to 500 sites, this one has 2"):
        network_of(*ALPS[:2])
    with pytest.raises(ValueError, match="a network needs 3 to 500 sites, this one has 501"):
        ReceiverNetwork(name="n", sites=(*random_network(500, seed=0).sites, Site(name="x", lat=45, lon=8.2)))


def test_of_repeated_names_five_are_told() -> None:
    names = "gfedcba" * 2 + "z"
    with pytest.raises(ValueError, match=r"site names must be unique, repeated: a, b, c, d, e\b(?!,)"):
        network_of(*((45 + i / 100, 7.0) for i in range(15)), names=names)


def test_networks_are_equal_by_their_sites_whatever_was_asked_of_them() -> None:
    one, same, other = network_of(*ALPS), network_of(*ALPS), network_of((45.0, 7.001), *ALPS[1:])
    for network in (one, same, other):
        assert network.site_enu_m.shape == (3, 3)
        assert network.has_timing.all()
        assert network.digest
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != "n"
    assert one != ReceiverNetwork(name="m", sites=one.sites)
    assert len({one, same, other, ReceiverNetwork(name="m", sites=one.sites)}) == 3


@pytest.mark.parametrize(
    ("places", "lat", "lon"),
    [
        (((-17.8, 177.4), (-16.8, -179.9), (-18.1, 178.4)), -17.6, 178.6),
        (((89.5, 0), (89.5, 90), (89.5, 180), (89.5, -90)), 90, None),
        (((-89.5, 10), (-89.5, 130), (-89.5, -110)), -90, None),
    ],
    ids=["Fiji", "north pole", "south pole"],
)
def test_networks_where_longitudes_jump_have_their_middle_among_their_sites(
    places: tuple[tuple[float, float], ...], lat: float, lon: float | None
) -> None:
    network = network_of(*places)
    assert network.frame.lat == pytest.approx(lat, abs=0.05)
    assert lon is None or network.frame.lon == pytest.approx(lon, abs=0.1)
    # The frame keeps distances, and gives back the places.
    en_m = network.site_enu_m[:, :2]
    back_lat, back_lon = network.frame.geodetic(en_m, 0.0)
    want = np.array(places)
    np.testing.assert_allclose(back_lat, want[:, 0], atol=1e-7)
    np.testing.assert_allclose((back_lon - want[:, 1] + 180) % 360 - 180, 0, atol=1e-5)
    assert np.ptp(en_m, axis=0).max() < 400e3


def test_the_frame_stands_in_the_middle_of_the_sites_box() -> None:
    frame = network_of((44.0, 7.0), (46.0, 7.1), (44.1, 9.0), (44.2, 8.9)).frame
    assert (frame.lat, frame.lon) == (45.0, 8.0)
    # On the ellipsoid, however high the sites.
    high = with_first(altitude_m=3000.0)
    assert high.frame == network_of(*ALPS).frame
    assert high.site_enu_m[0, 2] - network_of(*ALPS).site_enu_m[0, 2] == pytest.approx(3000, abs=1)


def places_around(within_km: float, *away_km: float) -> list[tuple[float, float]]:
    """Seven places within so many kilometres of 45 N 8 E, and others so many kilometres north of it."""
    ring = np.array([(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.0, -1.0), (-1.0, 0.0), (0.3, 0.3), (-0.3, -0.3)])
    lat, lon = LocalFrame(45.0, 8.0).geodetic(within_km * 1e3 * ring, 0.0)
    # By the straight line through the earth, nearly.
    away = [(45.0 + float(np.degrees(2 * np.arcsin(km / 2 / 6378.0))), 8.0) for km in away_km]
    return [*zip(lat.tolist(), lon.tolist(), strict=True), *away]


@pytest.mark.parametrize(
    ("within_km", "away_km", "is_odd"),
    [
        (2, 48, False),
        (2, 52, True),  # from 50 km on ...
        (20, 95, False),
        (20, 105, True),  # ... where it is five times as far as the others
        (2, 900, True),
    ],
)
def test_a_site_far_from_all_others_is_odd(within_km: float, away_km: float, is_odd: bool) -> None:
    network = network_of(*places_around(within_km, away_km))
    assert len(network.oddities()) == is_odd
    if is_odd:
        (told,) = network.oddities()
        assert told.startswith("site 'h' (lat ")
        lies_km = float(told.split(" lies ")[1].split(" km")[0].replace(",", ""))
        assert lies_km == pytest.approx(away_km, rel=0.01)
        spread_km = float(
            told.split(" km from the middle of the others, most of which are within ")[1].split(" km of")[0]
        )
        assert spread_km == pytest.approx(within_km, abs=1)


def test_a_site_a_thousand_kilometres_from_all_others_is_refused() -> None:
    assert len(network_of(*places_around(2, 980)).oddities()) == 1
    with pytest.raises(ValueError, match=r"site 'h' .* lies 1,0\d\d km from the middle of the others"):
        network_of(*places_around(2, 1030))
    # Five times as far as the others are: with sites 250 km around the middle no mistake.
    assert network_of(*places_around(250, 1030)).oddities() == []
    # Three that stand as close together as the others are an island; two are not.
    assert len(network_of(*places_around(2, 1030, 1030.5, 1031), names="abcdefghijk").oddities()) == 3
    with pytest.raises(ValueError, match=r"site 'h' .* lies 1,0\d\d km from the middle of the others"):
        network_of(*places_around(2, 1030, 1030.5), names="abcdefghijk")


def test_several_sites_may_be_odd() -> None:
    told = network_of(*places_around(2, 100, 200), names="abcdefghij").oddities()
    assert [sentence[:8] for sentence in told] == ["site 'h'", "site 'i'"]


@pytest.mark.parametrize(("lon", "is_taken"), [(18.1, True), (18.35, False)], ids=["1,988 km", "2,014 km"])
def test_all_sites_lie_within_2000_km_of_their_middle(lon: float, is_taken: bool) -> None:
    places = (0.0, -lon), (0.1, 0.0), (0.0, lon)
    if is_taken:
        assert network_of(*places).site_enu_m.shape == (3, 3)
        return
    with pytest.raises(
        ValueError,
        match=r"sites must lie within 2,000 km of their middle, and 'a' \(lat 0, lon -18\.35\) lies 2,01\d km from it",
    ):
        network_of(*places)


@pytest.mark.parametrize(
    ("place", "slip"),
    [
        ((8.2, 45.2), "; lat and lon look swapped"),
        ((-45.2, 8.2), "; the sign of lat looks wrong"),
        ((45.2, -8.2), "; the sign of lon looks wrong"),
        ((-45.2, -8.2), "; the signs of lat and lon look wrong"),
        ((0.0, 0.0), "; lat and lon 0 look as if they were never filled in"),
        ((0.0, 8.2), ""),
        ((45.2, 0.0), ""),
        ((8.2, 170.0), ""),
        ((46.1, -8.2), ""),  # with the other sign, 122 km from the middle: 110 are taken
        ((45.9, -8.2), "; the sign of lon looks wrong"),
    ],
)
def test_of_a_site_far_off_the_likely_slip_is_told(place: tuple[float, float], slip: str) -> None:
    try:
        (told,) = network_of(*places_around(20), place).oddities()
    except ValidationError as error:
        told = error.errors()[0]["msg"]
    assert re.search(rf"are within (19|20) km of it{slip}$", told), told


def test_of_two_sites_far_off_the_slip_of_the_first_is_told() -> None:
    with pytest.raises(ValidationError, match="the sign of lon looks wrong"):
        network_of(*places_around(20), (45.2, -8.2), (8.2, 45.2), names="abcdefghij")


def test_no_slip_is_told_that_would_be_no_latitude() -> None:
    # 135 degrees north, 8 east is 45 north, 172 west, and nobody writes it.
    places = [(lat, lon - 180) for lat, lon in places_around(20)]
    with pytest.raises(ValidationError, match=r"are within \d+ km of it \[type=value_error"):
        network_of(*places, (8.0, 135.0))


@pytest.mark.parametrize(
    ("north_m", "told"),
    [(0.06, "stand on the same spot"), (0.14, "are 0 m apart"), (68, "are 68 m apart"), (78, "")],
)
def test_sites_near_each_other_are_odd_and_nearer_still_one(north_m: float, told: str) -> None:
    lat = 45.0 + north_m / 111_132
    place = (*ALPS, (lat, 7.0))
    if "spot" in told:
        with pytest.raises(ValueError, match=told):
            network_of(*place)
        high = Site(name="d", lat=lat, lon=7.0, altitude_m=500.0)  # however high
        with pytest.raises(ValueError, match=told):
            ReceiverNetwork(name="n", sites=(*network_of(*ALPS).sites, high))
    elif told:
        (sentence,) = network_of(*place).oddities()
        assert told in sentence
    else:
        assert network_of(*place).oddities() == []


def test_usual_is_the_distance_of_most_sites_whatever_one_far_off_does() -> None:
    # Typically 28 km apart, 200 km in the mean: 100 m are near for the one and far for the other.
    places = [*places_around(20, 900), (45.0009, 8.0)]
    assert len(network_of(*places, names="abcdefghi").oddities()) == 1


@pytest.mark.parametrize(("aside", "told"), [(0.0, True), (0.0004, True), (0.01, False)])
def test_sites_in_one_line_are_odd(aside: float, told: bool) -> None:
    found = network_of((45.0, 7.0), (45.2, 7.0 + aside), (45.4, 7.0)).oddities()
    assert [("mirror image" in sentence) for sentence in found] == [True] * told


@pytest.mark.parametrize("timed", [0, 2, 3, 4])
def test_fewer_than_three_sites_with_timing_are_odd(timed: int) -> None:
    sites = network_of(*ALPS, (45.1, 8.1)).sites
    timings = [Timing.gps] * timed + [Timing.none] * (4 - timed)
    mixed = tuple(site.model_copy(update={"timing": timing}) for site, timing in zip(sites, timings, strict=True))
    network = ReceiverNetwork(name="n", sites=mixed)
    assert network.has_timing.tolist() == [True] * timed + [False] * (4 - timed)
    told = [sentence for sentence in network.oddities() if sentence.startswith(f"{timed} of the 4 sites measure")]
    assert len(told) == len(network.oddities()) == (timed < 3)


@pytest.mark.parametrize("timing", Timing)
def test_every_clock_but_none_measures_arrival_times(timing: Timing) -> None:
    first, *others = NORTH_WEST_ITALY.sites
    network = ReceiverNetwork(name="n", sites=(first.model_copy(update={"timing": timing}), *others))
    assert network.has_timing[0] == (timing is not Timing.none)
    assert (network.digest == NORTH_WEST_ITALY.digest) == (timing is Timing.gps)
    assert (timing in CLOCK_SIGMA_NS) == (timing not in {Timing.gps, Timing.none})


def test_odd_networks_are_taken_with_a_warning() -> None:
    assert NORTH_WEST_ITALY.oddities() == []
    assert network_of(*ALPS, (45.1, 7.1), names="abcA").oddities() == ["the names of sites 'a' and 'A' look alike"]
    assert network_of(*ALPS, (45.00001, 7.0)).oddities() == [
        "sites 'a' and 'd' are 1 m apart, the network's sites typically 74 km"
    ]
    (far,) = network_of(*ALPS, (40, 7)).oddities()
    assert far.startswith("site 'd' (lat 40, lon 7) lies 536 km from the middle of the others, most of which are")
    untimed = ReceiverNetwork(
        name="n",
        sites=tuple(Site(name=f"{i}", lat=45 + i / 3, lon=7 + i**2 / 9, timing=Timing.none) for i in range(4)),
    )
    assert untimed.oddities()[0].startswith(
        "0 of the 4 sites measure arrival times; without three the network locates by"
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [((-17.0, 180.0), (-17.0, -180.0)), ((90.0, 10.0), (90.0, 50.0)), ((-17.0, 179.9999998), (-17.0, -179.9999998))],
    ids=["180th meridian", "pole", "a hair's breadth"],
)
def test_one_spot_is_one_spot_however_it_is_written(one: tuple[float, float], other: tuple[float, float]) -> None:
    lat = one[0]
    third, fourth = (lat - 0.5, 179.5), (lat - 0.5, -70.0 if lat == 90 else -179.5)
    with pytest.raises(ValueError, match="sites 'a' and 'b' stand on the same spot"):
        network_of(one, other, third, fourth)
    # A metre beside it is another spot, also across the meridian.
    beside = (lat - 1e-5, other[1])
    assert "are 1 m apart" in network_of(one, beside, third, fourth).oddities()[0]


@pytest.mark.parametrize("twin", ["A", "\uff41", "a\u200d", "a\u200c"], ids=["case", "width", "joiner", "non-joiner"])
def test_names_that_look_alike_are_odd(twin: str) -> None:
    sites = [Site(name=name, lat=lat, lon=lon) for name, (lat, lon) in zip(("a", twin, "c"), ALPS, strict=True)]
    (found,) = ReceiverNetwork(name="n", sites=tuple(sites)).oddities()
    assert "look alike" in found


def test_the_ways_to_write_an_accent_look_alike() -> None:
    sites = [
        Site(name=name, lat=lat, lon=lon) for name, (lat, lon) in zip(("\u00e9", "e\u0301", "c"), ALPS, strict=True)
    ]
    assert "look alike" in ReceiverNetwork(name="n", sites=tuple(sites)).oddities()[0]


def test_no_random_network_is_odd() -> None:
    for seed in range(50):
        assert random_network(4 + seed % 30, seed).oddities() == []


def test_random_network_is_seeded_and_spread_out() -> None:
    network = random_network(12, seed=0)
    assert network == random_network(12, seed=0)
    assert network.digest != random_network(12, seed=1).digest
    gaps = np.linalg.norm(network.site_enu_m[:, None, :2] - network.site_enu_m[None, :, :2], axis=-1)
    assert gaps[~np.eye(12, dtype=bool)].min() > 0.1 * 150e3 / np.sqrt(12) * 0.99
    for sites in (2, 501):
        with pytest.raises(ValueError, match=f"sites must be 3 to 500, got {sites}"):
            random_network(sites, seed=0)


@pytest.mark.parametrize("seed", range(5))
def test_no_two_sites_of_a_random_network_are_close(seed: int) -> None:
    """Of 64 independent places some pair is nearer than a tenth of the mean spacing nearly always."""
    network = random_network(64, seed)
    gaps_m = np.linalg.norm(network.site_enu_m[:, None, :2] - network.site_enu_m[None, :, :2], axis=-1)
    least_m = gaps_m[~np.eye(64, dtype=bool)].min()
    assert 0.1 * 150e3 / 8 - 2 < least_m < 2 * 0.1 * 150e3 / 8  # and no grid


def test_a_random_network_lies_where_it_was_asked_for() -> None:
    for network, lat, lon, extent_km in (
        (random_network(64, seed=1), 45.0, 8.2, 150),
        (random_network(64, seed=1, lat=-30.0, lon=20.0, extent_km=10), -30.0, 20.0, 10),
    ):
        en_m = LocalFrame(lat, lon).enu_m([s.lat for s in network.sites], [s.lon for s in network.sites], 0.0)[:, :2]
        assert np.abs(en_m).max() <= extent_km * 500 + 1
        assert np.ptp(en_m, axis=0).min() > extent_km * 900
        altitudes_m = np.array([site.altitude_m for site in network.sites])
        assert 0 <= altitudes_m.min() < 80
        assert 720 < altitudes_m.max() <= 800
        assert network.has_timing.all()
        assert [site.name for site in network.sites] == [f"site-{i:02d}" for i in range(1, 65)]
        assert network.name == "random-64-1"
        for site in network.sites:
            assert (round(site.lat, 6), round(site.lon, 6), round(site.altitude_m, 1)) == (
                site.lat,
                site.lon,
                site.altitude_m,
            )


def test_service_area_is_the_sites_box_and_margin() -> None:
    area = NORTH_WEST_ITALY.service_area(20e3)
    inner = NORTH_WEST_ITALY.service_area(0.0)
    low_m, high_m = NORTH_WEST_ITALY.site_enu_m[:, :2].min(0), NORTH_WEST_ITALY.site_enu_m[:, :2].max(0)
    assert (inner.east_min_m, inner.north_min_m, inner.east_max_m, inner.north_max_m) == (*low_m, *high_m)
    assert inner.east_min_m - area.east_min_m == pytest.approx(20e3)
    assert inner.north_min_m - area.north_min_m == pytest.approx(20e3)
    assert area.east_max_m - inner.east_max_m == pytest.approx(20e3)
    assert area.north_max_m - inner.north_max_m == pytest.approx(20e3)
    assert 140e3 < inner.east_max_m - inner.east_min_m < 155e3
    assert 110e3 < inner.north_max_m - inner.north_min_m < 130e3


def test_the_frame_stands_on_the_ellipsoid_and_its_third_axis_is_up() -> None:
    frame = LocalFrame(45.0, 8.0)
    np.testing.assert_allclose(frame.enu_m(45.0, 8.0, 0.0), (0, 0, 0), atol=1e-6)
    np.testing.assert_allclose(frame.enu_m(45.0, 8.0, 250.0), (0, 0, 250), atol=1e-6)
    # A thousandth of a degree: 78.8 m east, 111.1 m north.
    np.testing.assert_allclose(frame.enu_m([45.0, 45.001], [8.001, 8.0], 0.0)[:, :2], [(78.8, 0), (0, 111.1)], atol=0.1)
    # Up and slope of the surface where the frame stands.
    up_m, slopes = surface_up_m(np.zeros((4, 2)), frame.surface_coefficients, 250.0)
    np.testing.assert_allclose(up_m, 250)
    np.testing.assert_allclose(slopes, 0, atol=1e-12)
    lat, lon = frame.geodetic(np.zeros((3, 2)), 250.0)
    np.testing.assert_allclose([lat, lon], [[45.0] * 3, [8.0] * 3])


@settings(max_examples=40)
@given(
    lat0=st.floats(-80, 80),
    lon0=st.floats(-179, 179),
    d_lat=st.floats(-1.5, 1.5),
    d_lon=st.floats(-1.5, 1.5),
    altitude_m=st.floats(0, 300),
)
def test_surface_agrees_with_pymap3d(lat0: float, lon0: float, d_lat: float, d_lon: float, altitude_m: float) -> None:
    frame = LocalFrame(lat0, lon0)
    lat, lon = lat0 + d_lat, lon0 + d_lon
    east, north, up = pymap3d.geodetic2enu(lat, lon, altitude_m, lat0, lon0, 0.0)
    en_m = np.array([east, north])
    up_m, slope = surface_up_m(en_m, frame.surface_coefficients, altitude_m)
    assert up_m == pytest.approx(up, abs=0.02)
    for axis in (0, 1):
        step = np.eye(2)[axis] * 10.0
        ahead, behind = (surface_up_m(en_m + s, frame.surface_coefficients, 0.0)[0] for s in (step, -step))
        assert slope[axis] == pytest.approx((ahead - behind) / 20, abs=2e-9)
        ahead, behind = (surface_up_m(en_m + s, frame.surface_coefficients, altitude_m)[0] for s in (step, -step))
        assert slope[axis] == pytest.approx((ahead - behind) / 20, abs=1e-5)
    back_lat, back_lon = frame.geodetic(en_m, altitude_m)
    assert back_lat == pytest.approx(lat, abs=1e-7)
    assert (back_lon - lon + 180) % 360 - 180 == pytest.approx(0, abs=1e-6)


def test_surface_keeps_its_digits_in_float32() -> None:
    en_m = np.random.default_rng(0).uniform(-2e5, 2e5, (2000, 2))
    coefficients = LocalFrame(45.0, 8.2).surface_coefficients
    exact, _ = surface_up_m(en_m, coefficients, 2.0)
    single, _ = surface_up_m(en_m.astype(np.float32), coefficients, np.float32(2.0))
    assert single.dtype == np.float32
    assert np.abs(single - exact).max() < 0.005
    # A flat earth would be wrong by 785 m at 100 km.
    assert surface_up_m(np.array([1e5, 0.0]), coefficients, 0.0)[0] == pytest.approx(-785, abs=3)
