import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.stats import norm

from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Site, random_network
from triangulation_pipeline.physics.geometry import ranges_m
from triangulation_pipeline.physics.level import level_posterior_mean
from triangulation_pipeline.physics.mixture import (
    mixture_crlb_m,
    mixture_information,
    mixture_log_density,
    mixture_maximum_likelihood,
)
from triangulation_pipeline.physics.propagation import log_distance_loss_db, noise_floor_dbm
from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
from triangulation_pipeline.physics.simulator import DatasetSpec, simulate_chunk, site_constants
from triangulation_pipeline.physics.solvers import (
    HUBER_THRESHOLD,
    Fix,
    Loss,
    RobustCost,
    fit_site_biases_ns,
    gauss_newton,
    huber_cost,
    linear_cost,
    power_weighted_centroid,
    strongest_receiver,
)
from triangulation_pipeline.samples import SampleBatch

HEIGHT_M = 2.0
NO_BIAS = np.zeros(7)


def simulated(preset: Preset, n: int, seed: int = 0) -> SampleBatch:
    return simulate_chunk(DatasetSpec(NORTH_WEST_ITALY, PRESETS[preset], n, seed), 0).batch


def truth_of(batch: SampleBatch) -> np.ndarray:
    return NORTH_WEST_ITALY.frame.enu_m(batch.tx_lat, batch.tx_lon, HEIGHT_M)[:, :2]


def errors_m(fix: Fix, batch: SampleBatch) -> np.ndarray:
    return np.hypot(*(fix.en_m - truth_of(batch)).T)


def nees_of(fix: Fix, batch: SampleBatch) -> np.ndarray:
    error = fix.en_m - truth_of(batch)
    return np.einsum("ni,nij,nj->n", error, np.linalg.inv(fix.covariance_m2), error)


def noiseless(batch: SampleBatch) -> SampleBatch:
    exact_ns = ranges_m(NORTH_WEST_ITALY, truth_of(batch), HEIGHT_M)[0] / 0.299792458 + 12_345.0
    return replace(batch, toa_ns=np.where(batch.toa_present, exact_ns, 0.0))


@pytest.fixture(scope="module")
def default() -> SampleBatch:
    return simulated(Preset.default, 3000)


@pytest.fixture(scope="module")
def line_of_sight() -> SampleBatch:
    return simulated(Preset.line_of_sight, 3000)


@pytest.fixture(scope="module")
def bias_ns() -> np.ndarray:
    return site_constants(NORTH_WEST_ITALY, PRESETS[Preset.default]).toa_bias_ns


def test_exact_arrival_times_give_the_position(default: SampleBatch) -> None:
    batch = noiseless(default.take(default.gdop < 5).take(slice(0, 300)))
    for loss in Loss:
        fix = gauss_newton(NORTH_WEST_ITALY, batch, HEIGHT_M, NO_BIAS, loss)
        assert errors_m(fix, batch).max() < 0.01
        assert fix.cost.max() < 1e-6
    fix = mixture_maximum_likelihood(NORTH_WEST_ITALY, batch, HEIGHT_M, NO_BIAS, 0.1, 500.0)
    assert np.median(errors_m(fix, batch)) < 5


def test_too_few_arrival_times_give_null() -> None:
    batch = simulated(Preset.valley, 40)
    few = batch.toa_present & (np.cumsum(batch.toa_present, axis=1) <= 2)
    batch = replace(batch, toa_present=np.where(np.arange(40)[:, None] < 10, few, batch.toa_present))
    for fix in (
        gauss_newton(NORTH_WEST_ITALY, batch, HEIGHT_M, NO_BIAS, Loss.huber),
        mixture_maximum_likelihood(NORTH_WEST_ITALY, batch, HEIGHT_M, NO_BIAS, 0.1, 500.0),
    ):
        assert np.isnan(fix.en_m[:10]).all()
        assert np.isnan(fix.cost[:10]).all()
        assert np.isnan(fix.covariance_m2[:10]).all()
        assert np.isfinite(fix.en_m[10:]).all()
    none = replace(batch, toa_present=np.zeros_like(batch.toa_present))
    assert np.isnan(gauss_newton(NORTH_WEST_ITALY, none, HEIGHT_M, NO_BIAS, Loss.linear).en_m).all()
    empty = batch.take(slice(0, 0))
    assert gauss_newton(NORTH_WEST_ITALY, empty, HEIGHT_M, NO_BIAS, Loss.huber).en_m.shape == (0, 2)


