import numpy as np
import pymap3d
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triangulation_pipeline.frame import haversine_m
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.geometry import (
    Geometry,
    covariance_m2,
    crlb_m,
    dilution,
    signal_strength_information,
    time_difference_information,
    toa_weight,
)

SEEDS = st.integers(0, 10_000)


def gradients(seed: int, n: int = 30) -> np.ndarray:
    """Range gradients (n, 7, 2) of the seven sites from random places."""
    area = NORTH_WEST_ITALY.service_area(20e3)
    rng = np.random.default_rng(seed)
    low, high = (area.east_min_m, area.north_min_m), (area.east_max_m, area.north_max_m)
    return Geometry(NORTH_WEST_ITALY, 2.0).ranges_m(rng.uniform(low, high, (n, 2)))[1]


def full_information(gradient: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """J = H^T W H (n, 3, 3) with rows [u, 1], the textbook way."""
    rows = np.concatenate([gradient, np.ones((*gradient.shape[:-1], 1))], axis=-1)
    return np.einsum("nri,nr,nrj->nij", rows, weight, rows)


def test_ranges_are_wgs84_slant_ranges() -> None:
    lat, lon = np.array([44.2, 45.6, 45.0]), np.array([7.0, 9.4, 8.2])
    en_m = NORTH_WEST_ITALY.frame.enu_m(lat, lon, 2.0)[:, :2]
    distance, gradient = Geometry(NORTH_WEST_ITALY, 2.0).ranges_m(en_m)
    for i, site in enumerate(NORTH_WEST_ITALY.sites):
        slant = pymap3d.geodetic2aer(site.lat, site.lon, site.altitude_m, lat, lon, 2.0)[2]
        np.testing.assert_allclose(distance[:, i], slant, atol=0.01)
    for axis in (0, 1):
        step = np.eye(2)[axis] * 5.0
        ahead, behind = (Geometry(NORTH_WEST_ITALY, 2.0).ranges_m(en_m + s)[0] for s in (step, -step))
        np.testing.assert_allclose(gradient[..., axis], (ahead - behind) / 10, atol=1e-5)


def test_haversine() -> None:
    assert haversine_m(0.0, 0.0, 0.0, 1.0) == pytest.approx(111_195.08, abs=0.01)
    assert haversine_m(0.0, 0.0, 1.0, 0.0) == pytest.approx(111_195.08, abs=0.01)
    # By the angle between the two directions from the middle of a sphere of 6,371,008.8 m.
    lat, lon = np.radians([[80.0, 20.0], [10.0, -60.0]])
    ways = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    assert haversine_m(80.0, 10.0, 20.0, -60.0) == pytest.approx(6_371_008.8 * np.arccos(ways[:, 0] @ ways[:, 1]))
    assert haversine_m(10.0, 179.5, 10.0, -179.5) == pytest.approx(haversine_m(10.0, 0.0, 10.0, 1.0))


@settings(max_examples=15)
@given(SEEDS)
def test_dilution_is_the_inverse_of_h_transposed_h(seed: int) -> None:
    gradient = gradients(seed)
    present = np.random.default_rng(seed).random((30, 7)) < 0.8
    hdop, gdop = dilution(gradient, present)
    enough = present.sum(1) >= 3
    assert np.isnan(hdop[~enough]).all()
    assert np.isnan(gdop[~enough]).all()
    information = full_information(gradient, present.astype(float))
    good = enough.copy()
    good[enough] = np.linalg.cond(information[enough]) < 1e9
    assert good[present.sum(1) > 3].mean() > 0.8
    q = np.linalg.inv(information[good])
    np.testing.assert_allclose(hdop[good], np.sqrt(q[:, 0, 0] + q[:, 1, 1]), rtol=1e-5)
    np.testing.assert_allclose(gdop[good], np.sqrt(np.trace(q, axis1=1, axis2=2)), rtol=1e-5)
    assert (hdop[good] >= 2 / np.sqrt(present.sum(1)[good]) - 1e-12).all()


def test_differencing_needs_the_correlated_covariance() -> None:
    gradient = gradients(0)
    hdop, _ = dilution(gradient, np.ones((30, 7), bool))
    difference = gradient[:, 1:] - gradient[:, :1]
    covariance = np.eye(6) + np.ones((6, 6))
    correct = np.linalg.inv(np.einsum("nri,rs,nsj->nij", difference, np.linalg.inv(covariance), difference))
    naive = np.linalg.inv(np.einsum("nri,nrj->nij", difference, difference))
    np.testing.assert_allclose(hdop, np.sqrt(np.trace(correct, axis1=1, axis2=2)), rtol=1e-9)
    assert (np.abs(np.sqrt(np.trace(naive, axis1=1, axis2=2)) / hdop - 1) > 0.01).any()


@settings(max_examples=15)
@given(SEEDS)
def test_another_receiver_never_makes_it_worse(seed: int) -> None:
    gradient = gradients(seed)
    fewer = np.random.default_rng(seed).random((30, 7)) < 0.6
    more = fewer.copy()
    more[:, seed % 7] = True
    for worse, better in zip(dilution(gradient, fewer), dilution(gradient, more), strict=True):
        known = ~np.isnan(worse)
        assert (better[known] <= worse[known] * (1 + 1e-9)).all()


def test_all_receivers_in_one_direction_give_no_dilution() -> None:
    gradient = np.tile([0.6, 0.8], (1, 5, 1))
    assert np.isnan(dilution(gradient, np.ones((1, 5), bool))).all()


def test_receivers_in_two_directions_give_no_dilution_and_no_bound() -> None:
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, (500, 2))[:, [0, 1, 1, 0]]
    gradient = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    assert np.isnan(dilution(gradient, np.ones((500, 4), bool))).all()
    assert np.isnan(crlb_m(time_difference_information(gradient, np.full((500, 4), 1e-4)))).all()


