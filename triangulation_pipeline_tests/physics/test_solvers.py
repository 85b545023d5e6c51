import warnings
from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.optimize import least_squares, minimize_scalar
from scipy.stats import exponnorm, norm

from triangulation_pipeline.calibration import calibrated
from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Site, random_network
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.posterior import exact_posterior
from triangulation_pipeline.physics.propagation import distance_range_km, noise_floor_dbm, path_loss_function
from triangulation_pipeline.physics.scenario import PRESETS, ExcessDelay, Preset, Scenario
from triangulation_pipeline.physics.simulator import simulate_chunk
from triangulation_pipeline.physics.solvers.descent import (
    Fix,
    RobustCost,
    arrivals,
    best_descent,
    huber_cost,
    linear_cost,
    make_fix,
)
from triangulation_pipeline.physics.solvers.gauss_newton import Loss, covering_points, gauss_newton
from triangulation_pipeline.physics.solvers.mixture import (
    mixture_crlb_m,
    mixture_information,
    mixture_log_density,
    mixture_maximum_likelihood,
)
from triangulation_pipeline.physics.solvers.signal_strength import power_weighted_centroid, strongest_receiver
from triangulation_pipeline.positions.points import Positions
from triangulation_pipeline.samples import Samples

HEIGHT_M = 2.0
GROUND = Geometry(NORTH_WEST_ITALY, HEIGHT_M)
DELAYED, IN_SIGHT = ExcessDelay(0.1, 500.0), ExcessDelay(0.0, 500.0)


def simulated(preset: Preset, n: int, seed: int = 0) -> Samples:
    return simulate_chunk(DatasetSpec(NORTH_WEST_ITALY, PRESETS[preset], n, seed), 0).batch


def truth_of(batch: Samples) -> np.ndarray:
    return NORTH_WEST_ITALY.frame.enu_m(batch.tx_lat, batch.tx_lon, HEIGHT_M)[:, :2]


def errors_m(fix: Fix, batch: Samples) -> np.ndarray:
    return np.hypot(*(fix.en_m - truth_of(batch)).T)


def nees_of(fix: Fix, batch: Samples) -> np.ndarray:
    error = fix.en_m - truth_of(batch)
    return np.einsum("ni,nij,nj->n", error, np.linalg.inv(fix.covariance_m2), error)


def noiseless(batch: Samples) -> Samples:
    exact_ns = GROUND.ranges_m(truth_of(batch))[0] / 0.299792458 + 12_345.0
    return replace(batch, toa_ns=np.where(batch.toa_present, exact_ns, 0.0))


@pytest.fixture(scope="module")
def default() -> Samples:
    return simulated(Preset.default, 3000)


@pytest.fixture(scope="module")
def line_of_sight() -> Samples:
    return simulated(Preset.line_of_sight, 3000)


def test_exact_arrival_times_give_the_position(default: Samples) -> None:
    batch = noiseless(default.take(default.gdop < 5).take(slice(0, 300)))
    for loss in Loss:
        fix = gauss_newton(GROUND, batch, loss)
        assert errors_m(fix, batch).max() < 0.01
        assert fix.cost.max() < 1e-6
    fix = mixture_maximum_likelihood(GROUND, batch, DELAYED)
    assert np.median(errors_m(fix, batch)) < 5


def test_too_few_arrival_times_give_null() -> None:
    batch = simulated(Preset.valley, 40)
    few = batch.toa_present & (np.cumsum(batch.toa_present, axis=1) <= 2)
    batch = replace(batch, toa_present=np.where(np.arange(40)[:, None] < 10, few, batch.toa_present))
    for fix in (
        gauss_newton(GROUND, batch, Loss.huber),
        mixture_maximum_likelihood(GROUND, batch, DELAYED),
    ):
        assert np.isnan(fix.en_m[:10]).all()
        assert np.isnan(fix.cost[:10]).all()
        assert np.isnan(fix.covariance_m2[:10]).all()
        assert np.isfinite(fix.en_m[10:]).all()
    none = replace(batch, toa_present=np.zeros_like(batch.toa_present))
    assert np.isnan(gauss_newton(GROUND, none, Loss.linear).en_m).all()
    empty = batch.take(slice(0, 0))
    assert gauss_newton(GROUND, empty, Loss.huber).en_m.shape == (0, 2)


