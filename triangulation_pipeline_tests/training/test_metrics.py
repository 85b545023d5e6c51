import math
from dataclasses import fields, replace

import numpy as np
import pytest

from triangulation_pipeline.training.metrics import (
    METRIC_COLUMNS,
    METRIC_DESCRIPTIONS,
    OPTIONAL_METRICS,
    EpochMetrics,
    position_metrics,
)

METRICS = EpochMetrics(epoch=1, **dict.fromkeys(METRIC_COLUMNS, 1.5))


@pytest.mark.parametrize("name", METRIC_COLUMNS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_no_finite_number_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^metrics\.{name} must be a finite number, got {value}$"):
        replace(METRICS, **{name: value})


@pytest.mark.parametrize("name", METRIC_COLUMNS)
def test_only_the_metric_of_good_geometry_may_be_missing(name: str) -> None:
    if name == "val_rmse_good_geom_m":
        assert replace(METRICS, **{name: None}).val_rmse_good_geom_m is None
    else:
        with pytest.raises(ValueError, match=rf"^metrics\.{name} must be a finite number, got None$"):
            replace(METRICS, **{name: None})


def test_every_metric_is_a_column_with_a_sentence() -> None:
    assert {"epoch", *METRIC_COLUMNS} == {field.name for field in fields(EpochMetrics)}
    assert METRIC_DESCRIPTIONS.keys() == set(METRIC_COLUMNS)
    assert all(sentence.endswith(".") for sentence in METRIC_DESCRIPTIONS.values())
    assert {"val_rmse_good_geom_m"} == OPTIONAL_METRICS


def test_metrics_of_errors_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    distance_m, nees, content = rng.exponential(30, 500), rng.chisquare(2, 500), rng.random(500)
    expected = {
        "val_rmse_m": np.sqrt(np.mean(distance_m**2)),
        "val_distance_p50_m": np.quantile(distance_m, 0.5),
        "val_distance_p68_m": np.quantile(distance_m, 0.68),
        "val_distance_p95_m": np.quantile(distance_m, 0.95),
        "val_nees": np.mean(nees),
        "val_coverage_68": np.mean(content <= 0.683),
        "val_coverage_95": np.mean(content <= 0.95),
    }
    assert position_metrics(distance_m, nees, content) == pytest.approx(expected)
    assert expected.keys() <= set(METRIC_COLUMNS)