def test_three_receivers_all_around_are_enough() -> None:
    angle = 2 * np.pi * np.arange(3) / 3
    gradient = np.stack([np.cos(angle), np.sin(angle)], axis=-1)[None]
    hdop, gdop = dilution(gradient, np.ones((1, 3), bool))
    assert hdop == pytest.approx(np.sqrt(2 / 1.5))
    assert gdop == pytest.approx(np.sqrt(2 / 1.5 + 1 / 3))
    assert np.isnan(dilution(gradient, np.array([[True, True, False]]))).all()


def test_crlb_is_the_inverse_information() -> None:
    gradient, rng = gradients(3), np.random.default_rng(3)
    present, sigma_ns = rng.random((30, 7)) < 0.9, rng.uniform(50, 500, (30, 7))
    weight = toa_weight(present, sigma_ns)
    np.testing.assert_allclose(weight, present / (0.299792458 * sigma_ns) ** 2)
    information = time_difference_information(gradient, weight)
    covariance = np.linalg.inv(full_information(gradient, weight))
    np.testing.assert_allclose(crlb_m(information), np.sqrt(covariance[:, 0, 0] + covariance[:, 1, 1]), rtol=1e-7)
    np.testing.assert_allclose(covariance_m2(information), covariance[:, :2, :2], rtol=1e-6)
    for function in (crlb_m, covariance_m2):
        assert np.isnan(function(np.zeros((1, 2, 2)))).all()
        assert np.isnan(function(np.ones((1, 2, 2)))).all()


def test_level_information_is_that_of_the_correlated_covariance() -> None:
    gradient, rng = gradients(4), np.random.default_rng(4)
    distance_m, slope_db = rng.uniform(1e3, 1e5, (30, 7)), rng.uniform(10, 20, (30, 7))
    present = rng.random((30, 7)) < 0.8
    information = signal_strength_information(gradient, distance_m, present, slope_db, 6.0, 28.0)
    for i in range(30):
        rows = (slope_db[i] / distance_m[i])[:, None] * gradient[i]
        rows = rows[present[i]]
        covariance = 36 * np.eye(len(rows)) + 28.0
        expected = rows.T @ np.linalg.inv(covariance) @ rows
        np.testing.assert_allclose(information[i], expected, atol=1e-15)
