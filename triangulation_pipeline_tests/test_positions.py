import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import chi2, multivariate_normal, multivariate_t

from triangulation_pipeline.positions.mixtures import MixturePositions
from triangulation_pipeline.positions.points import Positions
from triangulation_pipeline.positions.statistics import coverage, distance_statistics, median_of_bounds_m, rmse_m


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


def test_coverage_by_hand() -> None:
    # On the edge is inside; what is no number is outside.
    assert coverage(np.array([0.0, 0.94, 0.95, 0.951, np.nan]), 0.95) == 0.6


def test_normalised_squared_error() -> None:
    rng = np.random.default_rng(1)
    error, root = rng.normal(size=(20, 2)), rng.normal(size=(20, 2, 2))
    covariance = root @ root.transpose(0, 2, 1)
    expected = [e @ np.linalg.inv(s) @ e for e, s in zip(error, covariance, strict=True)]
    np.testing.assert_allclose(Positions(np.zeros_like(error), covariance).nees(error), expected)
    broken = np.array(
        [
            np.diag([1.0, -1.0]),
            np.diag([-1.0, -1.0]),
            np.full((2, 2), np.nan),
            np.zeros((2, 2)),
            np.ones((2, 2)),
            np.diag([np.inf, 1.0]),
            np.diag([1e200, 1e200]),
        ]
    )
    assert np.isnan(Positions(np.zeros((len(broken), 2)), broken).nees(np.ones((len(broken), 2)))).all()


def mixtures(n: int, k: int, apart_m: float, seed: int, gaussian: bool = False) -> MixturePositions:
    """Random ones, whose weights, shapes and tails differ."""
    rng = np.random.default_rng(seed)
    root = rng.normal(0, 30, (n, k, 2, 2))
    return MixturePositions.of_components(
        np.log(rng.dirichlet(np.full(k, 0.5), n)) + 3.0,
        rng.normal(0, apart_m, (n, k, 2)) + 50e3,
        root @ root.transpose(0, 1, 3, 2) + 25 * np.eye(2),
        np.full((n, k), np.inf) if gaussian else rng.uniform(2.5, 30, (n, k)),
    )


def drawn(mixture: MixturePositions, seed: int) -> np.ndarray:
    """One place from each."""
    rng = np.random.default_rng(seed)
    n = len(mixture)
    ends = np.cumsum(np.exp(mixture.log_weight), axis=1)
    picked = np.arange(n), (rng.random((n, 1)) > ends[:, :-1]).sum(1)
    freedom = mixture.freedom[picked]
    finite = np.where(np.isfinite(freedom), freedom, 1.0)
    stretch = np.where(np.isfinite(freedom), np.sqrt(finite / rng.chisquare(finite)), 1.0)
    root = np.linalg.cholesky(mixture.scale_m2[picked])
    return mixture.component_en_m[picked] + np.einsum("nij,nj->ni", root, rng.normal(size=(n, 2)) * stretch[:, None])


def test_the_density_is_that_of_scipy() -> None:
    mixture = mixtures(20, 3, 100.0, 0)
    at = drawn(mixture, 1)
    expected = [
        logsumexp(
            [
                log_weight + multivariate_t(centre, scale, freedom).logpdf(place)
                for log_weight, centre, scale, freedom in zip(
                    mixture.log_weight[i],
                    mixture.component_en_m[i],
                    mixture.scale_m2[i],
                    mixture.freedom[i],
                    strict=True,
                )
            ]
        )
        for i, place in enumerate(at)
    ]
    np.testing.assert_allclose(mixture.log_density(at), expected)
    gaussian = mixtures(20, 1, 0.0, 0, gaussian=True)
    expected = [
        multivariate_normal(centre[0], scale[0]).logpdf(place)
        for centre, scale, place in zip(gaussian.component_en_m, gaussian.scale_m2, at, strict=True)
    ]
    np.testing.assert_allclose(gaussian.log_density(at), expected, rtol=1e-6)


def test_mean_and_covariance_are_those_of_draws() -> None:
    one = MixturePositions.of_components(
        np.log([[0.3, 0.7]]),
        np.array([[[0.0, 0.0], [100.0, 50.0]]]),
        np.array([[[[100.0, 30.0], [30.0, 50.0]], [[400.0, 0.0], [0.0, 100.0]]]]),
        np.array([[8.0, np.inf]]),
    )
    np.testing.assert_allclose(np.exp(one.log_weight).sum(), 1.0)
    many = drawn(one.take(np.zeros(200_000, int)), 0)
    np.testing.assert_allclose(one.en_m[0], many.mean(0), atol=0.5)
    np.testing.assert_allclose(one.covariance_m2[0], np.cov(many.T), rtol=0.02)


