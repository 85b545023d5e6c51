import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, multivariate_t

from triangulation_pipeline.model.locator import Located
from triangulation_pipeline.model.losses import locator_loss, normalised_error_squared


def some_rows(n: int, seed: int, solved: bool | None = None) -> tuple[Located, torch.Tensor]:
    """Random positions of three rounds, covariances and targets, some hundred metres apart, float64."""
    rng = np.random.default_rng(seed)
    tril = np.zeros((n, 2, 2))
    tril[:, 0, 0], tril[:, 1, 1] = np.exp(rng.normal(4, 1, (2, n)))
    tril[:, 1, 0] = rng.normal(0, 60, n)
    which = rng.random(n) < 0.5 if solved is None else np.full(n, solved)
    rounds = tuple(torch.tensor(rng.normal(0, 200, (n, 2))) for _ in range(3))
    return Located(rounds, torch.tensor(tril), torch.tensor(which)), torch.tensor(rng.normal(0, 200, (n, 2)))


def position_term(located: Located, target: torch.Tensor) -> np.ndarray:
    """The error in units of 30 m, robust, of all rounds; of regressed rows that of the answer, squared, of 30 km."""
    robust = [np.sqrt(1 + ((p - target).numpy() ** 2).sum(1) / 30.0**2) - 1 for p in located.rounds_m_B2]
    squared = ((located.en_m_B2 - target).numpy() ** 2).sum(1) / 30e3**2
    return np.where(located.solved_B.numpy(), np.mean(robust, axis=0), squared)


def negative_log_likelihood(located: Located, target: torch.Tensor) -> np.ndarray:
    """Twice what the loss has beside the position's error."""
    return 2 * (locator_loss(located, target).numpy() - position_term(located, target))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_nees_against_numpy(seed: int) -> None:
    located, target = some_rows(5, seed)
    tril, error = located.scale_tril_m_B22.numpy(), (target - located.en_m_B2).numpy()
    expected = [e @ np.linalg.inv(factor @ factor.T) @ e for e, factor in zip(error, tril, strict=True)]
    np.testing.assert_allclose(normalised_error_squared(located, target).numpy(), expected, rtol=1e-9)


def test_likelihoods_are_scipys() -> None:
    for solved in (True, False):
        located, target = some_rows(40, seed=0, solved=solved)
        found = negative_log_likelihood(located, target)
        for row in range(40):
            mean, tril = located.en_m_B2[row].numpy(), located.scale_tril_m_B22[row].numpy()
            expected = (
                multivariate_t(mean, tril @ tril.T, df=4) if solved else multivariate_normal(mean, tril @ tril.T)
            ).logpdf(target[row].numpy())
            assert math.isclose(found[row], -expected, rel_tol=1e-9)


def test_densities_integrate_to_one() -> None:
    # x = s tan(u) maps the plane onto a square, so that the heavy tail is inside.
    u = (np.arange(400) + 0.5) / 400 * np.pi - np.pi / 2
    x, jacobian = 80 * np.tan(u), 80 / np.cos(u) ** 2 * np.pi / 400
    grid = torch.tensor(np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2))
    tril = torch.tensor([[60.0, 0.0], [30.0, 90.0]], dtype=torch.float64)
    for solved in (True, False):
        centre = torch.zeros_like(grid)
        located = Located((centre,), tril.expand(len(grid), 2, 2), torch.full((len(grid),), solved))
        density = np.exp(-negative_log_likelihood(located, grid))
        assert abs((density * np.outer(jacobian, jacobian).ravel()).sum() - 1) < 1e-3


def test_the_loss_is_a_rows_own() -> None:
    located, target = some_rows(30, seed=2)
    whole = locator_loss(located, target)
    assert whole.shape == (30,)
    for row in range(0, 30, 7):
        alone = Located(
            tuple(p[row : row + 1] for p in located.rounds_m_B2),
            located.scale_tril_m_B22[row : row + 1],
            located.solved_B[row : row + 1],
        )
        torch.testing.assert_close(locator_loss(alone, target[row : row + 1])[0], whole[row], rtol=1e-12, atol=0)


def test_solved_rows_bear_outliers_and_regressed_rows_are_squared() -> None:
    tril = torch.eye(2, dtype=torch.float64)[None] * 1e6
    target = torch.zeros(1, 2, dtype=torch.float64)

    def loss(off_m: float, solved: bool) -> float:
        position = torch.tensor([[off_m, 0.0]], dtype=torch.float64)
        return float(locator_loss(Located((position,), tril, torch.tensor([solved])), target))

    base = {solved: loss(0.0, solved) for solved in (True, False)}
    assert 1.95 < (loss(20e3, True) - base[True]) / (loss(10e3, True) - base[True]) < 2.05
    assert 3.95 < (loss(20e3, False) - base[False]) / (loss(10e3, False) - base[False]) < 4.05
