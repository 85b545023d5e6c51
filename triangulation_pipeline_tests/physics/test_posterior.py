from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.stats import exponnorm, norm

from triangulation_pipeline.calibration import calibrated
from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Timing, random_network
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.likelihood import Levels
from triangulation_pipeline.physics.posterior import LEAST_EFFECTIVE_DRAWS, Posterior, exact_posterior
from triangulation_pipeline.physics.propagation import noise_floor_dbm, path_loss_function
from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.physics.solvers.gauss_newton import Loss, gauss_newton
from triangulation_pipeline.physics.solvers.mixture import mixture_maximum_likelihood
from triangulation_pipeline.physics.solvers.signal_strength import power_weighted_centroid
from triangulation_pipeline.samples import Samples

TINY = random_network(4, seed=3, extent_km=4)
# Clocks so poor, in an area so small, that a plain grid resolves the posterior.
TINY_SCENARIO = Scenario(
    clock_sigma_ns=1500,
    nlos_probability=0.3,
    nlos_mean_ns=4000,
    area_margin_km=3,
    tx_power_w=(0.01, 0.1),
    tx_power_share=(0.7, 0.3),
    path_loss_exponent=4.5,
    detection_threshold_db=20,
    min_detections=2,
    gain_offset_sigma_db=4,
)
GAINS_DB = np.array([3.0, -6.0, 0.0, 8.0])  # which the network file tells


def posterior(
    network: ReceiverNetwork, scenario: Scenario, batch: Samples, at_en_m: np.ndarray | None = None
) -> Posterior:
    """Of calibrated measurements; asked about the truth."""
    return exact_posterior(
        Geometry(network, batch.tx_altitude_m),
        calibrated(Layout(network, scenario), batch),
        scenario,
        batch.tx_en_m(network.frame) if at_en_m is None else at_en_m,
    )


def written_out(
    network: ReceiverNetwork, scenario: Scenario, batch: Samples, row: int, en_m: np.ndarray, altitude_m: float
) -> np.ndarray:
    """(k,) the unnormalised posterior at places (k, 2), by plain sums over the emission time and the common level."""
    distance_m = Geometry(network, altitude_m).ranges_m(en_m)[0]
    by_time = np.ones(len(en_m))
    if (timed := batch.toa_present[row]).any():
        late_ns = (batch.toa_ns[row] - distance_m / SPEED_OF_LIGHT_M_PER_NS)[:, timed]
        sigma_ns = batch.toa_sigma_ns[row, timed].astype(float)
        emitted_ns = np.linspace(late_ns.min() - 40_000, late_ns.max() + 12_000, 300)
        error_ns = late_ns[..., None] - emitted_ns
        p, mean_ns = scenario.nlos_probability, scenario.nlos_mean_ns
        shape = (mean_ns / sigma_ns)[:, None]
        density = (1 - p) * norm.pdf(error_ns, scale=sigma_ns[:, None])
        density += p * exponnorm.pdf(error_ns, shape, scale=sigma_ns[:, None])
        by_time = np.trapezoid(density.prod(1), emitted_ns)
    level_dbm = np.linspace(-20, 60, 160)
    prior = sum(
        share * norm.pdf(level_dbm, power_dbm, scenario.shadowing_common_db)
        for share, power_dbm in zip(scenario.tx_power_share, scenario.tx_power_dbm, strict=True)
    )
    gain_db = scenario.tx_antenna_gain_dbi + scenario.rx_antenna_gain_dbi + GAINS_DB
    link_db = np.hypot(scenario.shadowing_link_db, scenario.gain_offset_sigma_db)
    median_dbm = level_dbm + (gain_db - path_loss_function(scenario)(distance_m / 1e3))[..., None]
    floor_dbm = noise_floor_dbm(scenario, [site.noise_figure_db for site in network.sites])
    margin_db = median_dbm - (floor_dbm + scenario.detection_threshold_db)[:, None]
    heard = norm.pdf(batch.power_dbm[row, :, None], median_dbm, link_db)
    missed = norm.sf(margin_db, scale=np.hypot(link_db, scenario.detection_width_db))
    return by_time * (np.where(batch.signal_present[row, :, None], heard, missed).prod(1) @ prior)


