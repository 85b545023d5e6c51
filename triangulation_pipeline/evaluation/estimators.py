"""The estimators that an evaluation compares: the model and the classical baselines.

A new baseline is one more entry of ``ESTIMATORS``: pictures, tables, headline and command line read that list.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.evaluation.summary import CLASSICAL_NAME, MODEL_NAME
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.scenario import Features, Scenario
from triangulation_pipeline.physics.solvers.gauss_newton import Loss, gauss_newton
from triangulation_pipeline.physics.solvers.mixture import mixture_crlb_m, mixture_maximum_likelihood
from triangulation_pipeline.physics.solvers.signal_strength import power_weighted_centroid
from triangulation_pipeline.positions import Positions
from triangulation_pipeline.samples import Samples

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """The samples to locate and all that an estimator may use."""

    geometry: Geometry
    scenario: Scenario
    test: Samples
    train: Samples  # with known positions, to fit the site biases on
    predicted: Positions  # the model's answer for ``test``

    @property
    def has_arrival_times(self) -> bool:
        """Whether the scenario gives arrival times and three sites or more take them."""
        return self.scenario.features is Features.rss_tdoa and self.geometry.network.locates_by_time

    @cached_property
    def truth_en_m(self) -> Float:
        """(n, 2) true positions, east and north."""
        return self.test.tx_en_m(self.geometry.network.frame)

    def mixture_crlb_m(self) -> Float:
        """(n,) Cramér-Rao bound with delayed paths, by arrival times alone; NaN if there are none."""
        if not self.has_arrival_times:
            return np.full(len(self.test), np.nan)
        return mixture_crlb_m(self.geometry, self.truth_en_m, self.test, self.scenario.excess_delay)


@dataclass(frozen=True)
class Estimator:
    """One way to locate the samples of a problem, and how people see it.

    ``name`` is the key of its numbers in stored evaluations. ``colour`` is a name in ``plots.style.PALETTE``. Pictures
    are not scaled to an estimator that ``is_crude``.
    """

    name: str
    label: str
    colour: str
    locate: Callable[[Problem], Positions]
    needs_arrival_times: bool = True
    width: float = 1.6
    is_crude: bool = False

    def exists_in(self, problem: Problem) -> bool:
        """Whether it exists in the problem's scenario."""
        return problem.has_arrival_times or not self.needs_arrival_times

    @property
    def prefix(self) -> str:
        """The beginning of the names of its numbers in the headline of an evaluation."""
        return "test" if self.name == MODEL_NAME else self.name


def _least_squares(loss: Loss) -> Callable[[Problem], Positions]:
    return lambda problem: gauss_newton(problem.geometry, problem.test, loss)


def _mixture_ml(problem: Problem) -> Positions:
    delay = problem.scenario.excess_delay
    return mixture_maximum_likelihood(problem.geometry, problem.test, delay)


MODEL = Estimator(MODEL_NAME, "model", "blue", lambda problem: problem.predicted, False, width=2.6)
POWER_WEIGHTED_CENTROID = Estimator(
    "power_weighted_centroid",
    "power-weighted centroid",
    "purple",
    lambda problem: power_weighted_centroid(problem.geometry.network, problem.test),
    needs_arrival_times=False,
    is_crude=True,
)
GAUSS_NEWTON = Estimator("gauss_newton", "Gauss-Newton", "vermilion", _least_squares(Loss.linear))
HUBER_GAUSS_NEWTON = Estimator(CLASSICAL_NAME, "Huber Gauss-Newton", "orange", _least_squares(Loss.huber))
MIXTURE_ML = Estimator("mixture_ml", "mixture likelihood", "green", _mixture_ml, width=1.4)

# The model, then the baselines from the simplest to the best.
ESTIMATORS = (
    MODEL,
    POWER_WEIGHTED_CENTROID,
    GAUSS_NEWTON,
    HUBER_GAUSS_NEWTON,
    MIXTURE_ML,
)
# As people see them.
BEST_FIRST = (MODEL, *reversed(ESTIMATORS[1:]))
