from dataclasses import replace

import numpy as np
import pytest

from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Site
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.physics.solvers.chan import chan
from triangulation_pipeline.physics.solvers.gauss_newton import Loss, gauss_newton
from triangulation_pipeline.samples import Samples

GROUND = Geometry(NORTH_WEST_ITALY, 2.0)
FRAME = NORTH_WEST_ITALY.frame


@pytest.fixture(scope="module")
def line_of_sight() -> Samples:
    return simulate(DatasetSpec(NORTH_WEST_ITALY, PRESETS[Preset.line_of_sight], 1500, seed=5))


def exact(samples: Samples, geometry: Geometry) -> Samples:
    """With arrival times that are those of the true places."""
    distance_m, _ = geometry.ranges_m(samples.tx_en_m(geometry.network.frame))
    toa_ns = np.where(samples.toa_present, distance_m / SPEED_OF_LIGHT_M_PER_NS + 777.0, 0.0)
    return replace(samples, toa_ns=toa_ns)


def timed(samples: Samples, sites: int) -> Samples:
    """With the arrival times of the first sites alone."""
    present = samples.toa_present & (np.arange(samples.num_sites) < sites)
    sigma_ns = np.where(present, samples.toa_sigma_ns, 0.0).astype(np.float32)
    return replace(samples, toa_present=present, toa_ns=np.where(present, samples.toa_ns, 0.0), toa_sigma_ns=sigma_ns)


def test_exact_arrival_times_give_the_position_on_the_ellipsoid(line_of_sight: Samples) -> None:
    """At 100 km a plane would be wrong by 785 m of height."""
    good = line_of_sight.take(line_of_sight.gdop < 5)
    off_m = np.hypot(*(chan(GROUND, exact(good, GROUND)).en_m - good.tx_en_m(FRAME)).T)
    assert np.quantile(off_m, 0.99) < 0.01
    assert off_m.max() < 1.0


def test_each_row_is_located_at_its_own_altitude(line_of_sight: Samples) -> None:
    good = line_of_sight.take(line_of_sight.gdop < 5)
    altitude_m = np.random.default_rng(0).uniform(0, 9000, len(good))
    high = replace(good, tx_altitude_m=altitude_m)
    geometry = Geometry(NORTH_WEST_ITALY, altitude_m)
    off_m = np.hypot(*(chan(geometry, exact(high, geometry)).en_m - high.tx_en_m(FRAME)).T)
    assert np.quantile(off_m, 0.95) < 1.0
    assert np.quantile(np.hypot(*(chan(GROUND, exact(high, geometry)).en_m - high.tx_en_m(FRAME)).T), 0.5) > 5.0


def test_three_arrival_times_give_one_of_two_exact_solutions(line_of_sight: Samples) -> None:
    three = exact(timed(line_of_sight, 3).take(line_of_sight.toa_present[:, :3].all(1)), GROUND)
    found = chan(GROUND, three).en_m
    off_m = np.hypot(*(found - three.tx_en_m(FRAME)).T)
    assert np.mean(off_m < 1.0) > 0.5
    # The other solution fits as well.
    wrong = off_m > 1.0
    residual_m = SPEED_OF_LIGHT_M_PER_NS * three.toa_ns - GROUND.ranges_m(found)[0]
    spread_m = np.ptp(residual_m[wrong][:, :3], axis=1)
    assert wrong.sum() > 10
    assert np.median(spread_m) < 1e-3


def test_with_gaussian_errors_it_is_nearly_least_squares(line_of_sight: Samples) -> None:
    good = line_of_sight.take((line_of_sight.gdop < 3) & (line_of_sight.toa_present.sum(1) >= 5))
    truth_en_m = good.tx_en_m(FRAME)
    closed, descended = (
        np.hypot(*(found.en_m - truth_en_m).T)
        for found in (chan(GROUND, good), gauss_newton(GROUND, good, Loss.linear))
    )
    assert np.median(closed) == pytest.approx(np.median(descended), rel=0.03)
    assert np.sqrt(np.mean(closed**2)) < 1.3 * np.sqrt(np.mean(descended**2))


def test_sigma_are_its_weights(line_of_sight: Samples) -> None:
    """A wrong arrival time of which that is known does no harm."""
    good = line_of_sight.take((line_of_sight.gdop < 3) & line_of_sight.toa_present.all(1))
    wrong = replace(good, toa_ns=good.toa_ns + np.array([3000.0, 0, 0, 0, 0, 0, 0]))
    told = replace(wrong, toa_sigma_ns=good.toa_sigma_ns + np.float32([1e5, 0, 0, 0, 0, 0, 0]))
    untold_m, told_m = (
        np.median(np.hypot(*(chan(GROUND, samples).en_m - good.tx_en_m(FRAME)).T)) for samples in (wrong, told)
    )
    assert told_m < 40 < 150 < untold_m


def test_too_few_arrival_times_give_null_and_sites_on_a_line_a_number(line_of_sight: Samples) -> None:
    few = line_of_sight.take(slice(0, 50))
    assert np.isnan(chan(GROUND, timed(few, 2)).en_m).all()
    assert chan(GROUND, few.take(slice(0, 0))).en_m.shape == (0, 2)
    line = ReceiverNetwork(name="line", sites=tuple(Site(name=f"{i}", lat=45.0, lon=7.0 + 0.3 * i) for i in range(7)))
    assert len(chan(Geometry(line, 2.0), few).en_m) == 50
