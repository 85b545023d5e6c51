import numpy as np
import pymap3d
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triangulation_pipeline.frame import LocalFrame, surface_up_m
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Site, Timing, random_network


def network_of(*places: tuple[float, float], names: str = "abcdefgh") -> ReceiverNetwork:
    sites = [Site(name=name, lat=lat, lon=lon) for name, (lat, lon) in zip(names, places, strict=False)]
    return ReceiverNetwork(name="n", sites=tuple(sites))


ALPS = ((45.0, 7.0), (45.2, 7.9), (44.6, 8.3))


def test_the_digest_is_of_the_description() -> None:
    assert network_of(*ALPS).digest == network_of(*ALPS).digest
    assert network_of(*ALPS).digest != network_of((45.0, 7.001), *ALPS[1:]).digest


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
    assert untimed.oddities()[0].startswith("0 of the 4 sites have timing: gps; without three the network locates by")


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


@pytest.mark.parametrize("twin", ["A", "\uff41", "a\u200d"], ids=["case", "width", "joiner"])
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
    with pytest.raises(ValueError, match="sites must be 3 to 64, got 2"):
        random_network(2, seed=0)


def test_service_area_is_the_sites_box_and_margin() -> None:
    area = NORTH_WEST_ITALY.service_area(20e3)
    inner = NORTH_WEST_ITALY.service_area(0.0)
    assert inner.east_min_m - area.east_min_m == pytest.approx(20e3)
    assert 140e3 < inner.east_max_m - inner.east_min_m < 155e3
    assert 110e3 < inner.north_max_m - inner.north_min_m < 130e3


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