def test_arrivals_are_ranges(default: Samples) -> None:
    some = default.toa_present & (np.cumsum(default.toa_present, axis=1) <= 3)
    batch = replace(default.take(slice(0, 40)), toa_present=some[:40])
    few = batch.toa_present & (np.cumsum(batch.toa_present, axis=1) <= 2)
    batch = replace(batch, toa_present=np.where(np.arange(40)[:, None] % 4 == 0, few, batch.toa_present))
    data = arrivals(batch)
    np.testing.assert_array_equal(data.rows, np.flatnonzero(np.arange(40) % 4 != 0))
    present = batch.toa_present[data.rows]
    expected_m = 0.299792458 * batch.toa_ns[data.rows]
    np.testing.assert_allclose(data.range_m[present], expected_m[present])
    np.testing.assert_allclose(
        data.weight[present], (0.299792458 * batch.toa_sigma_ns[data.rows][present]) ** -2.0, 1e-6
    )
    assert (data.weight[~present] == 0).all()


def heard_from(en_m: np.ndarray, batch: Samples) -> Samples:
    """The first rows of the batch with the exact arrival times, to 10 ns, of transmitters at these places."""
    rows = batch.take(slice(0, len(en_m)))
    exact_ns = GROUND.ranges_m(en_m)[0] / 0.299792458 + 12_345.0
    every = np.ones((len(en_m), 7), bool)
    sigma_ns = np.full((len(en_m), 7), 10, np.float32)
    return replace(rows, toa_ns=exact_ns, toa_present=every, signal_present=every, toa_sigma_ns=sigma_ns)


@pytest.mark.parametrize("direction", [(1, 0), (-1, 0), (0, 1), (0, -1)], ids=["east", "west", "north", "south"])
def test_a_fix_absurdly_far_away_is_none(default: Samples, direction: tuple[int, int]) -> None:
    """Further outside the sites' bounding box than three of its diagonals: only such a place fits the second row."""
    box = NORTH_WEST_ITALY.service_area(0.0)
    size_m = np.array([box.east_max_m - box.east_min_m, box.north_max_m - box.north_min_m])
    middle_m = np.array([box.east_max_m + box.east_min_m, box.north_max_m + box.north_min_m]) / 2
    outside_m = np.hypot(*size_m) * np.array([[2.8], [3.2]])
    en_m = middle_m + np.array(direction) * (size_m / 2 + outside_m)
    batch = heard_from(en_m, default)
    fixes = [mixture_maximum_likelihood(GROUND, batch, DELAYED, en_m)]
    if direction != (-1, 0):  # where a start of its own ends in a worse place, not far away
        fixes.append(gauss_newton(GROUND, batch, Loss.linear))
    for fix in fixes:
        assert np.hypot(*(fix.en_m[0] - en_m[0])) < 100
        assert np.isfinite(fix.covariance_m2[0]).all()
        assert np.isfinite(fix.cost[0])
        assert np.isnan(fix.en_m[1]).all()
        assert np.isnan(fix.cost[1])
        assert np.isnan(fix.covariance_m2[1]).all()


def test_a_start_that_is_none_gives_none(default: Samples) -> None:
    batch = default.take(default.gdop < 5).take(slice(0, 4))
    start_m = np.where(np.arange(4)[:, None] == 2, np.nan, truth_of(batch))
    # The first row has two arrival times only.
    few = batch.toa_present & (np.cumsum(batch.toa_present, axis=1) <= 2)
    batch = replace(batch, toa_present=np.where(np.arange(4)[:, None] == 0, few, batch.toa_present))
    fix = mixture_maximum_likelihood(GROUND, batch, DELAYED, start_m)
    assert np.isnan(fix.en_m).all(1).tolist() == [True, False, True, False]
    assert np.isnan(fix.cost).tolist() == [True, False, True, False]
    bound_m = mixture_crlb_m(GROUND, truth_of(batch), batch, DELAYED)
    assert np.isnan(bound_m).tolist() == [True, False, False, False]


