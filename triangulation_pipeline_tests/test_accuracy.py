"""The promise of the default settings, on a dataset small enough for every test run."""

import numpy as np

from triangulation_pipeline.evaluation.comparison import compare
from triangulation_pipeline.model.predict import locate
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.samples import Split
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline.training.trainer import train


def test_beats_the_classical_solver_and_knows_how_well() -> None:
    scenario = PRESETS[Preset.default]
    whole = simulate(DatasetSpec(NORTH_WEST_ITALY, scenario, 20_000, 0))
    train_rows, val_rows, test = (whole.take(whole.split == split) for split in Split)
    config = TrainingConfig(epochs=8)
    checkpoint = train(NORTH_WEST_ITALY, scenario, config, train_rows, val_rows)
    predicted = locate(checkpoint, test)
    good = (
        compare(NORTH_WEST_ITALY, scenario, test, train_rows, predicted, config.max_gdop)
        .summary()
        .document()["good_geometry"]
    )
    model, huber = good["estimators"]["model"], good["estimators"]["huber_gauss_newton"]
    assert model["rmse_m"] < 100
    assert model["max_m"] < 5_000
    assert model["p95_m"] <= 0.75 * huber["p95_m"]
    assert 0.93 <= good["calibration"]["coverage_95"] <= 0.97
    limit = good["exact_posterior"]
    assert limit["rows"] > 800
    assert limit["model"]["p50_m"] <= 1.1 * limit["posterior"]["p50_m"]
    assert 0 < limit["nats_below"] < 0.5
    assert np.isfinite(good["crlb_rms_m"])
