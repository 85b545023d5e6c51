import math

import numpy as np
import pytest
from scipy.stats import chi2

from triangulation_pipeline.positions import (
    chi_square_2,
    coverage,
    distance_statistics,
    median_of_bounds_m,
    rmse_m,
)


def test_the_median_of_bounds_is_that_of_an_efficient_estimator() -> None:
    rng = np.random.default_rng(0)
    bound_m = rng.lognormal(3.0, 1.0, 200_000)
    errors_m = bound_m * np.hypot(*rng.normal(0, np.sqrt(0.5), (2, len(bound_m))))  # circular, of that rms
    assert median_of_bounds_m(bound_m) == pytest.approx(np.median(errors_m), rel=0.01)
    assert median_of_bounds_m(np.full(5, 30.0)) == pytest.approx(30 * np.sqrt(np.log(2)))
    assert median_of_bounds_m(np.array([30.0, np.nan])) == median_of_bounds_m(np.array([30.0]))
    assert median_of_bounds_m(np.array([np.nan])) is None


def test_rmse_is_over_samples() -> None:
    assert rmse_m(np.array([3.0, 4.0])) == pytest.approx(math.sqrt(12.5))
    # Not the mean of two batches' RMSE, which would be 5.
    assert rmse_m(np.array([0.0, 0.0, 0.0, 10.0])) == pytest.approx(5.0)
    assert rmse_m(np.array([[0.0], [0.0], [0.0], [10.0]])[:2, 0]) == 0.0


def test_statistics_by_hand() -> None:
    found = distance_statistics(np.arange(101.0))
    assert found == pytest.approx(
        {
            "count": 101,
            "rmse_m": math.sqrt(100 * 201 / 6),
            "mean_m": 50.0,
            "p50_m": 50.0,
            "p68_m": 68.0,
            "p95_m": 95.0,
            "p99_m": 99.0,
            "max_m": 100.0,
        }
    )


def test_float32_distances_are_summed_in_double() -> None:
    distance_m = np.random.default_rng(0).uniform(1e3, 1e5, 100_000).astype(np.float32)
    exact_m = [float(distance) for distance in distance_m]
    found = distance_statistics(distance_m)
    assert found["rmse_m"] == pytest.approx(math.sqrt(math.fsum(x * x for x in exact_m) / 100_000), rel=1e-12)
    assert found["mean_m"] == pytest.approx(math.fsum(exact_m) / 100_000, rel=1e-12)


def test_an_empty_subset_has_no_statistics() -> None:
    nothing = np.zeros(0)
    assert rmse_m(nothing) is None
    assert coverage(nothing, 0.95) is None
    statistics = distance_statistics(nothing)
    assert statistics.pop("count") == 0
    assert set(statistics.values()) == {None}
    assert list(statistics) == [name for name in distance_statistics(np.ones(3)) if name != "count"]


@pytest.mark.parametrize("probability", [0.5, 0.683, 0.9, 0.95])
def test_chi_square_is_scipys(probability: float) -> None:
    assert chi_square_2(probability) == pytest.approx(chi2(2).ppf(probability))


def test_coverage_by_hand_and_of_gaussian_errors() -> None:
    assert coverage(np.array([0.0, 5.9, 6.0, 100.0]), 0.95) == 0.5
    # On the ellipse is inside; what is no number is outside.
    assert coverage(np.array([chi_square_2(0.9), np.nan]), 0.9) == 0.5
    nees = (np.random.default_rng(0).normal(size=(20_000, 2)) ** 2).sum(1)
    for probability in (0.5, 0.683, 0.95):
        assert coverage(nees, probability) == pytest.approx(probability, abs=0.01)