def test_of_two_places_that_fit_the_earlier_start_wins() -> None:
    """Three arrival times at a triangle may fit two places perfectly."""
    network = ReceiverNetwork(
        name="triangle",
        sites=tuple(Site(name=f"{lon}", lat=lat, lon=lon) for lat, lon in ((45, 7), (45, 8), (45.4, 7.5))),
    )
    batch = simulate_chunk(DatasetSpec(network, PRESETS[Preset.line_of_sight], 300, 0), 0).batch
    data = arrivals(batch)
    exact_m = Geometry(network, HEIGHT_M).ranges_m(network.frame.enu_m(batch.tx_lat, batch.tx_lon, HEIGHT_M)[:, :2])[0]
    data = replace(data, range_m=exact_m[data.rows])
    points = [np.broadcast_to(point, (len(data.rows), 2)) for point in covering_points(network)]
    alone = [best_descent(Geometry(network, HEIGHT_M), data, linear_cost, [point])[:2] for point in points]
    fits = np.array([cost < 1e-6 for _, cost in alone])
    places_m = np.array([en_m for en_m, _ in alone])
    apart_m = np.hypot(*(places_m[0] - places_m[-1]).T)
    rows = fits[0] & fits[-1] & (apart_m > 1000)
    assert rows.any()
    for order in ([0, -1], [-1, 0]):
        en_m, cost, _ = best_descent(Geometry(network, HEIGHT_M), data, linear_cost, [points[i] for i in order])
        np.testing.assert_allclose(en_m[rows], places_m[order[0]][rows])
        assert (cost[rows] < 1e-6).all()


def test_starts_cover_the_sites_and_a_fifth_around() -> None:
    box = NORTH_WEST_ITALY.service_area(0.0)
    width_m, height_m = box.east_max_m - box.east_min_m, box.north_max_m - box.north_min_m
    margin_m = 0.2 * max(width_m, height_m)
    east_m = box.east_min_m - margin_m + (width_m + 2 * margin_m) * np.array([1, 3, 5]) / 6
    north_m = box.north_min_m - margin_m + (height_m + 2 * margin_m) * np.array([1, 3, 5]) / 6
    np.testing.assert_allclose(covering_points(NORTH_WEST_ITALY), [(e, n) for n in north_m for e in east_m])


def test_the_covariance_alone_is_none_in_a_degenerate_geometry(default: Samples) -> None:
    batch = default.take(default.gdop < 5).take(slice(0, 3))
    data = arrivals(batch)
    weight = np.where(np.arange(7) == 2, data.weight, 0.0)  # what one site says
    weight[1] = data.weight[1]
    truth_m = truth_of(batch)
    fix = make_fix(GROUND, data, 3, truth_m, np.arange(3.0), weight)
    np.testing.assert_array_equal(fix.en_m, truth_m)
    assert fix.cost.tolist() == [0, 1, 2]
    assert np.isnan(fix.covariance_m2).all((1, 2)).tolist() == [True, False, True]
    rows = np.append(GROUND.ranges_m(truth_m[1])[1], np.ones((7, 1)), axis=1)
    expected = np.linalg.inv(rows.T @ (data.weight[1][:, None] * rows))[:2, :2]
    np.testing.assert_allclose(fix.covariance_m2[1], expected, rtol=1e-6)


@pytest.mark.parametrize("cost_of", [linear_cost, huber_cost])
def test_slopes_are_the_derivatives_of_the_costs(cost_of: RobustCost) -> None:
    residual_m, weight = np.linspace(-100, 100, 20_001), np.full(20_001, 1 / 15.0**2)
    cost, slope, curvature = cost_of(residual_m, weight)
    np.testing.assert_allclose(slope[1:-1], np.gradient(cost, residual_m)[1:-1], atol=1e-4)
    assert (curvature <= weight).all()
    assert cost[11_500] == pytest.approx(0.5)  # one standard deviation
    assert slope[-1] * 15 == pytest.approx(1.345 if cost_of is huber_cost else 100 / 15)


@pytest.mark.parametrize("loss", Loss)
def test_equal_measurements_get_the_fixes_they_always_got(loss: Loss) -> None:
    """If they do not, SOLVERS_VERSION must be raised. Three arrivals often fit two places, so which start wins, and how
    far it steps, is seen; counts, since numbers may differ in their last digits from machine to machine."""
    batch = simulated(Preset.valley, 8192)
    batch = batch.take(batch.toa_present.sum(1) == 3).take(slice(0, 400))
    error_m = errors_m(gauss_newton(GROUND, batch, loss), batch)
    assert np.isfinite(error_m).all()
    expected = {Loss.linear: (159, 275), Loss.huber: (157, 272)}
    assert ((error_m < 200).sum(), (error_m < 5000).sum()) == expected[loss]


