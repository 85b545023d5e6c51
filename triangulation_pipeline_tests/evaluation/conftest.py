from dataclasses import replace

import numpy as np
import pytest

from triangulation_pipeline.evaluation import reference
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
from triangulation_pipeline.positions.mixtures import MixturePositions
from triangulation_pipeline.samples import Samples, Split

SIGMA_M = 30.0


def spec_of(preset: Preset) -> DatasetSpec:
    return DatasetSpec(NORTH_WEST_ITALY, PRESETS[preset], 4096, seed=3)


def gaussian(en_m: np.ndarray, covariance_m2: np.ndarray) -> MixturePositions:
    """Posteriors of one Gaussian each."""
    n = len(en_m)
    return MixturePositions.of_components(
        np.zeros((n, 1)), en_m[:, None], covariance_m2[:, None], np.full((n, 1), np.inf)
    )


def anything(n: int) -> MixturePositions:
    """Posteriors at the origin, which have nothing to do with the rows."""
    return gaussian(np.zeros((n, 2)), np.broadcast_to(np.eye(2), (n, 2, 2)))


def compared(preset: Preset, batch: Samples, sigma_m: float) -> Comparison:
    """With a model that is the truth plus noise of the covariance it claims; the exact posterior is on 300 rows."""
    test, train = (batch.take(batch.split == part) for part in (Split.test, Split.train))
    truth_en_m = NORTH_WEST_ITALY.frame.enu_m(test.tx_lat, test.tx_lon, 2.0)[:, :2]
    predicted = truth_en_m + np.random.default_rng(0).normal(0, sigma_m, truth_en_m.shape)
    covariance = np.broadcast_to(np.eye(2) * sigma_m**2, (len(test), 2, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "REFERENCE_LINKS", 7 * 300)
        return compare(spec_of(preset), test, train, gaussian(predicted, covariance), max_gdop=5.0)


@pytest.fixture(scope="session")
def default_batch() -> Samples:
    return simulate(spec_of(Preset.default))


@pytest.fixture(scope="session")
def by_time(default_batch: Samples) -> Comparison:
    return compared(Preset.default, default_batch, SIGMA_M)


@pytest.fixture(scope="session")
def rss_batch() -> Samples:
    return simulate(spec_of(Preset.rss))


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
        content=np.array([0.2, 0.4, 0.75, 0.97, np.nan]),
        predicted_rms_m=np.array([40.0, 10.0, 20.0, 30.0, 50.0]),
        reference=Reference(
            distance_m=np.array([8.0, 16.0, np.nan, 32.0, 500.0]),
            log_density=np.array([-8.0, -9.0, np.nan, -10.0, -15.0]),
            content=np.array([0.3, 0.6, np.nan, 0.92, 0.99]),
            model_log_density=np.array([-8.5, -9.25, np.nan, -11.0, -20.0]),
        ),
        crlb_m=np.array([10.0, 20.0, 30.0, 40.0, np.nan]),
        mixture_crlb_m=np.array([20.0, 40.0, 60.0, 80.0, np.nan]),
        gdop=np.array([1.5, 2.0, 4.0, 4.9, 5.0]),
        num_arrival_times=np.array([9, 7, 6, 6, 3]),
        inside_hull=np.array([True, True, False, False, False]),
    )


def some_comparison() -> Comparison:
    """Sixty random rows on which all estimators differ; each lacks some fixes, and some rows lack a bound, a content, a
    predicted error or a GDOP. Some lie on the edges of groups, and of regions."""
    rng = np.random.default_rng(9)

    def some(scale: float, missing: int) -> np.ndarray:
        values = scale * rng.lognormal(0.0, 1.0, 60)
        values[rng.choice(60, missing, replace=False)] = np.nan
        return values

    content, gdop = rng.random(60), np.concatenate([some(3.0, 6)[:56], [2.0, 4.5, 5.0, 10.0]])
    content[rng.choice(50, 4, replace=False)] = np.nan
    content[50:60] = np.ravel([(level, np.nextafter(level, 1)) for level in (0.5, 0.683, 0.9, 0.95, 0.99)])
    return Comparison(
        max_gdop=4.5,
        truth_en_m=rng.normal(0, 50e3, (60, 2)),
        distance_m={estimator: some(10.0 * (i + 1), i) for i, estimator in enumerate(ESTIMATORS, start=1)},
        content=content,
        predicted_rms_m=np.round(some(30.0, 3)),  # with ties
        reference=Reference(some(8.0, 16), -some(9.0, 7), rng.random(60), -some(11.0, 8)),
        crlb_m=some(7.0, 5),
        mixture_crlb_m=some(9.0, 6),
        gdop=gdop,
        num_arrival_times=rng.integers(1, 10, 60),
        inside_hull=rng.random(60) < 0.4,
    )


def cut(comparison: Comparison, rows: slice) -> Comparison:
    """The same comparison on fewer rows."""
    per_row = {name for name in vars(comparison) if name not in {"max_gdop", "distance_m", "reference"}}
    return replace(
        comparison,
        distance_m={name: None if d is None else d[rows] for name, d in comparison.distance_m.items()},
        reference=Reference(**{name: column[rows] for name, column in vars(comparison.reference).items()}),
        **{name: getattr(comparison, name)[rows] for name in per_row},
    )