@pytest.mark.parametrize(
    ("components", "apart_m", "gaussian"), [(1, 0.0, True), (1, 0.0, False), (3, 60.0, False), (8, 300.0, False)]
)
def test_regions_hold_what_they_promise(components: int, apart_m: float, gaussian: bool) -> None:
    """Of places that are drawn from the mixtures themselves; 15,000 have a standard error of 0.004 at the most."""
    mixture = mixtures(15_000, components, apart_m, 2, gaussian)
    at = drawn(mixture, 3)
    content = mixture.content_at(at)
    for level in (0.5, 0.683, 0.9, 0.95, 0.99):
        error = 3 * math.sqrt(level * (1 - level) / 15_000)
        assert coverage(content, level) == pytest.approx(level, abs=0.002 + error)
    np.testing.assert_array_equal(mixture.take(slice(0, 50)).covers(at[:50], 0.683), content[:50] <= 0.683)


def test_places_are_covered_where_the_density_is_not_below_the_border() -> None:
    mixture, levels = mixtures(50, 5, 100.0, 13), (0.0, 0.5, 0.95)  # the draws have single precision
    border = mixture.region_log_density(levels)
    for seed in range(20):
        at = drawn(mixture, seed)
        for column, level in enumerate(levels):
            np.testing.assert_array_equal(
                mixture.log_density(at) >= border[:, column] + 1e-5, mixture.covers(at, level)
            )


def test_the_content_of_a_gaussian_is_that_of_its_ellipse() -> None:
    mixture = mixtures(50, 1, 0.0, 4, gaussian=True)
    at = drawn(mixture, 5)
    np.testing.assert_allclose(mixture.content_at(at), chi2(2).cdf(mixture.nees(at)), atol=0.003)


def test_a_row_has_the_same_content_among_any_others() -> None:
    mixture = mixtures(300, 5, 100.0, 6)
    at = drawn(mixture, 7)
    order = np.random.default_rng(0).permutation(300)[:90]
    np.testing.assert_array_equal(mixture.take(order).content_at(at[order]), mixture.content_at(at)[order])
    both = MixturePositions.concatenate([mixture.take(slice(0, 100)), mixtures(40, 9, 50.0, 8)])
    np.testing.assert_array_equal(
        both.content_at(np.concatenate([at[:100], at[:40]]))[:100], mixture.content_at(at)[:100]
    )


def test_the_area_of_a_region_is_that_of_its_ellipses() -> None:
    mixture = mixtures(40, 1, 0.0, 9)
    for level in (0.5, 0.95):
        freedom = mixture.freedom[:, 0]
        squared = freedom * ((1 - level) ** (-2 / freedom) - 1)
        expected = np.pi * squared * np.sqrt(np.linalg.det(mixture.scale_m2[:, 0]))
        np.testing.assert_allclose(mixture.region_area_m2(level), expected, rtol=0.01)
    # Two that are far apart, of equal shape and weight, have twice the area of the region of one.
    scale, freedom = np.tile(100 * np.eye(2), (1, 2, 1, 1)), np.full((1, 2), np.inf)
    two = MixturePositions.of_components(np.zeros((1, 2)), np.array([[[0.0, 0.0], [1e5, 0.0]]]), scale, freedom)
    assert two.region_area_m2(0.9)[0] == pytest.approx(2 * np.pi * 100 * chi2(2).ppf(0.9), rel=0.03)


def test_the_mode_is_a_peak_above_all_centres() -> None:
    mixture = mixtures(40, 6, 40.0, 10)
    mode_en_m = mixture.mode_en_m()
    highest = mixture.log_density(mode_en_m)
    for off_m in np.random.default_rng(0).normal(0, 1, (200, 40, 2)):
        assert (mixture.log_density(mode_en_m + off_m) <= highest + 1e-4).all()
    for component in range(6):
        assert (mixture.log_density(mixture.component_en_m[:, component]) <= highest).all()