@pytest.mark.parametrize("loss", Loss)
def test_least_squares_finds_what_scipy_finds(default: Samples, loss: Loss) -> None:
    batch = default.take(default.gdop < 5).take(slice(0, 12))
    fix = gauss_newton(GROUND, batch, loss)
    for i, start in enumerate(truth_of(batch)):
        seen = batch.toa_present[i]
        sigma_m = 0.299792458 * batch.toa_sigma_ns[i, seen].astype(float)
        arrived_m = 0.299792458 * batch.toa_ns[i, seen]

        def residual(x: np.ndarray, seen=seen, sigma_m=sigma_m, arrived_m=arrived_m) -> np.ndarray:
            return (arrived_m - GROUND.ranges_m(x[:2])[0][seen] - x[2]) / sigma_m

        offset_m = np.mean(residual(np.append(start, 0.0)) * sigma_m)
        best = least_squares(
            residual,
            np.append(start, offset_m),
            x_scale=(100, 100, 100),
            xtol=1e-14,
            ftol=1e-14,
            loss=loss.value,
            f_scale=1.345,
        )
        np.testing.assert_allclose(fix.en_m[i], best.x[:2], atol=0.5)
        # The covariance is that of the weights with which the residuals count in the end.
        deviations = np.abs(residual(best.x))
        weight = (1 if loss is Loss.linear else np.minimum(1, 1.345 / deviations)) / sigma_m**2
        rows = np.append(GROUND.ranges_m(best.x[:2])[1][seen], np.ones((seen.sum(), 1)), axis=1)
        covariance_m2 = np.linalg.inv(rows.T @ (weight[:, None] * rows))[:2, :2]
        np.testing.assert_allclose(fix.covariance_m2[i], covariance_m2, rtol=0.01, atol=0.01 * covariance_m2.max())
        assert fix.cost[i] == pytest.approx(best.cost, rel=1e-4)


def test_line_of_sight_errors_meet_the_bound_and_the_covariance(line_of_sight: Samples) -> None:
    batch = line_of_sight.take(line_of_sight.gdop < 5)
    bound_m = mixture_crlb_m(GROUND, truth_of(batch), batch, IN_SIGHT)
    linear = gauss_newton(GROUND, batch, Loss.linear)
    likeliest = mixture_maximum_likelihood(GROUND, batch, IN_SIGHT)
    for fix in (linear, likeliest):
        assert np.sqrt(np.mean((errors_m(fix, batch) / bound_m) ** 2)) == pytest.approx(1, abs=0.04)
        nees = nees_of(fix, batch)
        assert nees.mean() == pytest.approx(2, abs=0.15)
        assert np.mean(nees <= 5.991) == pytest.approx(0.95, abs=0.015)


def test_robust_solvers_stand_delays(default: Samples) -> None:
    batch = default.take(default.gdop < 5)
    p95 = {loss: np.percentile(errors_m(gauss_newton(GROUND, batch, loss), batch), 95) for loss in Loss}
    mixture = errors_m(mixture_maximum_likelihood(GROUND, batch, DELAYED), batch)
    assert p95[Loss.huber] < 0.85 * p95[Loss.linear]
    assert np.percentile(mixture, 95) < 0.8 * p95[Loss.huber]


def test_starting_at_the_truth_gives_the_reference_table(default: Samples) -> None:
    batch = default.take(default.gdop < 5)
    fix = mixture_maximum_likelihood(GROUND, batch, DELAYED, truth_of(batch))
    error = errors_m(fix, batch)
    assert 19 < np.median(error) < 23
    assert 80 < np.percentile(error, 95) < 105
    assert 40 < np.sqrt(np.mean(error**2)) < 54


def test_many_starts_find_the_best_cost(default: Samples) -> None:
    batch = default.take(default.gdop < 5).take(slice(0, 1000))
    arguments = (GROUND, batch, DELAYED)
    from_truth = mixture_maximum_likelihood(*arguments, truth_of(batch))
    assert np.mean(mixture_maximum_likelihood(*arguments).cost > from_truth.cost + 0.01) < 0.005