@pytest.mark.parametrize("cost_of", [linear_cost, huber_cost])
def test_slopes_are_the_derivatives_of_the_costs(cost_of: RobustCost) -> None:
    residual_m, weight = np.linspace(-100, 100, 20_001), np.full(20_001, 1 / 15.0**2)
    cost, slope, curvature = cost_of(residual_m, weight)
    np.testing.assert_allclose(slope[1:-1], np.gradient(cost, residual_m)[1:-1], atol=1e-4)
    assert (curvature <= weight).all()
    assert cost[11_500] == pytest.approx(0.5)  # one standard deviation
    assert slope[-1] * 15 == pytest.approx(HUBER_THRESHOLD if cost_of is huber_cost else 100 / 15)


def test_least_squares_finds_what_scipy_finds(line_of_sight: SampleBatch) -> None:
    batch = line_of_sight.take(line_of_sight.gdop < 5).take(slice(0, 10))
    fix = gauss_newton(NORTH_WEST_ITALY, batch, HEIGHT_M, NO_BIAS, Loss.linear)
    for i, start in enumerate(truth_of(batch)):
        seen = batch.toa_present[i]
        sigma_m = 0.299792458 * batch.toa_sigma_ns[i, seen].astype(float)
        arrived_m = 0.299792458 * batch.toa_ns[i, seen]

        def residual(x: np.ndarray, seen=seen, sigma_m=sigma_m, arrived_m=arrived_m) -> np.ndarray:
            return (arrived_m - ranges_m(NORTH_WEST_ITALY, x[:2], HEIGHT_M)[0][seen] - x[2]) / sigma_m

        offset_m = np.mean(residual(np.append(start, 0.0)) * sigma_m)
        best = least_squares(residual, np.append(start, offset_m), x_scale=(100, 100, 100), xtol=1e-14, ftol=1e-14)
        np.testing.assert_allclose(fix.en_m[i], best.x[:2], atol=0.1)
        assert fix.cost[i] == pytest.approx(best.cost, rel=1e-5)


def test_line_of_sight_errors_meet_the_bound_and_the_covariance(
    line_of_sight: SampleBatch, bias_ns: np.ndarray
) -> None:
    batch = line_of_sight.take(line_of_sight.gdop < 5)
    bound_m = mixture_crlb_m(NORTH_WEST_ITALY, truth_of(batch), HEIGHT_M, batch, 0.0, 500.0)
    linear = gauss_newton(NORTH_WEST_ITALY, batch, HEIGHT_M, bias_ns, Loss.linear)
    likeliest = mixture_maximum_likelihood(NORTH_WEST_ITALY, batch, HEIGHT_M, bias_ns, 0.0, 500.0)
    for fix in (linear, likeliest):
        assert np.sqrt(np.mean((errors_m(fix, batch) / bound_m) ** 2)) == pytest.approx(1, abs=0.04)
        nees = nees_of(fix, batch)
        assert nees.mean() == pytest.approx(2, abs=0.15)
        assert np.mean(nees <= 5.991) == pytest.approx(0.95, abs=0.015)


def test_site_biases_are_recovered(default: SampleBatch, bias_ns: np.ndarray) -> None:
    fitted = fit_site_biases_ns(NORTH_WEST_ITALY, default, HEIGHT_M)
    assert fitted.sum() == pytest.approx(0, abs=1e-9)
    # 3,000 arrivals of 50 to 100 ns each.
    np.testing.assert_allclose(fitted, bias_ns - bias_ns.mean(), atol=6)
    silent = default.toa_present & (np.arange(7) != 2)
    fitted = fit_site_biases_ns(NORTH_WEST_ITALY, replace(default, toa_present=silent), HEIGHT_M)
    others = np.arange(7) != 2
    assert fitted[2] == 0
    np.testing.assert_allclose(fitted[others], (bias_ns - bias_ns[others].mean())[others], atol=6)


def test_robust_solvers_stand_delays(default: SampleBatch, bias_ns: np.ndarray) -> None:
    batch = default.take(default.gdop < 5)
    p95 = {
        loss: np.percentile(errors_m(gauss_newton(NORTH_WEST_ITALY, batch, HEIGHT_M, bias_ns, loss), batch), 95)
        for loss in Loss
    }
    mixture = errors_m(mixture_maximum_likelihood(NORTH_WEST_ITALY, batch, HEIGHT_M, bias_ns, 0.1, 500.0), batch)
    assert p95[Loss.huber] < 0.85 * p95[Loss.linear]
    assert np.percentile(mixture, 95) < 0.8 * p95[Loss.huber]


