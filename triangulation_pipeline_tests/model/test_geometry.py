import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_ndtr

from triangulation_pipeline.model.arrays import mean
from triangulation_pipeline.model.arrivals import Arrivals, direct_and_late, least_cost, log_normal
from triangulation_pipeline.model.geometry import Beside, Ellipse, Information, distances_m, ranges_m, within
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, random_network
from triangulation_pipeline.physics.geometry import Geometry, time_difference_information


def ranges_of(network: ReceiverNetwork, en_m: torch.Tensor, altitude_m: object) -> tuple[torch.Tensor, ...]:
    site_m = torch.tensor(network.site_enu_m.T, dtype=en_m.dtype).reshape(3, -1, *[1] * (en_m.ndim - 1))
    return ranges_m(en_m, site_m, network.frame.surface_coefficients, altitude_m)


@pytest.mark.parametrize("network", [NORTH_WEST_ITALY, random_network(20, seed=3)], ids=["italy", "random"])
def test_ranges_and_gradients_are_those_of_physics(network: ReceiverNetwork) -> None:
    rng = np.random.default_rng(0)
    en_m = rng.uniform(-100e3, 100e3, (500, 2)).astype(np.float32)
    altitude_m = rng.uniform(0, 12e3, 500)
    expected, gradient = Geometry(network, altitude_m).ranges_m(en_m.astype(float))
    found, grad_e, grad_n = ranges_of(network, torch.tensor(en_m), torch.tensor(altitude_m, dtype=torch.float32))
    np.testing.assert_allclose(found.numpy().T, expected, rtol=5e-7, atol=0.02)
    np.testing.assert_allclose(torch.stack([grad_e, grad_n], -1).transpose(0, 1).numpy(), gradient, atol=2e-5)


def test_arrays_and_tensors_have_the_same_ranges() -> None:
    en_m = np.random.default_rng(0).uniform(-100e3, 100e3, (50, 2)).astype(np.float32)
    surface, site_m = NORTH_WEST_ITALY.frame.surface_coefficients, NORTH_WEST_ITALY.site_enu_m.astype(np.float32)
    by_arrays = ranges_m(en_m, site_m.T[..., None], surface, np.float32(300.0))
    by_tensors = ranges_of(NORTH_WEST_ITALY, torch.tensor(en_m), 300.0)
    for found, expected in zip(by_arrays, by_tensors, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(distances_m(en_m, site_m.T[..., None], surface, np.float32(300.0)), by_arrays[0])


def test_at_a_site_itself_everything_is_finite() -> None:
    site_m = NORTH_WEST_ITALY.site_enu_m[2]
    found = ranges_of(NORTH_WEST_ITALY, torch.tensor(site_m[:2], dtype=torch.float32), 250.0)
    assert all(torch.isfinite(x).all() for x in found)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), receivers=st.integers(3, 12))