@pytest.mark.parametrize(("sigma", "probability", "mean"), [(50.0, 0.1, 500.0), (400.0, 0.7, 60.0), (50.0, 0.0, 500.0)])
def test_the_mixture_is_a_gaussian_and_one_with_an_exponential_delay(
    sigma: float, probability: float, mean: float
) -> None:
    error = np.linspace(-4 * sigma, 4 * sigma + 6 * mean, 200)
    direct, delayed = norm.pdf(error, scale=sigma), exponnorm.pdf(error, mean / sigma, scale=sigma)
    got = np.exp(mixture_log_density(error, sigma, probability, mean)[0])
    np.testing.assert_allclose(got, (1 - probability) * direct + probability * delayed, rtol=1e-9)


def test_the_likeliest_place_has_its_likelihood_and_the_bound_for_covariance(
    default: Samples,
) -> None:
    batch = default.take(default.gdop < 5).take(slice(0, 20))
    truth_m = truth_of(batch)
    fix = mixture_maximum_likelihood(GROUND, batch, DELAYED, truth_m)
    bound_m = mixture_crlb_m(GROUND, fix.en_m, batch, DELAYED)
    np.testing.assert_allclose(np.sqrt(np.trace(fix.covariance_m2, axis1=1, axis2=2)), bound_m, rtol=1e-6)
    for i in range(20):
        seen = batch.toa_present[i]
        sigma_m = 0.299792458 * batch.toa_sigma_ns[i, seen].astype(float)
        arrived_m = 0.299792458 * batch.toa_ns[i, seen]

        def least_cost(en_m: np.ndarray, seen=seen, sigma_m=sigma_m, arrived_m=arrived_m) -> float:
            residual_m = arrived_m - GROUND.ranges_m(en_m)[0][seen]

            def cost(offset_m: float) -> float:
                error_m = residual_m - offset_m
                delayed = exponnorm.pdf(error_m, 0.299792458 * 500 / sigma_m, scale=sigma_m)
                return -np.log(0.9 * norm.pdf(error_m, scale=sigma_m) + 0.1 * delayed).sum()

            near_m = np.median(residual_m)
            return min(
                minimize_scalar(cost, bounds=(near_m + low, near_m + low + 50), method="bounded").fun
                for low in range(-200, 100, 50)
            )

        assert fix.cost[i] == pytest.approx(least_cost(fix.en_m[i]), abs=1e-3)
        assert fix.cost[i] <= least_cost(truth_m[i]) + 1e-6


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
    np.testing.assert_allclose(mixture_information(sigma_ns, IN_SIGHT), 1 / sigma_ns**2)
    information = mixture_information(sigma_ns, ExcessDelay(0.2, 500.0))
    assert (information < 1 / sigma_ns**2).all()
    rng = np.random.default_rng(0)
    for sigma, expected in zip(sigma_ns, information, strict=True):
        error = sigma * rng.standard_normal(200_000) + rng.exponential(500, 200_000) * (rng.random(200_000) < 0.2)
        assert np.mean(mixture_log_density(error, sigma, 0.2, 500.0)[1] ** 2) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("sigma_ns", "probability", "mean_ns"), [(50.0, 0.1, 500.0), (70.0, 0.3, 500.0), (900.0, 0.5, 400.0)]
)
def test_mixture_information_is_the_integral_of_the_squared_slope(
    sigma_ns: float, probability: float, mean_ns: float
) -> None:
    error_ns = np.linspace(-10 * sigma_ns, 10 * sigma_ns + 40 * mean_ns, 400_001)
    delayed = exponnorm.pdf(error_ns, mean_ns / sigma_ns, scale=sigma_ns)
    density = (1 - probability) * norm.pdf(error_ns, scale=sigma_ns) + probability * delayed
    slope = np.gradient(density, error_ns)
    integral = np.trapezoid(np.where(density > 1e-200, slope**2 / np.maximum(density, 1e-200), 0), error_ns)
    # Also where other deviations stand beside it in the table.
    got = mixture_information(np.array([10.0, sigma_ns, 5000.0]), ExcessDelay(probability, mean_ns))[1]
    assert got == pytest.approx(integral, rel=1e-4)


def test_mixture_bound_lies_above_the_gaussian_one(default: Samples) -> None:
    truth = truth_of(default)
    with_delays = mixture_crlb_m(GROUND, truth, default, DELAYED)
    without = mixture_crlb_m(GROUND, truth, default, IN_SIGHT)
    known = ~np.isnan(without)
    assert (with_delays[known] > without[known]).all()