def test_starting_at_the_truth_gives_the_reference_table(default: SampleBatch, bias_ns: np.ndarray) -> None:
    batch = default.take(default.gdop < 5)
    fix = mixture_maximum_likelihood(NORTH_WEST_ITALY, batch, HEIGHT_M, bias_ns, 0.1, 500.0, truth_of(batch))
    error = errors_m(fix, batch)
    assert 19 < np.median(error) < 23
    assert 80 < np.percentile(error, 95) < 105
    assert 40 < np.sqrt(np.mean(error**2)) < 54


def test_many_starts_find_the_best_cost(default: SampleBatch, bias_ns: np.ndarray) -> None:
    batch = default.take(default.gdop < 5).take(slice(0, 1000))
    arguments = (NORTH_WEST_ITALY, batch, HEIGHT_M, bias_ns, 0.1, 500.0)
    from_truth = mixture_maximum_likelihood(*arguments, truth_of(batch))
    assert np.mean(mixture_maximum_likelihood(*arguments).cost > from_truth.cost + 0.01) < 0.005


def test_mixture_density_is_a_density_and_its_slope_is_exact() -> None:
    error = np.linspace(-1000, 15_000, 160_001)
    for sigma in (30.0, 100.0, 2000.0):
        wide = np.linspace(-20 * sigma, 20 * sigma + 20_000, 400_001)
        log_density, _ = mixture_log_density(wide, sigma, 0.3, 500.0)
        assert np.trapezoid(np.exp(log_density), wide) == pytest.approx(1, abs=1e-6)
        log_density, slope = mixture_log_density(error, sigma, 0.3, 500.0)
        np.testing.assert_allclose(slope[1:-1], np.gradient(log_density, error)[1:-1], atol=2e-4 / sigma + 1e-6)
    assert np.isfinite(mixture_log_density(np.array([-1e6, 1e6]), 1.0, 0.1, 500.0)).all()


def test_mixture_information() -> None:
    sigma_ns = np.array([50.0, 87.0, 400.0, 3000.0])
    np.testing.assert_allclose(mixture_information(sigma_ns, 0.0, 500.0), 1 / sigma_ns**2)
    information = mixture_information(sigma_ns, 0.2, 500.0)
    assert (information < 1 / sigma_ns**2).all()
    rng = np.random.default_rng(0)
    for sigma, expected in zip(sigma_ns, information, strict=True):
        error = sigma * rng.standard_normal(200_000) + rng.exponential(500, 200_000) * (rng.random(200_000) < 0.2)
        assert np.mean(mixture_log_density(error, sigma, 0.2, 500.0)[1] ** 2) == pytest.approx(expected, rel=0.02)


def test_mixture_bound_lies_above_the_gaussian_one(default: SampleBatch) -> None:
    truth = truth_of(default)
    with_delays = mixture_crlb_m(NORTH_WEST_ITALY, truth, HEIGHT_M, default, 0.1, 500.0)
    without = mixture_crlb_m(NORTH_WEST_ITALY, truth, HEIGHT_M, default, 0.0, 500.0)
    known = ~np.isnan(without)
    assert (with_delays[known] > without[known]).all()


def test_simple_rivals_and_their_null() -> None:
    batch = simulated(Preset.rss, 500)
    silent = replace(batch, signal_present=batch.signal_present & (np.arange(500) >= 5)[:, None])
    for rival in (power_weighted_centroid, strongest_receiver):
        en_m = rival(NORTH_WEST_ITALY, silent)
        assert np.isnan(en_m[:5]).all()
        sites = NORTH_WEST_ITALY.site_enu_m[:, :2]
        assert (en_m[5:] >= sites.min(0) - 1e-6).all()
        assert (en_m[5:] <= sites.max(0) + 1e-6).all()


