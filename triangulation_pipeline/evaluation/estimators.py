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
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.scenario import Features
from triangulation_pipeline.physics.solvers.chan import chan
from triangulation_pipeline.physics.solvers.fingerprint import nearest_fingerprints
from triangulation_pipeline.physics.solvers.gauss_newton import Loss, gauss_newton
from triangulation_pipeline.physics.solvers.mixture import mixture_crlb_m, mixture_maximum_likelihood
from triangulation_pipeline.physics.solvers.signal_strength import power_weighted_centroid, strongest_receiver
from triangulation_pipeline.positions.mixtures import MixturePositions
from triangulation_pipeline.positions.points import Positions
from triangulation_pipeline.samples import Samples

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """The samples of one layout to locate, calibrated, and all that an estimator may use."""

    layout: Layout
    test: Samples
    known: Samples | None  # of the same network, calibrated, with known positions; None if every layout is another
    predicted: MixturePositions  # the model's answer for ``test``

    @cached_property
    def geometry(self) -> Geometry:
        """The network, and the altitudes of the transmitters of ``test``."""
        return Geometry(self.layout.network, self.test.tx_altitude_m)

    @property
    def has_arrival_times(self) -> bool:
        """Whether the scenario gives arrival times and three sites or more take them."""
        return self.layout.scenario.features is Features.rss_tdoa and self.layout.network.locates_by_time

    @cached_property
    def truth_en_m(self) -> Float:
        """(n, 2) true positions, east and north."""
        return self.test.tx_en_m(self.layout.network.frame)

    def mixture_crlb_m(self) -> Float:
        """(n,) Cramér-Rao bound with delayed paths, by arrival times alone; NaN if there are none."""
        if not self.has_arrival_times:
            return np.full(len(self.test), np.nan)
        return mixture_crlb_m(self.geometry, self.truth_en_m, self.test, self.layout.scenario.excess_delay)


def _by_time(problem: Problem) -> bool:
    return problem.has_arrival_times


def _always(problem: Problem) -> bool:
    return True


@dataclass(frozen=True)
class Estimator:
    """One way to locate the samples of a problem, and how people see it.

    ``name`` is the key of its numbers in stored evaluations. It does not exist for every problem. ``colour`` is a name
    in ``plots.style.PALETTE``, ``line`` a line style of Matplotlib. Pictures are not scaled to one that ``is_crude``.
    """

    name: str
    label: str
    colour: str
    locate: Callable[[Problem], Positions]
    exists_in: Callable[[Problem], bool] = _by_time
    line: str = "-"
    width: float = 1.6
    is_crude: bool = False

    @property
    def prefix(self) -> str:
        """The beginning of the names of its numbers in the headline of an evaluation."""
        return "test" if self.name == MODEL_NAME else self.name


def _least_squares(loss: Loss) -> Callable[[Problem], Positions]:
    return lambda problem: gauss_newton(problem.geometry, problem.test, loss)


def _mixture_ml(problem: Problem) -> Positions:
    return mixture_maximum_likelihood(problem.geometry, problem.test, problem.layout.scenario.excess_delay)


def _fingerprints(problem: Problem) -> Positions:
    assert problem.known is not None  # or it does not exist
    return nearest_fingerprints(problem.layout.network, problem.test, problem.known)


MODEL = Estimator(MODEL_NAME, "model", "blue", lambda problem: problem.predicted, _always, width=2.6)
# The mean has the least RMSE, the mode nearly the least median.
MODEL_MODE = Estimator(
    "model_mode",
    "model, mode",
    "sky",
    lambda problem: Positions.of_points(problem.predicted.mode_en_m()),
    _always,
    line="--",
)
STRONGEST_RECEIVER = Estimator(
    "strongest_receiver",
    "strongest receiver",
    "purple",
    lambda problem: strongest_receiver(problem.layout.network, problem.test),
    _always,
    line=":",
    is_crude=True,
)
POWER_WEIGHTED_CENTROID = Estimator(
    "power_weighted_centroid",
    "power-weighted centroid",
    "purple",
    lambda problem: power_weighted_centroid(problem.layout.network, problem.test),
    _always,
    is_crude=True,
)
NEAREST_FINGERPRINTS = Estimator(
    "nearest_fingerprints",
    "nearest fingerprints",
    "purple",
    _fingerprints,
    lambda problem: problem.known is not None and len(problem.known) > 0,
    line="--",
    is_crude=True,
)
CHAN = Estimator("chan", "Chan 1994", "vermilion", lambda problem: chan(problem.geometry, problem.test), line="--")
GAUSS_NEWTON = Estimator("gauss_newton", "Gauss-Newton", "vermilion", _least_squares(Loss.linear))
HUBER_GAUSS_NEWTON = Estimator(CLASSICAL_NAME, "Huber Gauss-Newton", "orange", _least_squares(Loss.huber))
MIXTURE_ML = Estimator("mixture_ml", "mixture likelihood", "green", _mixture_ml, width=1.4)

MODELS = (MODEL, MODEL_MODE)
# From the simplest to the best.
BASELINES = (
    STRONGEST_RECEIVER,
    POWER_WEIGHTED_CENTROID,
    NEAREST_FINGERPRINTS,
    CHAN,
    GAUSS_NEWTON,
    HUBER_GAUSS_NEWTON,
    MIXTURE_ML,
)
ESTIMATORS = (*MODELS, *BASELINES)
# As people see them.
BEST_FIRST = (*MODELS, *reversed(BASELINES))