def test_simple_rivals_and_their_null() -> None:
    batch = simulated(Preset.rss, 500)
    silent = replace(batch, signal_present=batch.signal_present & (np.arange(500) >= 5)[:, None])
    for rival in (power_weighted_centroid, strongest_receiver):
        en_m = rival(NORTH_WEST_ITALY, silent).en_m
        assert np.isnan(en_m[:5]).all()
        sites = NORTH_WEST_ITALY.site_enu_m[:, :2]
        assert (en_m[5:] >= sites.min(0) - 1e-6).all()
        assert (en_m[5:] <= sites.max(0) + 1e-6).all()


def test_the_centroid_is_weighted_by_power_in_milliwatts() -> None:
    batch = simulated(Preset.rss, 4)
    first, second, third = NORTH_WEST_ITALY.site_enu_m[:3, :2]
    heard = np.zeros((4, 7), bool)
    power_dbm = np.full((4, 7), -20, np.float32)  # the floor of the sites that hear nothing, here a loud one
    for row, levels_dbm in enumerate(({0: -80, 1: -90}, {1: -100}, {0: -70, 1: -70, 2: -70}, {0: -200, 2: -170})):
        for site, level_dbm in levels_dbm.items():
            heard[row, site], power_dbm[row, site] = True, level_dbm
    batch = replace(batch, signal_present=heard, power_dbm=power_dbm)
    np.testing.assert_allclose(
        power_weighted_centroid(NORTH_WEST_ITALY, batch).en_m,
        [(10 * first + second) / 11, second, (first + second + third) / 3, (first + 1000 * third) / 1001],
        atol=0.05,
    )
    np.testing.assert_array_equal(strongest_receiver(NORTH_WEST_ITALY, batch).en_m, [first, second, first, third])
    # A receiver that reports no level has no say.
    power_dbm[0, 0] = power_dbm[1, 1] = np.nan
    batch = replace(batch, power_dbm=power_dbm)
    for rival in (power_weighted_centroid, strongest_receiver):
        np.testing.assert_allclose(rival(NORTH_WEST_ITALY, batch).en_m[:2], [second, [np.nan, np.nan]])


def rss_posterior_mean(
    network: ReceiverNetwork, measurements: Measurements, scenario: Scenario, cells: int = 32
) -> Positions:
    """The exact posterior without the arrival times, of calibrated measurements."""
    deaf = replace(measurements, toa_present=np.zeros_like(measurements.toa_present))
    geometry, nowhere_m = Geometry(network, measurements.tx_altitude_m), np.zeros((len(deaf), 2))
    return exact_posterior(geometry, deaf, scenario, nowhere_m, cells)


def test_level_posterior_is_the_best_by_levels() -> None:
    scenario = Scenario(features="rss", path_loss_exponent=4.0)
    batch = simulate_chunk(DatasetSpec(NORTH_WEST_ITALY, scenario, 1500, 0), 0).batch

    def rmse_m(en_m: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.sum((en_m - truth_of(batch)) ** 2, axis=1))))

    fine, coarse = (rss_posterior_mean(NORTH_WEST_ITALY, batch, scenario, cells).en_m for cells in (32, 16))
    assert rmse_m(fine) == pytest.approx(rmse_m(coarse), rel=0.01)
    assert rmse_m(fine) < 0.85 * rmse_m(power_weighted_centroid(NORTH_WEST_ITALY, batch).en_m)
    # Nothing may beat the posterior mean under its own model: neither wrong gains nor a shrunken answer.
    wrong = replace(batch, power_dbm=batch.power_dbm + np.array([3, -3, 3, -3, 3, -3, 3], np.float32))
    assert rmse_m(fine) < rmse_m(rss_posterior_mean(NORTH_WEST_ITALY, wrong, scenario, 16).en_m)
    middle = fine.mean(0)
    assert rmse_m(fine) < min(rmse_m(middle + scale * (fine - middle)) for scale in (0.9, 1.1))
    # Without shadowing but for 0.5 dB, levels do locate.
    quiet = Scenario(
        features="rss", shadowing_link_db=0.5, gain_offset_sigma_db=0, shadowing_common_db=0, detection_width_db=0.1
    )
    batch = simulate_chunk(DatasetSpec(NORTH_WEST_ITALY, quiet, 200, 0), 0).batch
    assert rmse_m(rss_posterior_mean(NORTH_WEST_ITALY, batch, quiet, 64).en_m) < 4000


