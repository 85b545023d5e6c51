import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triangulation_pipeline.model.geometry import SiteGeometry, centred, gauss_newton_step, information
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, random_network
from triangulation_pipeline.physics.geometry import Geometry, time_difference_information


@pytest.mark.parametrize("network", [NORTH_WEST_ITALY, random_network(20, seed=3)], ids=["italy", "random"])
def test_ranges_and_gradients_are_those_of_physics(network: ReceiverNetwork) -> None:
    en_m = np.random.default_rng(0).uniform(-100e3, 100e3, (500, 2)).astype(np.float32)
    expected, gradient = Geometry(network, 2.0).ranges_m(en_m.astype(float))
    single = SiteGeometry(network, 2.0)
    double = SiteGeometry(network, 2.0).double()
    # The sites were rounded to float32: 4 mm at 100 km.
    np.testing.assert_allclose(double.ranges_m(torch.tensor(en_m).double())[0].numpy(), expected, rtol=0, atol=0.01)
    found, grad_e, grad_n = (x.numpy() for x in single.ranges_m(torch.tensor(en_m)))
    np.testing.assert_allclose(found, expected, rtol=5e-7, atol=0.02)
    np.testing.assert_allclose(np.stack([grad_e, grad_n], -1), gradient, atol=2e-5)


def test_ranges_gradients_are_their_derivatives() -> None:
    geometry = SiteGeometry(NORTH_WEST_ITALY, 2.0).double()
    en_m = torch.tensor([[30e3, -40e3], [-5e3, 12e3]], dtype=torch.float64, requires_grad=True)
    distance, grad_e, grad_n = geometry.ranges_m(en_m)
    for site in range(7):
        (derivative,) = torch.autograd.grad(distance[:, site].sum(), en_m, retain_graph=True)
        # The lift of the surface by the transmitter's height is held constant in the gradient: 2 m over 6378 km.
        torch.testing.assert_close(
            derivative, torch.stack([grad_e[:, site], grad_n[:, site]], -1), rtol=1e-6, atol=1e-6
        )


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), receivers=st.integers(3, 12))
def test_the_step_is_the_weighted_least_squares_solution(seed: int, receivers: int) -> None:
    rng = np.random.default_rng(seed)
    bearing = rng.uniform(0, 2 * np.pi, receivers)
    grad_e, grad_n = np.cos(bearing), np.sin(bearing)
    weight, residual = rng.uniform(0.5, 2, receivers), rng.normal(size=receivers)
    design = np.stack([grad_e, grad_n, np.ones(receivers)], 1)
    normal = design.T @ (weight[:, None] * design)
    if np.linalg.cond(normal) > 1e6:
        return
    expected = np.linalg.solve(normal, design.T @ (weight * residual))[:2]
    rows = [torch.tensor(x)[None] for x in (residual, weight, grad_e, grad_n)]
    found = gauss_newton_step(*rows, damping=0.0)[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    # The emission time is eliminated: a common delay changes nothing.
    rows[0] = rows[0] + 5.0
    np.testing.assert_allclose(gauss_newton_step(*rows, damping=0.0)[0].numpy(), found, rtol=1e-6, atol=1e-8)


def test_damping_shortens_the_step_and_no_information_gives_none() -> None:
    generator = torch.Generator().manual_seed(0)
    residual, weight, grad_e, grad_n = torch.rand((4, 10, 5), generator=generator, dtype=torch.float64)
    free, damped = (gauss_newton_step(residual, weight, grad_e, grad_n, d).norm(dim=1) for d in (0.0, 0.5))
    assert (damped < free).all()
    nothing = gauss_newton_step(residual, torch.zeros_like(weight), grad_e, grad_n, 1e-3)
    assert (nothing == 0).all()


def test_information_is_that_of_physics() -> None:
    rng = np.random.default_rng(1)
    gradient, weight = rng.normal(size=(20, 7, 2)), rng.uniform(size=(20, 7)) * (rng.random((20, 7)) > 0.3)
    ee, nn, en = information(*(torch.tensor(x) for x in (weight, gradient[..., 0], gradient[..., 1])))
    found = np.array([[ee.numpy(), en.numpy()], [en.numpy(), nn.numpy()]]).transpose(2, 0, 1)
    np.testing.assert_allclose(found, time_difference_information(gradient, weight), rtol=1e-9, atol=1e-12)


def test_centring_is_by_the_weighted_mean_and_survives_no_weight() -> None:
    values, weight = (
        torch.tensor([[1.0, 5.0, 100.0], [1.0, 2.0, 3.0]]),
        torch.tensor([[1.0, 3.0, 0.0], [0.0, 0.0, 0.0]]),
    )
    torch.testing.assert_close(centred(values, weight), torch.tensor([[-3.0, 1.0, 96.0], [1.0, 2.0, 3.0]]))
