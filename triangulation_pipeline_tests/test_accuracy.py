"""The promise of the default settings, on a dataset small enough for every test run."""

import pytest

from triangulation_pipeline.evaluation import reference
from triangulation_pipeline.evaluation.comparison import compare
from triangulation_pipeline.evaluation.summary import COVERAGE_LEVELS
from triangulation_pipeline.evaluation.verdict import promotion_checks, promotion_verdict
from triangulation_pipeline.model.predict import locate_samples
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.samples import Split
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline.training.trainer import train


def test_beats_the_classical_solver_and_knows_how_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "REFERENCE_LINKS", 7 * 500)
    dataset = DatasetSpec(NORTH_WEST_ITALY, PRESETS[Preset.default], 14_000, 0)
    whole = simulate(dataset)
    train_rows, val_rows, test = (whole.take(whole.split == split) for split in Split)
    config = TrainingConfig(epochs=4)
    checkpoint = train(dataset, config, train_rows, val_rows)
    comparison = compare(dataset, test, train_rows, locate_samples(checkpoint, dataset, test), config.max_gdop)
    summary = comparison.summary()
    good = summary.good_geometry
    model, huber, limit = good.model, good.estimators["huber_gauss_newton"], good.exact_posterior
    assert huber is not None
    assert limit is not None
    assert model.p95_m <= 0.75 * huber.p95_m
    assert model.max_m < 5_000
    for name, level in COVERAGE_LEVELS.items():
        assert abs(getattr(good.calibration, name) - level) < 0.04
    assert limit.rows > 400
    assert 0 < limit.nats_below < 0.2
    promoted, reason = promotion_verdict(summary, promotion_checks(summary, 100.0))
    assert promoted, reason