@pytest.mark.parametrize(
    "change",
    [
        {"path_loss_exponent": 4.5},
        {
            "path_loss": "egli",
            "frequency_mhz": 435.0,
            "tx_power_w": (100.0, 1.0),
            "tx_power_share": (0.4, 0.6),
            "tx_antenna_gain_dbi": 5.0,
            "rx_antenna_gain_dbi": -1.0,
            "tx_height_m": 100.0,
            "area_margin_km": 1.0,
            "shadowing_link_db": 4.0,
            "shadowing_common_db": 2.0,
            "detection_threshold_db": 20.0,
            "detection_width_db": 5.0,
            "noise_bandwidth_khz": 100.0,
        },
    ],
    ids=["valley", "egli"],
)
def test_level_posterior_equals_the_integral_written_out(change: dict) -> None:
    scenario = Scenario.model_validate({"features": "rss"} | change)
    network = ReceiverNetwork(
        name="small",
        sites=tuple(
            site.model_copy(update={"noise_figure_db": 3.0 + 4 * i, "gain_offset_db": 4.0 - 2 * i})
            for i, site in enumerate(random_network(5, seed=6, extent_km=80).sites)
        ),
    )
    if "path_loss" not in change:
        network = NORTH_WEST_ITALY
    batch = simulate_chunk(DatasetSpec(network, scenario, 60, 0), 0).batch
    assert not batch.signal_present.all()
    area, cells = network.service_area(scenario.area_margin_m), 6
    middles = (np.arange(cells) + 0.5) / cells
    east_m = area.east_min_m + middles * (area.east_max_m - area.east_min_m)
    north_m = area.north_min_m + middles * (area.north_max_m - area.north_min_m)
    cell_en_m = np.array([(e, n) for e in east_m for n in north_m])
    distance_km = Geometry(network, scenario.tx_height_m).ranges_m(cell_en_m)[0] / 1e3
    # Cells that the path-loss model does not cover are no places.
    low_km, high_km = distance_range_km(scenario.path_loss)
    covered = ((distance_km > low_km) & (distance_km < high_km)).all(1)
    cell_en_m, distance_km = cell_en_m[covered], distance_km[covered]
    assert covered.all() == ("path_loss" not in change)
    level_dbm = np.linspace(15, 70, 1101)
    prior = sum(
        share * norm.pdf(level_dbm, power_dbm, scenario.shadowing_common_db)
        for share, power_dbm in zip(scenario.tx_power_share, scenario.tx_power_dbm, strict=True)
    )
    # Both scenarios have antennas of four decibels together.
    gains_db = np.array([site.gain_offset_db or 0 for site in network.sites])
    link_db = np.hypot(scenario.shadowing_link_db, scenario.gain_offset_sigma_db)
    median_dbm = level_dbm + (4 + gains_db - path_loss_function(scenario)(distance_km))[..., None]
    floor_dbm = noise_floor_dbm(scenario, [site.noise_figure_db for site in network.sites])
    margin_db = median_dbm - (floor_dbm + scenario.detection_threshold_db)[:, None]
    missed = norm.sf(margin_db, scale=np.hypot(link_db, scenario.detection_width_db))
    got_m = rss_posterior_mean(network, calibrated(Layout(network, scenario), batch), scenario, cells).en_m
    for i in range(len(batch)):
        heard = norm.pdf(batch.power_dbm[i, :, None], median_dbm, link_db)
        likelihood = np.where(batch.signal_present[i, :, None], heard, missed).prod(1)
        posterior = likelihood @ prior
        np.testing.assert_allclose(got_m[i], posterior @ cell_en_m / posterior.sum(), atol=150)


def test_level_posterior_of_a_row_does_not_depend_on_the_others() -> None:
    scenario = Scenario(features="rss", shadowing_link_db=20.0)  # whose levels are few
    batch = simulated(Preset.rss, 550)
    whole_m = rss_posterior_mean(NORTH_WEST_ITALY, batch, scenario, 64).en_m
    some_m = rss_posterior_mean(NORTH_WEST_ITALY, batch.take(slice(450, 550)), scenario, 64).en_m
    np.testing.assert_allclose(whole_m[450:550], some_m, atol=1)
    assert np.isfinite(whole_m).all()


def test_level_posterior_is_none_where_the_path_loss_covers_no_cell() -> None:
    scenario = Scenario(features="rss", path_loss="hata", frequency_mhz=435.0, rx_height_m=30.0)
    batch = simulated(Preset.rss, 3)
    assert np.isnan(rss_posterior_mean(NORTH_WEST_ITALY, batch, scenario).en_m).all()


