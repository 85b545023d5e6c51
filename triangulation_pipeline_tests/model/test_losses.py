import numpy as np
import torch
from scipy.stats import multivariate_t

from triangulation_pipeline.model.locator import LEAST_FREEDOM, Mixture, freedom
from triangulation_pipeline.model.losses import DISTANCE_WEIGHT, FARTHEST_BOUNDS, locator_loss, log_density


def mixture(**changes: torch.Tensor) -> Mixture:
    """Two rows of three components; the last of the second row is none."""
    weight = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0]])
    columns = {
        "log_weight_BC": weight.log(),
        "mean_m_BC2": torch.tensor([[[0.0, 0.0], [50.0, 10.0], [-400.0, 0.0]], [[1e3, 0.0], [0.0, 0.0], [0.0, 0.0]]]),
        "scale_tril_m_BC3": torch.tensor(
            [
                [[20.0, 5.0, 10.0], [50.0, -20.0, 30.0], [5.0, 0.0, 5.0]],
                [[100.0, 90.0, 5.0], [10.0, 0.0, 10.0], [1.0, 0.0, 1.0]],
            ]
        ),
        "freedom_BC": torch.tensor([[3.0, 10.0, 2.5], [4.0, 4.0, 4.0]]),
        "fix_m_BK2": torch.tensor([[[0.0, 0.0], [-400.0, 0.0]], [[1e3, 0.0], [0.0, 0.0]]]),
        "bound_m_BK": torch.tensor([[20.0, 10.0], [100.0, torch.inf]]),
    }
    return Mixture(**(columns | changes))


def test_the_density_is_that_of_scipy() -> None:
    posterior = mixture()
    at = torch.tensor([[30.0, -10.0], [900.0, -95.0]])
    found = log_density(posterior, at).numpy()
    for row in range(2):
        total = 0.0
        for c in range(3):
            first, cross, second = posterior.scale_tril_m_BC3[row, c].double().numpy()
            tril = np.array([[first, 0], [cross, second]])
            density = multivariate_t(
                posterior.mean_m_BC2[row, c].double().numpy(), tril @ tril.T, float(posterior.freedom_BC[row, c])
            )
            total += float(posterior.log_weight_BC[row, c].exp()) * density.pdf(at[row].double().numpy())
        np.testing.assert_allclose(found[row], np.log(total), rtol=1e-4)


def test_the_density_integrates_to_one() -> None:
    axis = torch.arange(-3000.0, 3000.0, 4.0)
    points = torch.cartesian_prod(axis, axis)
    # Lighter tails than those of the other test: what lies outside the square is negligible.
    posterior = mixture(freedom_BC=torch.full((2, 3), 8.0))
    one = Mixture(
        *(
            getattr(posterior, name)[:1].expand(len(points), *getattr(posterior, name).shape[1:])
            for name in Mixture.__dataclass_fields__
        )
    )
    assert abs(float(log_density(one, points).exp().sum()) * 16 - 1) < 2e-3


def test_the_loss_is_the_density_and_the_distance_of_the_nearest_hypothesis() -> None:
    posterior, at = mixture(), torch.tensor([[-400.0, 30.0], [1e3, 0.0]])
    expected = DISTANCE_WEIGHT * torch.tensor([10**0.5 - 1, 0.0]) - log_density(posterior, at)
    torch.testing.assert_close(locator_loss(posterior, at), expected)


def test_distances_of_absurd_rows_are_bounded_and_dead_hypotheses_count_for_nothing() -> None:
    posterior, far = mixture(), torch.tensor([[0.0, 1e7], [0.0, 0.0]])
    distance = (locator_loss(posterior, far) + log_density(posterior, far)) / DISTANCE_WEIGHT
    torch.testing.assert_close(distance, torch.tensor([FARTHEST_BOUNDS, 101**0.5 - 1]), rtol=1e-4, atol=0)


def test_gradients_of_a_component_that_is_none_are_zero() -> None:
    parts = {name: getattr(mixture(), name).clone().requires_grad_() for name in ("mean_m_BC2", "log_weight_BC")}
    locator_loss(mixture(**parts), torch.zeros(2, 2)).sum().backward()
    for part in parts.values():
        assert torch.isfinite(part.grad).all()
        assert (part.grad[1, 2] == 0).all()


def test_degrees_of_freedom_begin_at_four_and_leave_a_covariance() -> None:
    found = freedom(torch.tensor([-1e9, 0.0, 1e9]))
    assert found[0] > LEAST_FREEDOM - 1e-6 > 2
    assert found[1] == 4
    assert torch.isfinite(found).all()