def test_separate_solutions_have_their_probability_and_their_own_covariance() -> None:
    """Two close components are one solution, a far one is another, and one of half a percent has no name."""
    centres = [[0.0, 0.0], [10.0, 0.0], [5000.0, 0.0], [0.0, 9000.0]]
    mixture = MixturePositions.of_components(
        np.log([[0.2, 0.1, 0.695, 0.005], [1.0, 1.0, 1e-300, 1e-300]]),
        np.array([centres, centres]),
        np.tile(100 * np.eye(2), (2, 4, 1, 1)),
        np.full((2, 4), 4.0),
    )
    found = mixture.alternatives()
    np.testing.assert_allclose(found.probability, [[0.695, 0.3], [1.0, 0.0]], atol=1e-12)
    np.testing.assert_allclose(found.en_m[0], [[5000, 0], [10 / 3, 0]], atol=1e-9)
    np.testing.assert_allclose(found.covariance_m2[0, 0], 200 * np.eye(2))
    np.testing.assert_allclose(found.covariance_m2[0, 1], [[200 + 200 / 9, 0], [0, 200]])
    np.testing.assert_allclose(found.en_m[1, 0], [5, 0])
    assert np.isnan(found.en_m[1, 1]).all()
    assert np.isnan(found.covariance_m2[1, 1]).all()
    assert found.of_component.tolist() == [[1, 1, 0, -1], [0, 0, -1, -1]]


def test_a_row_without_a_sound_component_has_no_position() -> None:
    n = 7
    log_weight, centre = np.zeros((n, 2)), np.zeros((n, 2, 2))
    scale, freedom = np.tile(np.eye(2), (n, 2, 1, 1)), np.full((n, 2), 5.0)
    log_weight[0] = -np.inf
    log_weight[1, 0] = np.nan
    centre[2, 1, 0] = np.nan
    scale[3, 0] = [[1.0, 2.0], [2.0, 1.0]]
    freedom[4, 0] = np.nan
    # One that does not exist need not be sound.
    log_weight[5, 1], centre[5, 1], scale[5, 1], freedom[5, 1] = -np.inf, np.nan, np.nan, 1.0
    mixture = MixturePositions.of_components(log_weight, centre, scale, freedom)
    at, located = np.ones((n, 2)), [False] * 5 + [True] * 2
    for answer in (
        mixture.en_m[:, 0],
        mixture.covariance_m2[:, 0, 0],
        mixture.log_density(at),
        mixture.mode_en_m()[:, 0],
        mixture.content_at(at),
        mixture.region_area_m2(0.9),
        mixture.region_log_density((0.9,))[:, 0],
        mixture.alternatives().en_m[:, 0, 0],
    ):
        assert np.isfinite(answer).tolist() == located
    assert mixture.covers(at, 0.999).tolist() == located
    assert mixture.covers(np.full((n, 2), np.nan), 1.0).tolist() == [False] * n
    assert mixture.log_density(at)[5] == mixture.log_density(at)[6]
    nothing = mixture.take(slice(0, 0))
    assert nothing.alternatives().probability.shape == (0, 1)
    assert nothing.content_at(at[:0]).shape == nothing.mode_en_m()[:, 0].shape == (0,)


def test_a_mixture_of_other_shapes_is_refused() -> None:
    arrays = [np.zeros((3, 2)), np.zeros((3, 2, 2)), np.tile(np.eye(2), (3, 2, 1, 1)), np.full((3, 2), 5.0)]
    MixturePositions.of_components(*arrays)
    sound = MixturePositions.of_components(*arrays)
    for name in ("log_weight", "component_en_m", "scale_m2", "freedom"):
        with pytest.raises(ValueError, match=f"{name} must have the shape"):
            replace(sound, **{name: getattr(sound, name)[:2]})
    with pytest.raises(ValueError, match="freedom must be above 2, the least is 2"):
        replace(sound, freedom=np.full((3, 2), 2.0))


def test_a_row_has_the_same_mode_and_content_alone_and_among_others() -> None:
    """Light components count in no row, though a row beside it has as many heavy ones."""
    rng = np.random.default_rng(0)
    n, k = 60, 8
    log_weight = np.log(rng.dirichlet(np.full(k, 0.3), n) + 1e-12)
    centre_m, sigma_m = rng.normal(0, 3000, (n, k, 2)), rng.lognormal(4, 1.5, (n, k, 1, 1))
    whole = MixturePositions.of_components(log_weight, centre_m, sigma_m**2 * np.eye(2), np.full((n, k), 5.0))
    alone = [whole.take(slice(row, row + 1)) for row in range(n)]
    modes_m = np.concatenate([one.mode_en_m() for one in alone])
    np.testing.assert_allclose(modes_m, whole.mode_en_m(), atol=1e-6)
    contents = np.concatenate([one.content_at(one.en_m) for one in alone])
    np.testing.assert_array_equal(contents, whole.content_at(whole.en_m))