def test_another_network_works_as_well() -> None:
    network = random_network(5, seed=2, extent_km=80)
    batch = simulate_chunk(DatasetSpec(network, PRESETS[Preset.line_of_sight], 400, 0), 0).batch
    fix = gauss_newton(Geometry(network, HEIGHT_M), batch, Loss.huber)
    truth = network.frame.enu_m(batch.tx_lat, batch.tx_lon, HEIGHT_M)[:, :2]
    good = batch.gdop < 5
    assert np.median(np.hypot(*(fix.en_m - truth).T)[good]) < 60


def test_each_row_is_located_at_its_own_altitude() -> None:
    """Cars and aircraft in one batch; none has fewer than three arrival times, and some are refused a fix."""
    altitude_m = {0: 2.0, 1: 10_000.0}
    cars, aircraft = (
        simulate_chunk(DatasetSpec(NORTH_WEST_ITALY, Scenario(tx_altitude_m=height_m), 200, seed), 0).batch
        for seed, height_m in altitude_m.items()
    )
    mixed = Samples.concatenate([cars, aircraft]).take(np.random.default_rng(0).permutation(400))
    geometry = Geometry(NORTH_WEST_ITALY, mixed.tx_altitude_m)
    truth_en_m = mixed.tx_en_m(NORTH_WEST_ITALY.frame)
    exact_ns = np.where(mixed.toa_present, geometry.ranges_m(truth_en_m)[0] / 0.299792458, 0.0)
    exact = replace(mixed, toa_ns=exact_ns)
    delay = ExcessDelay(0.1, 500.0)
    for fixes in (
        gauss_newton(geometry, exact, Loss.huber),
        mixture_maximum_likelihood(geometry, exact, delay),
    ):
        well = (mixed.gdop < 5) & np.isfinite(fixes.en_m).all(1)
        assert well.sum() > 200
        assert np.percentile(np.hypot(*(fixes.en_m - truth_en_m).T)[well], 95) < 1
        assert fixes.error_m(NORTH_WEST_ITALY.frame, mixed.tx_altitude_m, mixed.tx_lat, mixed.tx_lon)[well].max() < 1e5
    # At the wrong altitude an aircraft is kilometres off.
    on_ground = gauss_newton(Geometry(NORTH_WEST_ITALY, 2.0), exact, Loss.huber).en_m
    is_aircraft = (mixed.tx_altitude_m > 5000) & well
    assert np.median(np.hypot(*(on_ground - truth_en_m).T)[is_aircraft]) > 100
    # Each part alone has the same fixes, and so do positions by levels.
    mine = gauss_newton(geometry, mixed, Loss.huber).en_m
    by_level = rss_posterior_mean(NORTH_WEST_ITALY, mixed, Scenario(), cells=8).en_m
    for height_m in altitude_m.values():
        rows = np.flatnonzero(mixed.tx_altitude_m == height_m)
        part = mixed.take(rows)
        alone = gauss_newton(Geometry(NORTH_WEST_ITALY, height_m), part, Loss.huber).en_m
        np.testing.assert_array_equal(mine[rows], alone)
        alone = rss_posterior_mean(NORTH_WEST_ITALY, part, Scenario(), cells=8).en_m
        np.testing.assert_allclose(by_level[rows], alone, atol=0.1)


def test_solvers_need_no_truth(default: Samples) -> None:
    """What was measured is all they take."""
    measured = Measurements(**{f.name: getattr(default, f.name)[:50] for f in fields(Measurements)})
    first = default.take(slice(0, 50))
    for solve in (
        lambda rows: gauss_newton(GROUND, rows, Loss.huber),
        lambda rows: mixture_maximum_likelihood(GROUND, rows, DELAYED),
        lambda rows: power_weighted_centroid(NORTH_WEST_ITALY, rows),
        lambda rows: strongest_receiver(NORTH_WEST_ITALY, rows),
        lambda rows: rss_posterior_mean(NORTH_WEST_ITALY, rows, Scenario(), cells=8),
    ):
        np.testing.assert_array_equal(solve(measured).en_m, solve(first).en_m)


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
        fix = gauss_newton(Geometry(network, scenario.tx_height_m), batch, Loss.linear)
    assert np.isfinite(fix.en_m).all(1).mean() > 0.9