def test_level_posterior_is_the_best_by_levels() -> None:
    scenario = Scenario(features="rss", path_loss_exponent=4.0)
    batch = simulate_chunk(DatasetSpec(NORTH_WEST_ITALY, scenario, 1500, 0), 0).batch
    gains_db = site_constants(NORTH_WEST_ITALY, scenario).gain_offset_db

    def rmse_m(en_m: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.sum((en_m - truth_of(batch)) ** 2, axis=1))))

    fine, coarse = (level_posterior_mean(NORTH_WEST_ITALY, batch, scenario, gains_db, cells) for cells in (32, 16))
    assert rmse_m(fine) == pytest.approx(rmse_m(coarse), rel=0.01)
    assert rmse_m(fine) < 0.85 * rmse_m(power_weighted_centroid(NORTH_WEST_ITALY, batch))
    # Nothing may beat the posterior mean under its own model: neither wrong gains nor a shrunken answer.
    assert rmse_m(fine) < rmse_m(level_posterior_mean(NORTH_WEST_ITALY, batch, scenario, -gains_db, 16))
    middle = fine.mean(0)
    assert rmse_m(fine) < min(rmse_m(middle + scale * (fine - middle)) for scale in (0.9, 1.1))
    # Without shadowing but for 0.5 dB, levels do locate.
    quiet = Scenario(features="rss", shadowing_link_db=0.5, shadowing_common_db=0, detection_width_db=0.1)
    batch = simulate_chunk(DatasetSpec(NORTH_WEST_ITALY, quiet, 200, 0), 0).batch
    assert rmse_m(level_posterior_mean(NORTH_WEST_ITALY, batch, quiet, gains_db, 64)) < 4000


def test_level_posterior_equals_the_integral_written_out() -> None:
    scenario = Scenario(features="rss", path_loss_exponent=4.5)
    batch = simulate_chunk(DatasetSpec(NORTH_WEST_ITALY, scenario, 3, 0), 0).batch
    gains_db = site_constants(NORTH_WEST_ITALY, scenario).gain_offset_db
    area, cells = NORTH_WEST_ITALY.service_area(20e3), 6
    middles = (np.arange(cells) + 0.5) / cells
    east_m = area.east_min_m + middles * (area.east_max_m - area.east_min_m)
    north_m = area.north_min_m + middles * (area.north_max_m - area.north_min_m)
    cell_en_m = np.array([(e, n) for e in east_m for n in north_m])
    distance_km = ranges_m(NORTH_WEST_ITALY, cell_en_m, HEIGHT_M)[0] / 1e3
    level_dbm = np.linspace(15, 70, 1101)
    prior = sum(
        share * norm.pdf(level_dbm, power_dbm, 4.0)
        for share, power_dbm in zip(scenario.tx_power_share, scenario.tx_power_dbm, strict=True)
    )
    median_dbm = level_dbm + (4 + gains_db - log_distance_loss_db(distance_km, 145.0, 4.5))[..., None]
    missed = norm.sf(median_dbm - noise_floor_dbm(scenario, 5.5) - 6, scale=np.hypot(6, 1.5))
    got_m = level_posterior_mean(NORTH_WEST_ITALY, batch, scenario, gains_db, cells)
    for i in range(3):
        heard = norm.pdf(batch.power_dbm[i, :, None], median_dbm, 6.0)
        likelihood = np.where(batch.signal_present[i, :, None], heard, missed).prod(1)
        posterior = likelihood @ prior
        np.testing.assert_allclose(got_m[i], posterior @ cell_en_m / posterior.sum(), atol=100)


def test_another_network_works_as_well() -> None:
    network = random_network(5, seed=2, extent_km=80)
    batch = simulate_chunk(DatasetSpec(network, PRESETS[Preset.line_of_sight], 400, 0), 0).batch
    bias_ns = site_constants(network, PRESETS[Preset.line_of_sight]).toa_bias_ns
    fix = gauss_newton(network, batch, HEIGHT_M, bias_ns, Loss.huber)
    truth = network.frame.enu_m(batch.tx_lat, batch.tx_lon, HEIGHT_M)[:, :2]
    good = batch.gdop < 5
    assert np.median(np.hypot(*(fix.en_m - truth).T)[good]) < 60


def test_a_step_off_the_earth_is_not_taken() -> None:
    """Of sites 2,000 km apart a trial step may end where the tangent plane has no ground under it."""
    network = ReceiverNetwork(
        name="wide",
        sites=tuple(
            Site(name=f"{lat} {lon}", lat=lat, lon=lon) for lat, lon in ((38, -9), (38, 9), (52, -8), (52, 9), (45, 0))
        ),
    )
    scenario = PRESETS[Preset.default].model_copy(update={"path_loss_exponent": 2.0})
    batch = simulate_chunk(DatasetSpec(network, scenario, num_samples=1500, seed=0), 0).batch
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fix = gauss_newton(network, batch, scenario.tx_height_m, np.zeros(5), Loss.linear)
    assert np.isfinite(fix.en_m).all(1).mean() > 0.9
