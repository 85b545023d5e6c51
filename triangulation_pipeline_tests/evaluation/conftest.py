from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from triangulation_pipeline.evaluation.comparison import Comparison, compare
from triangulation_pipeline.evaluation.estimators import (
    ESTIMATORS,
    GAUSS_NEWTON,
    HUBER_GAUSS_NEWTON,
    MODEL,
    Estimator,
)
from triangulation_pipeline.evaluation.reference import Reference
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.positions import Positions
from triangulation_pipeline.samples import Samples, Split

SIGMA_M = 30.0


def samples(preset: Preset, count: int) -> Samples:
    spec = DatasetSpec(NORTH_WEST_ITALY, PRESETS[preset], count, seed=3)
    return simulate(spec)


def compared(preset: Preset, batch: Samples, sigma_m: float) -> Comparison:
    """With a model that is the truth plus noise of the covariance it claims."""
    test, train = (batch.take(batch.split == part) for part in (Split.test, Split.train))
    truth_en_m = NORTH_WEST_ITALY.frame.enu_m(test.tx_lat, test.tx_lon, 2.0)[:, :2]
    predicted = truth_en_m + np.random.default_rng(0).normal(0, sigma_m, truth_en_m.shape)
    covariance = np.broadcast_to(np.eye(2) * sigma_m**2, (len(test), 2, 2))
    return compare(NORTH_WEST_ITALY, PRESETS[preset], test, train, Positions(predicted, covariance), max_gdop=5.0)


@pytest.fixture(scope="session")
def default_batch() -> Samples:
    return samples(Preset.default, 4096)


@pytest.fixture(scope="session")
def by_time(default_batch: Samples) -> Comparison:
    return compared(Preset.default, default_batch, SIGMA_M)


@pytest.fixture(scope="session")
def rss_batch() -> Samples:
    return samples(Preset.rss, 4096)


@pytest.fixture(scope="session")
def by_level(rss_batch: Samples) -> Comparison:
    return compared(Preset.rss, rss_batch, 20_000.0)


@pytest.fixture
def handmade() -> Comparison:
    """Five rows; the last is of poor geometry, Gauss-Newton has no fix on the third."""
    model = np.array([10.0, 20.0, 30.0, 40.0, 1000.0])
    distance: dict[Estimator, np.ndarray | None] = dict.fromkeys(ESTIMATORS)
    distance |= {
        MODEL: model,
        GAUSS_NEWTON: np.array([30.0, 50.0, np.nan, 90.0, 5.0]),
        HUBER_GAUSS_NEWTON: 2 * model,
    }
    return Comparison(
        max_gdop=5.0,
        truth_en_m=np.arange(10.0).reshape(5, 2) * 1e4,
        distance_m=distance,
        nees=np.array([0.5, 1.0, 3.0, 7.0, np.nan]),
        predicted_rms_m=np.array([40.0, 10.0, 20.0, 30.0, 50.0]),
        reference=Reference(
            distance_m=np.array([8.0, 16.0, np.nan, 32.0, 500.0]),
            log_density=np.array([-8.0, -9.0, np.nan, -10.0, -15.0]),
            content=np.array([0.3, 0.6, np.nan, 0.92, 0.99]),
            model_log_density=np.array([-8.5, -9.25, np.nan, -11.0, -20.0]),
        ),
        crlb_m=np.array([10.0, 20.0, 30.0, 40.0, np.nan]),
        mixture_crlb_m=np.array([20.0, 40.0, 60.0, 80.0, np.nan]),
        num_detections=np.array([7, 7, 6, 6, 3]),
        good_geometry=np.array([True, True, True, True, False]),
    )


def some_comparison() -> Comparison:
    """Sixty random rows on which all estimators differ; each lacks some fixes, and some rows lack a bound, an ellipse
    or a predicted error. Some lie just inside and just outside of each ellipse that is counted."""
    rng = np.random.default_rng(7)
    edges = chi2(2).ppf([0.5, 0.683, 0.9, 0.95])

    def some(scale: float, missing: int) -> np.ndarray:
        values = scale * rng.lognormal(0.0, 1.0, 60)
        values[rng.choice(60, missing, replace=False)] = np.nan
        return values

    return Comparison(
        max_gdop=4.5,
        truth_en_m=rng.normal(0, 50e3, (60, 2)),
        distance_m={estimator: some(10.0 * (i + 1), i) for i, estimator in enumerate(ESTIMATORS, start=1)},
        nees=np.concatenate([some(2.0, 4)[:52], 0.9999 * edges, 1.0001 * edges]),
        predicted_rms_m=np.round(some(30.0, 3)),  # with ties
        reference=Reference(some(8.0, 16), -some(9.0, 7), rng.random(60), -some(11.0, 8)),
        crlb_m=some(7.0, 5),
        mixture_crlb_m=some(9.0, 6),
        num_detections=rng.integers(2, 8, 60),
        good_geometry=rng.random(60) < 0.7,
    )


def cut(comparison: Comparison, rows: slice) -> Comparison:
    """The same comparison on fewer rows."""
    per_row = ("truth_en_m", "nees", "predicted_rms_m", "crlb_m", "mixture_crlb_m", "num_detections", "good_geometry")
    return replace(
        comparison,
        distance_m={name: None if d is None else d[rows] for name, d in comparison.distance_m.items()},
        reference=Reference(**{name: column[rows] for name, column in vars(comparison.reference).items()}),
        **{name: getattr(comparison, name)[rows] for name in per_row},
    )
