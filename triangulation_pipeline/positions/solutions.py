"""The separate solutions of posteriors."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.positions.student_t import moments

# Components farther apart than so many standard deviations of both are separate solutions, which have a name if they
# are at least so probable.
SEPARATE_SIGMAS = 4.0
LEAST_ALTERNATIVE = 0.01


@dataclass(frozen=True)
class Alternatives:
    """The separate solutions of n rows, at most s in a row, the most probable first.

    Where a row has fewer, the probability is 0 and the rest is NaN.
    """

    probability: NDArray[np.float64]  # (n, s)
    en_m: NDArray[np.float64]  # (n, s, 2) mean of each solution, east and north
    covariance_m2: NDArray[np.float64]  # (n, s, 2, 2) of each solution
    of_component: NDArray[np.int64]  # (n, k) the solution that each component is a part of; -1 if of none


def separate_solutions(
    weight: NDArray[np.float64], centre_m: NDArray[np.float64], covariance_m2: NDArray[np.float64]
) -> Alternatives:
    """The separate solutions of mixtures: components within a few standard deviations of each other are one.

    From the heaviest component on, each one that is left takes in all that lie within ``SEPARATE_SIGMAS`` of it,
    by the sum of both covariances. What has a probability below ``LEAST_ALTERNATIVE`` is left out.

    Parameters
    ----------
    weight : ndarray, shape (n, k)
        Weights of the components; 0 for one that does not exist.
    centre_m : ndarray, shape (n, k, 2)
        Their centres, east and north, metres.
    covariance_m2 : ndarray, shape (n, k, 2, 2)
        Their covariances, square metres.

    Returns
    -------
    Alternatives
        The solutions of each row, the most probable first.
    """
    left = weight > 0
    found: list[tuple[NDArray[np.float64], ...]] = []
    member = np.full(weight.shape, -1)
    # What is left of a row ends its search once all of it together would have no name.
    while len(rows := np.flatnonzero(np.where(left, weight, 0.0).sum(1) >= LEAST_ALTERNATIVE)):
        part_weight, part_en_m, part_m2 = weight[rows], centre_m[rows], covariance_m2[rows]
        core, index = np.where(left[rows], part_weight, -1.0).argmax(1), np.arange(len(rows))
        east, north = np.moveaxis(part_en_m - part_en_m[index, core][:, None], -1, 0)
        (ee, en), (_, nn) = np.moveaxis(part_m2 + part_m2[index, core][:, None], (-2, -1), (0, 1))
        squared = (nn * east**2 - 2 * en * east * north + ee * north**2) / (ee * nn - en * en)
        near = squared <= SEPARATE_SIGMAS**2
        near[index, core] = True
        near &= left[rows]
        left[rows] &= ~near
        member[rows] = np.where(near, len(found), member[rows])
        part = np.where(near, part_weight, 0.0)
        solution = _none(len(weight))
        for whole, values in zip(solution, (part.sum(1), *moments(part, part_en_m, part_m2)), strict=True):
            whole[rows] = values
        found.append(solution)
    if not found:
        found.append(_none(len(weight)))
    probability, en_m, solution_m2 = (np.stack(part, axis=1) for part in zip(*found, strict=True))
    probability = np.where(probability >= LEAST_ALTERNATIVE, probability, 0.0)
    order = np.argsort(-probability, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    order = order[:, : max(1, int((probability > 0).sum(1).max(initial=0)))]
    probability = np.take_along_axis(probability, order, 1)
    named = probability > 0
    of_component = np.where(member >= 0, np.take_along_axis(rank, np.maximum(member, 0), 1), -1)
    return Alternatives(
        probability,
        np.where(named[..., None], np.take_along_axis(en_m, order[..., None], 1), np.nan),
        np.where(named[..., None, None], np.take_along_axis(solution_m2, order[..., None, None], 1), np.nan),
        np.where(of_component < named.sum(1, keepdims=True), of_component, -1),
    )


def _none(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Probability, place and covariance of a solution that no row has."""
    return np.zeros(n), np.full((n, 2), np.nan), np.full((n, 2, 2), np.nan)