@pytest.mark.parametrize("clocks", [4, 2])
def test_equals_the_integral_written_out(clocks: int) -> None:
    """With three arrival times or more, two, and fewer; each row at an altitude of its own."""
    sites = tuple(
        site.model_copy(update={"timing": Timing.gps if i < clocks else Timing.none, "gain_offset_db": GAINS_DB[i]})
        for i, site in enumerate(TINY.sites)
    )
    network, cells = ReceiverNetwork(name="tiny", sites=sites), 50
    parts = [
        simulate(DatasetSpec(network, TINY_SCENARIO.model_copy(update={"tx_altitude_m": height_m}), 8, seed))
        for seed, height_m in enumerate((0.0, 2000.0))
    ]
    batch = Samples.concatenate(parts)
    assert not batch.signal_present.all()
    assert set(batch.toa_present.sum(1)) >= ({3, 4} if clocks == 4 else {1, 2})
    found = posterior(network, TINY_SCENARIO, batch)
    area = network.service_area(TINY_SCENARIO.area_margin_m)
    cell_en_m = area.cell_centres(cells)
    cell_m2 = (area.east_max_m - area.east_min_m) * (area.north_max_m - area.north_min_m) / cells**2
    truth_en_m = batch.tx_en_m(network.frame)
    off = []
    for row in range(len(batch)):
        altitude_m = float(batch.tx_altitude_m[row])
        density = written_out(network, TINY_SCENARIO, batch, row, cell_en_m, altitude_m)
        at = written_out(network, TINY_SCENARIO, batch, row, truth_en_m[row : row + 1], altitude_m)[0]
        total = density.sum()
        mean_en_m = density @ cell_en_m / total
        apart_m = cell_en_m - mean_en_m
        rms_m = np.sqrt(density @ (apart_m**2).sum(1) / total)
        off.append(
            [
                np.hypot(*(found.en_m[row] - mean_en_m)) / rms_m,
                found.rms_m()[row] / rms_m - 1,
                found.log_density_at[row] - np.log(at / total / cell_m2),
                found.content_at[row] - density[density > at].sum() / total,
            ]
        )
    # Of every row, and on average: 200 draws are worth 7 % each.
    assert np.all(np.abs(off) < [0.15, 0.2, 0.25, 0.1])
    assert np.all(np.abs(np.mean(off, axis=0)) < [0.06, 0.05, 0.05, 0.03])


@pytest.mark.parametrize(("preset", "rows"), [(Preset.default, 900), (Preset.valley, 500), (Preset.rss, 500)])
def test_regions_cover_what_they_promise(preset: Preset, rows: int) -> None:
    scenario = PRESETS[preset]
    batch = simulate(DatasetSpec(NORTH_WEST_ITALY, scenario, rows, seed=11))
    found = posterior(NORTH_WEST_ITALY, scenario, batch)
    assert np.isfinite(found.en_m).all()
    for level in (0.5, 0.68, 0.9, 0.95):
        # Three standard errors of the sample.
        assert np.mean(found.covers(level)) == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / rows))
    assert np.mean(found.effective_draws >= LEAST_EFFECTIVE_DRAWS) > 0.99


