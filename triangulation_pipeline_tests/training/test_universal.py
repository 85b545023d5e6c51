"""The weights that come with the package: they are those of the data sheet, and do what it says."""

import hashlib
import json
from typing import Any

import pytest

import triangulation_pipeline as tp
from triangulation_pipeline.model.spec import LOCATOR_VERSION, UNIVERSAL
from triangulation_pipeline.model.universal import DATA_SHEET_FILE, FOLDER, WEIGHTS_FILE
from triangulation_pipeline.network import random_network
from triangulation_pipeline.physics.dataset_spec import GENERATOR_VERSION, DatasetSpec
from triangulation_pipeline.physics.layout import Layout, Layouts
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.training import universal
from triangulation_pipeline.training.config import TRAINING_VERSION
from triangulation_pipeline.training.trainer import train

from .conftest import BASE, DEFAULT, FEW, own, splits, trainer_of


@pytest.fixture(scope="module")
def sheet() -> Any:
    return json.loads((FOLDER / DATA_SHEET_FILE).read_text())


def test_the_weights_are_those_of_the_data_sheet(sheet: Any) -> None:
    content, model = (FOLDER / WEIGHTS_FILE).read_bytes(), tp.load_model(UNIVERSAL)
    assert hashlib.sha256(content).hexdigest() == sheet["sha256"]
    assert model.weights_digest == sheet["weights_digest"]
    assert len(content) < 150_000
    assert sum(tensor.numel() for tensor in model.weights.values()) == sheet["parameters"]
    assert (model.config, model.metrics) == (sheet["settings"], sheet["figures"]["validation"])
    assert (model.spec.network, model.spec.scenario) == (None, None)


def test_the_data_sheet_is_of_this_code(sheet: Any) -> None:
    """Where a version was raised, the weights have to be made again."""
    versions = {"generator": GENERATOR_VERSION, "locator": LOCATOR_VERSION, "training": TRAINING_VERSION}
    assert sheet["versions"] == versions
    assert sheet["dataset"]["dataset_id"] == universal.DATASET.dataset_id
    for name, drawn in universal.ranges(universal.DATASET).items():
        assert sheet["dataset"]["ranges"][name] == pytest.approx(drawn)
    assert sheet["settings"] == universal.CONFIG.model_dump(mode="json")


def test_the_weights_do_what_the_data_sheet_says(sheet: Any) -> None:
    """On networks that the training never saw."""
    assert universal.figures(tp.load_model(UNIVERSAL), universal.QUICK) == pytest.approx(
        sheet["figures"]["quick"], rel=1e-2
    )
    held_out = sheet["figures"]["held_out"]
    assert held_out["val_coverage_68"] == pytest.approx(0.683, abs=0.015)
    assert held_out["val_coverage_95"] == pytest.approx(0.95, abs=0.015)
    assert held_out["seed"] != universal.DATASET.seed


def test_they_serve_a_network_that_never_trained() -> None:
    layout = Layout(random_network(9, seed=5), tp.Scenario())
    samples = simulate(DatasetSpec(layout.network, layout.scenario, 400, seed=0))
    found = tp.locate(tp.load_model(UNIVERSAL), samples, layout)
    frame = layout.network.frame
    error_m = found.error_m(frame, samples.tx_altitude_m, samples.tx_lat, samples.tx_lon)
    content = found.content_at(samples.tx_en_m(frame))
    solved = tp.gauss_newton(tp.Geometry(layout.network, samples.tx_altitude_m), samples, tp.Loss.huber)
    huber_m = solved.error_m(frame, samples.tx_altitude_m, samples.tx_lat, samples.tx_lon)
    good = samples.gdop < 5
    assert good.sum() > 100
    assert (error_m[good] ** 2).mean() < (huber_m[good] ** 2).mean()
    assert 0.9 < (content <= 0.95).mean() < 0.99


def test_a_training_may_begin_with_them() -> None:
    dataset = own(FEW)
    settings = {"learning_rate": 1e-4, "epochs": 1, "warmup_epochs": 0}
    config = tp.TrainingConfig(**BASE | settings | {"parent_model_id": UNIVERSAL})
    tuned = train(dataset, config, *splits(dataset))
    fresh = trainer_of(dataset, **settings)
    (first,) = fresh.epochs()
    assert tuned.metrics["val_loss"] < first.val_loss - 0.05
    assert tuned.spec.network == dataset.network


def test_one_command_makes_them(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a small dataset: twice the same weights, and a data sheet that is true."""
    small = DatasetSpec(None, DEFAULT, 1024, seed=3, layouts=Layouts.random)
    for name in ("DATASET", "HELD_OUT", "QUICK"):
        monkeypatch.setattr(universal, name, small)
    monkeypatch.setattr(universal, "CONFIG", universal.CONFIG.model_copy(update={"epochs": 1, "warmup_epochs": 0}))
    sheets = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        universal.main(folder)
        sheets.append(json.loads((folder / DATA_SHEET_FILE).read_text()))
        content = (folder / WEIGHTS_FILE).read_bytes()
        model = tp.read_checkpoint(content)
        assert sheets[-1]["sha256"] == hashlib.sha256(content).hexdigest()
        assert sheets[-1]["figures"]["quick"] == universal.figures(model, small) | {"num_samples": 1024, "seed": 3}
    assert sheets[0]["weights_digest"] == sheets[1]["weights_digest"]
    assert sheets[0]["dataset"]["layouts"] == 2
