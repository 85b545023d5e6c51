"""What a training measures in each epoch: names, units and meaning. No PyTorch here, so that tables can use it."""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.positions.statistics import distance_statistics


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """The metrics of one epoch, each with the sentence that describes its column in tables and views.

    The validation metrics are those of the model at the end of the epoch. The training metrics are those of its
    batches, while the weights change. The loss is ``model.losses.locator_loss``. Raises ValueError if a metric is not a
    finite number; only OPTIONAL_METRICS may be None.
    """

    epoch: int
    train_loss: Annotated[float, "Mean loss of the training samples during the epoch."]
    val_loss: Annotated[float, "Mean loss of the validation samples after the epoch."]
    train_rmse_m: Annotated[float, "RMSE of the position on the training samples during the epoch, m."]
    val_rmse_m: Annotated[float, "RMSE of the position on the validation samples, m."]
    val_rmse_good_geom_m: Annotated[
        float | None,
        "RMSE on the validation samples with good geometry (GDOP below max_gdop of the job), m; null if there is none.",
    ]
    val_distance_p50_m: Annotated[float, "Median error on the validation samples, m."]
    val_distance_p68_m: Annotated[float, "68th percentile of the error on the validation samples, m."]
    val_distance_p95_m: Annotated[float, "95th percentile of the error on the validation samples, m."]
    val_nees: Annotated[
        float, "Mean normalised error squared on the validation samples; 2 if the covariances are right."
    ]
    val_coverage_68: Annotated[float, "Share of the validation samples whose true place is in the 68.3 % region."]
    val_coverage_95: Annotated[float, "Share of the validation samples whose true place is in the 95 % region."]
    learning_rate: Annotated[float, "Learning rate of the last step of the epoch."]
    gradient_norm: Annotated[float, "Mean norm of the gradient over the steps of the epoch, before clipping."]
    epoch_seconds: Annotated[float, "Duration of the epoch with its validation, s."]

    def __post_init__(self) -> None:
        for name in METRIC_COLUMNS:
            value = getattr(self, name)
            if not ((value is None and name in OPTIONAL_METRICS) or (value is not None and math.isfinite(value))):
                raise ValueError(f"metrics.{name} must be a finite number, got {value}")


# Type and description of each metric beside ``epoch``; each is a column of ``training_metrics``.
_METRICS = {each.name: get_args(each.type) for each in fields(EpochMetrics) if each.name != "epoch"}
METRIC_COLUMNS = tuple(_METRICS)
METRIC_DESCRIPTIONS: dict[str, str] = {name: description for name, (_, description) in _METRICS.items()}
VALIDATION_METRICS = tuple(name for name in METRIC_COLUMNS if name.startswith("val_"))
# None if no validation sample has a good geometry.
OPTIONAL_METRICS = frozenset(name for name, (kind, _) in _METRICS.items() if kind == float | None)


def position_metrics(
    distance_m: NDArray[np.floating], nees: NDArray[np.floating], content: NDArray[np.floating]
) -> dict[str, Any]:
    """The validation metrics that follow, by name, from the rows' position errors (n,) in metres, NEES (n,) and content
    (n,): the probability of the region whose density is higher than that of the true place."""
    statistics = distance_statistics(distance_m)
    return {
        "val_rmse_m": statistics["rmse_m"],
        "val_distance_p50_m": statistics["p50_m"],
        "val_distance_p68_m": statistics["p68_m"],
        "val_distance_p95_m": statistics["p95_m"],
        "val_nees": float(np.mean(nees)),
        "val_coverage_68": float(np.mean(content <= 0.683)),
        "val_coverage_95": float(np.mean(content <= 0.95)),
    }