def test_no_estimator_has_a_smaller_error() -> None:
    scenario = PRESETS[Preset.default]
    batch = simulate(DatasetSpec(NORTH_WEST_ITALY, scenario, 1200, seed=7))
    batch = batch.take(batch.gdop < 5)
    truth_en_m, geometry = batch.tx_en_m(NORTH_WEST_ITALY.frame), Geometry(NORTH_WEST_ITALY, batch.tx_altitude_m)

    def rmse_m(en_m: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.sum((en_m - truth_en_m) ** 2, axis=1))))

    found = posterior(NORTH_WEST_ITALY, scenario, batch)
    least_m = rmse_m(found.en_m)
    rivals = [
        gauss_newton(geometry, batch, Loss.linear),
        gauss_newton(geometry, batch, Loss.huber),
        mixture_maximum_likelihood(geometry, batch, scenario.excess_delay),
        power_weighted_centroid(NORTH_WEST_ITALY, batch),
    ]
    assert all(least_m <= rmse_m(rival.en_m) for rival in rivals)
    # The published limit of this scenario: 62.7 m, and 8.665 nats.
    assert 45 < least_m < 85
    assert -found.log_density_at.mean() == pytest.approx(8.665, abs=0.2)
    # No Gaussian has a better density, not even with the posterior's own moments.
    gaussian = -0.5 * (found.nees(truth_en_m) + np.linalg.slogdet(found.covariance_m2)[1]) - np.log(2 * np.pi)
    assert found.log_density_at.mean() > gaussian.mean()


def test_is_that_of_levels_without_time_differences() -> None:
    """One arrival time says nothing, as the time of emission is unknown."""
    scenario = PRESETS[Preset.default]
    batch = simulate(DatasetSpec(NORTH_WEST_ITALY, scenario, 20, seed=0))
    none = replace(batch, toa_present=np.zeros_like(batch.toa_present))
    one = replace(batch, toa_present=batch.toa_present & (np.cumsum(batch.toa_present, axis=1) == 1))
    assert set(one.toa_present.sum(1)) == {1}
    first, second = (posterior(NORTH_WEST_ITALY, scenario, some) for some in (none, one))
    for field in fields(Posterior):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))
    assert np.isinf(first.effective_draws).all()


def test_a_row_depends_on_nothing_but_its_measurements() -> None:
    """Neither on the other rows nor on the place that is asked about, and the truth is not needed."""
    scenario = PRESETS[Preset.valley]
    batch = simulate(DatasetSpec(NORTH_WEST_ITALY, scenario, 60, seed=4))
    whole = posterior(NORTH_WEST_ITALY, scenario, batch)
    measured = Measurements(**{f.name: getattr(batch, f.name)[30:] for f in fields(Measurements)})
    part = exact_posterior(
        Geometry(NORTH_WEST_ITALY, 2.0),
        measured,
        scenario,
        np.full((30, 2), 1e7),
    )
    np.testing.assert_allclose(part.en_m, whole.en_m[30:], rtol=1e-6, atol=0.5)
    np.testing.assert_allclose(part.covariance_m2, whole.covariance_m2[30:], rtol=1e-3, atol=1)
    # Far outside the service area nothing is.
    assert np.isneginf(part.log_density_at).all()
    np.testing.assert_allclose(part.content_at, 1)
    assert not part.covers(0.95).any()


def test_no_rows_and_no_covered_place() -> None:
    scenario = Scenario(path_loss="hata", frequency_mhz=435.0, rx_height_m=30.0)
    batch = simulate(DatasetSpec(NORTH_WEST_ITALY, PRESETS[Preset.default], 5, seed=0))
    found = posterior(NORTH_WEST_ITALY, scenario, batch)
    assert np.isnan(found.en_m).all()
    assert np.isnan(found.log_density_at).all()
    assert np.isnan(found.content_at).all()
    assert len(posterior(NORTH_WEST_ITALY, scenario, batch.take(slice(0, 0)))) == 0


def test_a_level_that_is_not_known_says_nothing() -> None:
    rng = np.random.default_rng(4)
    distance_m = rng.uniform(2e3, 80e3, (20, 9, 4))
    power_dbm = rng.uniform(-120, -80, (20, 4))
    present = rng.random((20, 4)) < 0.6
    power_dbm[:, 2] = np.nan
    levels = Levels.of(TINY_SCENARIO, 4)
    others = [0, 1, 3]
    np.testing.assert_allclose(
        levels.log_likelihood(distance_m, power_dbm, present),
        levels.log_likelihood(distance_m[..., others], power_dbm[:, others], present[:, others]),
        rtol=1e-12,
    )