def test_the_step_is_the_weighted_least_squares_solution(seed: int, receivers: int) -> None:
    rng = np.random.default_rng(seed)
    bearing = rng.uniform(0, 2 * np.pi, receivers)
    grad_e, grad_n = np.cos(bearing), np.sin(bearing)
    weight, residual = rng.uniform(0.5, 2, receivers), rng.normal(size=receivers)
    design = np.stack([grad_e, grad_n, np.ones(receivers)], 1)
    normal = design.T @ (weight[:, None] * design)
    if np.linalg.cond(normal) > 1e4:
        return
    expected = np.linalg.solve(normal, design.T @ (weight * residual))[:2]
    information = Information.of(weight, grad_e, grad_n)
    # The emission time is eliminated: a common delay changes nothing.
    for common in (0.0, 5.0):
        np.testing.assert_allclose(information.step_m(residual + common, weight), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_less(
        np.hypot(*Information.of(weight, grad_e, grad_n, damping=0.5).step_m(residual, weight)),
        np.linalg.norm(expected) + 1e-9,
    )


def test_information_and_spread_are_those_of_physics_also_of_thin_ellipses_in_float32() -> None:
    rng = np.random.default_rng(1)
    gradient, weight = rng.normal(size=(20, 7, 2)), rng.uniform(0.1, 1, (20, 7)) * (rng.random((20, 7)) > 0.1)
    gradient[10:, :, 1] = gradient[10:, :, 0] + 1e-2 * gradient[10:, :, 1]
    expected = time_difference_information(gradient, weight)
    arrays = (x.T.astype(np.float32) for x in (weight, gradient[..., 0], gradient[..., 1]))
    ellipse = Information.of(*arrays).ellipse
    offset = rng.normal(size=(20, 2))
    found = ellipse.squared(*offset.T.astype(np.float32))
    np.testing.assert_allclose(found, np.einsum("ni,nij,nj->n", offset, expected, offset), rtol=2e-3)
    # The inverse of the information, by its axes: the long one of a thin ellipse is known to a per cent.
    first, cross, second = (part.astype(float) for part in ellipse.spread_m())
    np.testing.assert_allclose(first**2, np.linalg.inv(expected)[:, 0, 0], rtol=1e-2)
    np.testing.assert_allclose(cross**2 + second**2, np.linalg.inv(expected)[:, 1, 1], rtol=1e-2)
    np.testing.assert_allclose((first * second) ** 2 * np.linalg.det(expected), 1.0, rtol=1e-2)


def test_what_is_known_beside_arrival_times_adds_to_the_information_and_pulls_uphill() -> None:
    rng = np.random.default_rng(4)
    site_m, place_m = rng.uniform(-40e3, 40e3, (6, 2)), np.array([3e3, -5e3])
    slope, hears, area_m = 2.5, np.array([1, 1, 1, 1, 1, 0]), 30e3
    measured = rng.normal(size=6)

    def level(at_m: np.ndarray) -> np.ndarray:
        """What is off, with the common level at its best fit."""
        off = measured + slope * np.log(np.hypot(*(at_m - site_m).T))
        return (off - off[:5].mean()) * hears

    steps = np.eye(2) * 0.5
    jacobian = np.stack([(level(place_m + step) - level(place_m - step)) for step in steps], -1)
    cost_gradient = jacobian.T @ level(place_m)
    range_m = np.hypot(*(place_m - site_m).T)
    gradient = (place_m - site_m) / range_m[:, None]
    weight = rng.uniform(1e-9, 1e-8, 6)
    expected = time_difference_information(gradient, weight) + jacobian.T @ jacobian + np.eye(2) / area_m**2
    beside = Beside.of(level(place_m), np.full(6, slope), hears, range_m, *gradient.T, area_m)
    information = Information.of(weight, *gradient.T, beside=beside)
    for offset in rng.normal(size=(5, 2)):
        found = float(information.ellipse.squared(*offset))
        np.testing.assert_allclose(found, offset @ expected @ offset, rtol=1e-4)
    # Without residuals the levels alone move the place, downhill in their cost.
    step_m = information.step_m(np.zeros(6), weight)
    np.testing.assert_allclose(step_m, -np.linalg.solve(expected, cost_gradient), rtol=1e-3)


def test_an_ellipse_comes_back_from_its_spread() -> None:
    spread_m = torch.tensor([[30.0, -12.0, 5.0], [2000.0, 1900.0, 3.0]])
    found = torch.stack(Ellipse.of_spread(*spread_m.T).spread_m(), -1)
    torch.testing.assert_close(found, spread_m, rtol=1e-3, atol=1e-2)


def test_steps_are_shortened_and_never_lengthened() -> None:
    step_m = torch.tensor([[3.0, 30.0, 0.0], [4.0, 40.0, 0.0]], requires_grad=True)
    shortened_m = torch.stack(within((step_m[0], step_m[1]), 10.0))
    torch.testing.assert_close(shortened_m, torch.tensor([[3.0, 6.0, 0.0], [4.0, 8.0, 0.0]]))
    shortened_m.sum().backward()
    assert step_m.grad is not None
    assert torch.isfinite(step_m.grad).all()


def test_a_mean_of_nothing_is_zero() -> None:
    assert mean(torch.ones(3, 2), torch.zeros(3, 2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("ratio", [0.01, 0.3, 5.0])
def test_the_likelihood_of_direct_and_late_paths_is_exact_in_float32(ratio: float) -> None:
    x = np.concatenate([np.linspace(-40, 40, 4001), [-3e3, -300.0, 300.0, 3e3, 1e5]])
    for p in (0.002, 0.1, 1.0):
        direct, late = direct_and_late(x.astype(np.float32), np.float32(ratio), p)
        found = least_cost(x.astype(np.float32), np.float32(ratio)) - np.log(direct + late)
        # Minus log likelihood of a normal, or a normal plus an exponential.
        by_late = np.log(p * ratio) + 0.5 * np.log(2 * np.pi) + ratio * (ratio / 2 - x) + log_ndtr(x - ratio)
        with np.errstate(divide="ignore"):
            expected = -np.logaddexp(np.log1p(-p) - x * x / 2, by_late)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)


def test_the_logarithm_of_the_normal_probability_is_exact_in_float32() -> None:
    u = np.linspace(-60, 10, 5001)
    for found in (log_normal(u.astype(np.float32)), log_normal(torch.tensor(u, dtype=torch.float32)).numpy()):
        np.testing.assert_allclose(found, log_ndtr(u), rtol=1e-5, atol=1e-6)


def cost(residual: np.ndarray, sigma: np.ndarray, p: float, m: float) -> float:
    """Minus log likelihood of a normal, or a normal plus an exponential."""
    x, ratio = residual / sigma, sigma / m
    late = np.log(p * ratio) + 0.5 * np.log(2 * np.pi) + ratio * (ratio / 2 - x) + log_ndtr(x - ratio)
    return float(-np.logaddexp(np.log1p(-p) - x * x / 2, late).sum())


def test_the_emission_time_is_nearly_the_likeliest_though_half_of_the_paths_are_late() -> None:
    rng = np.random.default_rng(2)
    n, p, m = 200, 0.25, 200.0
    sigma = rng.uniform(5, 30, (n, 9))
    delay = rng.exponential(m, (n, 9)) * (rng.random((n, 9)) < 0.5)
    residual = rng.normal(size=(n, 9)) * sigma + delay + rng.uniform(-1e4, 1e4, (n, 1))
    arrays = [x.T.astype(np.float32) for x in (residual, sigma, np.ones((n, 9)))]
    seen = Arrivals.of(*arrays, p, m)
    worse = []
    for row in range(n):
        best = min(
            minimize_scalar(lambda t, r=row: cost(residual[r] - t, sigma[r], p, m), bounds=(at - 60, at + 60)).fun
            for at in residual[row]
        )
        worse.append(cost(seen.residual_m[:, row].astype(float), sigma[row], p, m) - best)
    assert np.median(worse) < 0.05
    assert np.quantile(worse, 0.95) < 1.0
    # Late arrivals weigh little, and a delay is due to them.
    late = seen.residual_m > 8 * arrays[1]
    assert (seen.weight * arrays[1] ** 2)[late].max() < 0.1
    assert (seen.due_m[late] > 0.9 * m).all()


def test_what_has_no_arrival_time_has_no_weight() -> None:
    timed = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    seen = Arrivals.of(torch.full((3, 2), 7.0), torch.ones(3, 2), timed, 0.1, 100.0)
    assert (seen.weight[timed == 0] == 0).all()
    assert (seen.residual_m[timed == 0] == 0).all()
    assert torch.isfinite(seen.residual_m).all()


def test_another_weight_of_one_receiver_is_least_squares_with_it() -> None:
    rng = np.random.default_rng(3)
    design = np.column_stack([rng.normal(size=(6, 2)), np.ones(6)])
    weight, due_m = rng.uniform(0.5, 2, 6) / 15.0**2, rng.uniform(0, 200, 6)
    other = weight * np.array([0.01, 30.0, 0.2, 1.0, 1e-4, 5.0])
    residual_m = rng.normal(size=6) * 20
    solved = np.linalg.lstsq(design * np.sqrt(weight)[:, None], residual_m * np.sqrt(weight), rcond=None)[0]
    residual_m = residual_m - design @ solved  # at the fix
    information = Information.of(weight, design[:, 0], design[:, 1])
    move_m, spread_m = information.reweighted(weight, other, residual_m, due_m)
    for i in range(6):
        changed, observed_m = weight.copy(), residual_m.copy()
        changed[i], observed_m[i] = other[i], residual_m[i] - due_m[i]
        normal = design.T @ (changed[:, None] * design)
        expected_m = np.linalg.solve(normal, design.T @ (changed * observed_m))[:2]
        np.testing.assert_allclose([part[i] for part in move_m], expected_m, rtol=1e-4, atol=1e-3)
        first, cross, second = (part[i] for part in spread_m)
        factor = np.array([[first, 0], [cross, second]])
        np.testing.assert_allclose(factor @ factor.T, np.linalg.inv(normal)[:2, :2], rtol=1e-4, atol=1e-3)
