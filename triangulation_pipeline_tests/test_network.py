from pathlib import Path

import numpy as np
import pymap3d
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from triangulation_pipeline.network import (
    NORTH_WEST_ITALY,
    LocalFrame,
    ReceiverNetwork,
    random_network,
    read_network,
    surface_up_m,
)

DOCUMENT = NORTH_WEST_ITALY.model_dump(mode="json", exclude_none=True)


def changed(**first_site: object) -> dict:
    return {"name": "n", "sites": [DOCUMENT["sites"][0] | first_site, *DOCUMENT["sites"][1:]]}


def test_yaml_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "network.yaml"
    path.write_text(yaml.safe_dump(DOCUMENT, allow_unicode=True), encoding="utf-8")
    network = read_network(path)
    assert network == NORTH_WEST_ITALY
    assert network.digest == NORTH_WEST_ITALY.digest
    assert network.digest != ReceiverNetwork.model_validate(changed(altitude_m=601)).digest


@pytest.mark.parametrize(
    ("document", "parts"),
    [
        (changed(name="Torino"), ["sites", "unique", "Torino"]),
        (changed(lat=45.044, lon=7.672), ["same spot", "Torino", "Aquila di Giaveno"]),
        ({"name": "n", "sites": DOCUMENT["sites"][:2]}, ["3 to 64 sites", "2"]),
        (changed(lat=95), ["sites.0.lat", "95", "90"]),
        (changed(lon=float("nan")), ["sites.0.lon", "nan"]),
        (changed(timing="atomic"), ["sites.0.timing", "atomic", "gps"]),
        (changed(heigth_m=3), ["sites.0.heigth_m", "3"]),
        (changed(lat=10), ["20 degrees of latitude"]),
        ({"sites": DOCUMENT["sites"]}, ["name", "required"]),
        (["no", "mapping"], ["keys 'name' and 'sites'"]),
    ],
)
def test_a_bad_description_is_refused_in_one_sentence(tmp_path: Path, document: object, parts: list[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.yaml") as caught:
        read_network(path)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.yaml does not exist"):
        read_network(tmp_path / "none.yaml")
    path = tmp_path / "broken.yaml"
    path.write_text("name: [unclosed")
    with pytest.raises(ValueError, match=r"broken\.yaml is not valid YAML") as caught:
        read_network(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match="cannot be read"):
        read_network(path)


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
