"""The exact posterior beside the model on the same rows: how far the model is from what is possible."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.evaluation.estimators import Float, Problem
from triangulation_pipeline.evaluation.summary import COVERAGE_LEVELS, PosteriorSummary, ScoredErrors
from triangulation_pipeline.physics.posterior import exact_posterior
from triangulation_pipeline.positions.statistics import coverage, distance_statistics, rmse_m
from triangulation_pipeline.samples import Samples

LABEL = "exact posterior"
# Receivers times rows. About 250 rows of 7 receivers are integrated per second, and fewer of more receivers: this many
# add about 4 s to an evaluation.
REFERENCE_LINKS = 7000

Rows = NDArray[np.bool_]


@dataclass(frozen=True)
class Reference:
    """The exact posterior on some of the n test rows, and the model's density there. NaN on all other rows."""

    distance_m: Float  # (n,) of the posterior mean from the truth
    log_density: Float  # (n,) of the posterior at the truth, nats per m^2
    content: Float  # (n,) probability of the region that is denser than the truth
    model_log_density: Float  # (n,) of the model at the truth, nats per m^2

    @property
    def rows(self) -> Rows:
        """(n,) on which both have a density."""
        return np.isfinite(self.log_density) & np.isfinite(self.distance_m) & np.isfinite(self.model_log_density)

    def summary(self, rows: Rows, model_m: Float, content: Float) -> PosteriorSummary:
        """Both on those of the ``rows`` (n,) on which the model located, with errors ``model_m`` and contents at the
        truth ``content`` (n,)."""
        rows = rows & self.rows & np.isfinite(model_m)
        posterior = _scored(self.distance_m[rows], self.log_density[rows], self.content[rows])
        model = _scored(model_m[rows], self.model_log_density[rows], content[rows])
        apart = self.log_density[rows] - self.model_log_density[rows]
        excess, error = rmse_excess(model_m[rows], self.distance_m[rows])
        return PosteriorSummary(
            rows=int(rows.sum()),
            posterior=posterior,
            model=model,
            rmse_excess=excess,
            rmse_excess_error=error,
            nats_below=float(np.mean(apart)) if len(apart) else None,
            nats_below_error=_standard_error(apart),
        )


def rmse_excess(mine_m: Float, limit_m: Float) -> tuple[float | None, float | None]:
    """The fraction by which one RMSE is above another on the same rows, and its standard error (of the ratio of two
    means, to first order)."""
    mine, limit = rmse_m(mine_m), rmse_m(limit_m)
    if not mine or not limit:
        return None, None
    error = _standard_error((mine_m / mine) ** 2 - (limit_m / limit) ** 2)
    return mine / limit - 1, None if error is None else 0.5 * mine / limit * error


def _standard_error(values: Float) -> float | None:
    """Standard error of the mean; None of fewer than two values."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def reference(problem: Problem, rows: NDArray[np.int64]) -> Reference:
    """The exact posterior on some ``rows`` of a problem, whose measurements are calibrated as for every estimator."""
    some, layout, truth_en_m = problem.test.take(rows), problem.layout, problem.truth_en_m[rows]
    posterior = exact_posterior(problem.geometry.take(rows), some, layout.scenario, truth_en_m)
    columns = {
        "distance_m": posterior.error_m(layout.network.frame, some.tx_altitude_m, some.tx_lat, some.tx_lon),
        "log_density": posterior.log_density_at,
        "content": posterior.content_at,
        "model_log_density": problem.predicted.take(rows).log_density(truth_en_m),
    }
    whole = {name: np.full(len(problem.test), np.nan) for name in columns}
    for name, column in columns.items():
        whole[name][rows] = column
    return Reference(**whole)


def reference_rows(test: Samples) -> NDArray[np.int64]:
    """The rows of the ``REFERENCE_LINKS / r`` samples whose ids are least by their last six bytes, which are the middle
    of a hash: the same samples in any order, and mostly the same when a dataset grows."""
    tail = test.sample_id[:, 10:].astype(np.int64) @ (256 ** np.arange(5, -1, -1, dtype=np.int64))
    return np.sort(np.argsort(tail, kind="stable")[: REFERENCE_LINKS // test.num_sites])


def _scored(distance_m: Float, log_density: Float, content: Float) -> ScoredErrors:
    mean = float(np.mean(log_density)) if len(log_density) else None
    covered = {name: coverage(content, level) for name, level in COVERAGE_LEVELS.items()}
    return ScoredErrors(**distance_statistics(distance_m), log_density=mean, **covered)
