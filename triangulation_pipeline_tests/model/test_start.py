from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from triangulation_pipeline.frame import ServiceArea
from triangulation_pipeline.model.geometry import SiteGeometry
from triangulation_pipeline.model.inputs import LocatorInputs, locator_inputs
from triangulation_pipeline.model.locator import FitData
from triangulation_pipeline.model.spec import StartConfig
from triangulation_pipeline.model.start import RobustStart, robust_residual
from triangulation_pipeline.network import NORTH_WEST_ITALY, random_network
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.simulator import site_constants

from .helpers import DEFAULT, exact_inputs, fitted, fresh, samples, spec_for, target_m

AREA = NORTH_WEST_ITALY.service_area(DEFAULT.area_margin_m)
RSS = PRESETS[Preset.rss]
SLOPE_DB = 10 * 3.5 / np.log(10)


def anywhere(area: ServiceArea, n: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    low, high = (area.east_min_m, area.north_min_m), (area.east_max_m, area.north_max_m)
    return torch.tensor(rng.uniform(low, high, (n, 2)), dtype=torch.float32)


def test_noise_free_rows_are_found_within_metres_anywhere_in_the_area() -> None:
    for network in (NORTH_WEST_ITALY, random_network(9, seed=1)):
        area = network.service_area(20e3)
        geometry = SiteGeometry(network, 2.0)
        start = RobustStart(geometry, area, StartConfig())
        start.slope_db.fill_(SLOPE_DB)
        start.level_sigma_db.fill_(6.0)
        start.threshold_db.fill_(6.0)
        truth = anywhere(area, 2000)
        range_m = geometry.ranges_m(truth)[0]
        found = start(exact_inputs(range_m, 60.0 - SLOPE_DB * range_m.log()))
        assert (found - truth).norm(dim=1).max() < 5.0


def test_fit_recovers_slope_gains_and_scatter() -> None:
    start = fitted(spec_for()).start
    gain_db = site_constants(NORTH_WEST_ITALY, DEFAULT).gain_offset_db
    # Weak signals go unheard, which flattens the fitted slope a little.
    assert abs(float(start.slope_db) / SLOPE_DB - 1) < 0.05
    np.testing.assert_allclose(start.gain_db_R.numpy(), gain_db - gain_db.mean(), atol=0.5)
    assert abs(float(start.level_sigma_db) - DEFAULT.shadowing_link_db) < 0.3


def test_fit_is_exact_on_exact_levels_and_heeds_the_mask() -> None:
    geometry = SiteGeometry(NORTH_WEST_ITALY, 2.0)
    start = RobustStart(geometry, AREA, StartConfig())
    truth = anywhere(AREA, 500)
    gain_db = torch.tensor([3.0, -1.0, 0.5, 0.0, -2.0, 1.5, -2.0])
    common_db = torch.linspace(40, 80, 500)[:, None]
    range_m = geometry.ranges_m(truth)[0]
    inputs = exact_inputs(range_m, common_db + gain_db - SLOPE_DB * range_m.log())
    absent = torch.rand(500, 7, generator=torch.Generator().manual_seed(0)) < 0.3
    inputs = replace(inputs, present_BR=~absent, power_dbm_BR=inputs.power_dbm_BR.masked_fill(absent, 77.0))
    bias_m = torch.arange(7.0)
    start.fit(FitData(inputs, truth, bias_m))
    assert abs(float(start.slope_db) - SLOPE_DB) < 1e-3
    torch.testing.assert_close(start.gain_db_R, gain_db - gain_db.mean(), atol=1e-3, rtol=0)
    assert torch.equal(start.site_bias_m_R, bias_m)
    # Nothing scatters, but a level is believed to half a decibel at best.
    assert float(start.level_sigma_db) == 0.5


def test_the_scatter_of_levels_is_that_about_the_fit() -> None:
    """Seven levels of a row leave six numbers of scatter, since their common part is fitted."""
    geometry = SiteGeometry(NORTH_WEST_ITALY, 2.0)
    start = RobustStart(geometry, AREA, StartConfig())
    truth = anywhere(AREA, 3000)
    range_m = geometry.ranges_m(truth)[0]
    noise_db = 6.0 * torch.randn(range_m.shape, generator=torch.Generator().manual_seed(0))
    inputs = exact_inputs(range_m, 60.0 - SLOPE_DB * range_m.log() + noise_db)
    start.fit(FitData(inputs, truth, torch.zeros(7)))
    assert float(start.level_sigma_db) == pytest.approx(6.0, rel=0.02)


def test_the_threshold_is_the_signal_that_nineteen_of_twenty_detections_exceed() -> None:
    batch, start = samples(4096), fitted(spec_for()).start
    assert float(start.threshold_db) == pytest.approx(np.quantile(batch.snr_db[batch.signal_present], 0.05), rel=1e-4)


@pytest.mark.parametrize("margin_m", [10e3, 1e3])
def test_contradictory_arrival_times_start_within_the_margin_of_the_area(margin_m: float) -> None:
    geometry = SiteGeometry(NORTH_WEST_ITALY, 2.0)
    start = RobustStart(geometry, AREA, StartConfig(margin_m=margin_m))
    far_m = 500e3 * torch.randn((2000, 7), generator=torch.Generator().manual_seed(0))
    found = start(exact_inputs(far_m, torch.full_like(far_m, -90.0)))
    low = torch.tensor([AREA.east_min_m, AREA.north_min_m])
    high = torch.tensor([AREA.east_max_m, AREA.north_max_m])
    outside_m = torch.maximum(low - found, found - high)
    # To each side some go as far as they may.
    for side_m in (*(low - found).T, *(found - high).T):
        assert float(side_m.max()) == pytest.approx(margin_m, abs=1.0)
    assert float(outside_m.max()) <= margin_m + 1.0


def test_site_biases_are_taken_off_the_arrival_times() -> None:
    geometry = SiteGeometry(NORTH_WEST_ITALY, 2.0)
    start = RobustStart(geometry, AREA, StartConfig())
    bias_m = torch.tensor([300.0, -200.0, 100.0, 0.0, -500.0, 250.0, 50.0])
    truth = anywhere(AREA, 200)
    range_m = geometry.ranges_m(truth)[0]
    inputs = exact_inputs(range_m + bias_m, torch.full_like(range_m, -90.0))
    start.level_sigma_db.fill_(1e3)
    start.site_bias_m_R.copy_(bias_m)
    assert (start(inputs) - truth).norm(dim=1).max() < 5.0


def test_rows_without_arrival_times_give_the_levels_posterior_mean() -> None:
    model = fitted(spec_for(), RSS)
    batch = samples(500, RSS, seed=1)
    inputs, truth = locator_inputs(batch), target_m(batch)
    found = model.initial_fix(inputs)
    low = torch.tensor([AREA.east_min_m, AREA.north_min_m])
    high = torch.tensor([AREA.east_max_m, AREA.north_max_m])
    assert ((found > low) & (found < high)).all()

    middle = torch.tensor([AREA.east_min_m + AREA.east_max_m, AREA.north_min_m + AREA.north_max_m]) / 2
    assert (found - truth).square().mean() < 0.6 * (middle - truth).square().mean()


@pytest.mark.parametrize("threshold_db", [None, 25.0, -10.0])
def test_the_posterior_of_the_levels_is_that_of_numpy(threshold_db: float | None) -> None:
    """In double precision over the same cells; with the fitted threshold, or a receiver that is deafer or keener."""
    start = fresh(spec_for(), RSS).start
    if threshold_db is not None:
        start.threshold_db.fill_(threshold_db)
    batch = samples(500, RSS, seed=1)
    found = start(locator_inputs(batch))
    cells = start.cells_K2.double().numpy()
    assert len(cells) == 16**2
    sites = NORTH_WEST_ITALY.site_enu_m
    gain, slope = start.gain_db_R.double().numpy(), float(start.slope_db)
    log_range = np.log(np.hypot(*(cells[:, None] - sites[None, :, :2]).transpose(2, 0, 1)))
    for row in range(0, 500, 50):
        heard = batch.signal_present[row]
        level = batch.power_dbm[row] - gain + slope * log_range
        level = level - level[:, heard].mean(1, keepdims=True)
        off = np.where(heard, level, np.maximum(-level - float(start.threshold_db), 0)) / float(start.level_sigma_db)
        posterior = np.exp(-(off**2).sum(1) / 2)
        expected = posterior @ cells / posterior.sum()
        # Heights (up to 700 m and the earth's curvature) are left out here.
        np.testing.assert_allclose(found[row].numpy(), expected, atol=1500)


def test_residuals_are_reweighted_by_how_far_off_they_are() -> None:
    """Three rounds: each takes a residual's weight from its distance to the mean of the round before."""
    rng = np.random.default_rng(0)
    residual, variance = rng.normal(0, 3, (20, 7)), rng.uniform(0.5, 20, (20, 7))
    residual[:, 0] += 100
    timed = (rng.random((20, 7)) < 0.8) | (np.arange(7) < 3)
    weight = timed / variance
    for _ in range(3):
        off = residual - (weight * residual).sum(1, keepdims=True) / weight.sum(1, keepdims=True)
        weight = timed / variance / (1 + off**2 / variance)
    expected = residual - (weight * residual).sum(1, keepdims=True) / weight.sum(1, keepdims=True)
    found, weights = robust_residual(torch.tensor(residual), torch.tensor(variance), torch.tensor(timed).double())
    np.testing.assert_allclose(found.numpy(), expected)
    np.testing.assert_allclose(weights.numpy(), weight)


def two_crossings(geometry: SiteGeometry) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two places at least 25 km apart with the very same arrival-time differences at the first three sites, and those
    differences, (1, 3) metres."""
    double = SiteGeometry(NORTH_WEST_ITALY, 2.0).double()

    def differences(en_m: np.ndarray) -> np.ndarray:
        range_m = double.ranges_m(torch.tensor(en_m))[0][:3].numpy()
        return range_m[1:] - range_m[0]

    for candidate in anywhere(AREA, 200, seed=4).double().numpy():
        measured = differences(candidate)
        for guess in anywhere(AREA, 12, seed=5).double().numpy():
            fit = least_squares(lambda p, m=measured: differences(p) - m, guess, x_scale=1e4, ftol=1e-15, xtol=1e-15)
            inside = AREA.east_min_m < fit.x[0] < AREA.east_max_m and AREA.north_min_m < fit.x[1] < AREA.north_max_m
            if inside and np.abs(fit.fun).max() < 0.01 and np.hypot(*(fit.x - candidate)) > 25e3:
                pair = torch.tensor(np.stack([candidate, fit.x]), dtype=torch.float32)
                return pair[0], pair[1], torch.tensor([[0.0, *measured]], dtype=torch.float32)
    raise AssertionError("no pair of crossings found")


def test_levels_and_silent_receivers_tell_two_crossings_apart() -> None:
    geometry = SiteGeometry(NORTH_WEST_ITALY, 2.0)
    start = RobustStart(geometry, AREA, StartConfig())
    start.slope_db.fill_(SLOPE_DB)
    start.level_sigma_db.fill_(6.0)
    start.threshold_db.fill_(6.0)
    first, second, differences = two_crossings(geometry)
    both = torch.stack([first, second])
    expected_db = -SLOPE_DB * geometry.ranges_m(both)[0].log()
    heard = torch.tensor([[True] * 3 + [False] * 4])
    deaf_dbm = 200.0

    def found(power_dbm: torch.Tensor) -> torch.Tensor:
        toa_m = torch.cat([differences, torch.zeros(1, 4)], 1)
        inputs = LocatorInputs(heard, power_dbm, power_dbm, heard, toa_m, torch.full((1, 7), 15.0))
        return start(inputs)[0]

    # Levels: three receivers hear it, the others are deaf and say nothing.
    for place, levels_db in zip(both, expected_db, strict=True):
        power_dbm = torch.cat([levels_db[:3], torch.full((4,), deaf_dbm)])[None]
        assert (found(power_dbm) - place).norm() < 2e3

    # Silence: levels that speak a little for the first place, until the receiver that ought to have heard it says no.
    # Lenient about levels: against strong ones the robust cost would rather give up an arrival time.
    start.level_sigma_db.fill_(20.0)
    relative_db = expected_db - expected_db[:, :3].mean(1, keepdim=True)
    levels_db = 0.6 * relative_db[0, :3] + 0.4 * relative_db[1, :3]
    floor_dbm = torch.full((4,), deaf_dbm)
    assert (found(torch.cat([levels_db, floor_dbm])[None]) - first).norm() < 2e3
    silent = int((relative_db[0] - relative_db[1])[3:].argmax())
    floor_dbm[silent] = float(relative_db[0, 3 + silent]) - 30.0
    assert (found(torch.cat([levels_db, floor_dbm])[None]) - second).norm() < 2e3


def test_no_row_of_good_geometry_starts_kilometres_off() -> None:
    batch = samples(4096, seed=0)
    off_m = (fitted(spec_for()).start(locator_inputs(batch)) - target_m(batch)).norm(dim=1).numpy()
    good = batch.gdop < 5
    assert good.sum() > 3000
    assert off_m[good].max() < 5e3
    assert np.median(off_m[good]) < 30.0
