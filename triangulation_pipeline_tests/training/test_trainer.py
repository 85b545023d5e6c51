from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from triangulation_pipeline.frame import haversine_m
from triangulation_pipeline.model.inputs import locator_inputs
from triangulation_pipeline.model.predict import predict
from triangulation_pipeline.model.spec import Architecture
from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
from triangulation_pipeline.positions import coverage
from triangulation_pipeline.samples import SampleBatch, Split
from triangulation_pipeline.training import trainer as trainer_module
from triangulation_pipeline.training.checkpoint import read_checkpoint, write_checkpoint
from triangulation_pipeline.training.config import Accelerator, Scheduler, TrainingConfig
from triangulation_pipeline.training.trainer import Metrics, Trainer, TrainingDiverged
from triangulation_pipeline.training.verify import fault

from ..model.helpers import DEFAULT, samples, spec_for

DATASET = {"dataset_id": "a", "sha256": "b"}
BASE: dict[str, Any] = {"epochs": 3, "warmup_epochs": 1, "batch_size": 128, "accelerator": Accelerator.cpu}


def splits(n: int = 2000, scenario: Scenario = DEFAULT) -> tuple[SampleBatch, SampleBatch]:
    batch = samples(n, scenario)
    return batch.take(batch.split == Split.train), batch.take(batch.split == Split.val)


def trainer_of(
    n: int = 2000, scenario: Scenario = DEFAULT, dataset: dict[str, str] = DATASET, **settings: Any
) -> Trainer:
    config = TrainingConfig(**BASE | settings)
    spec = spec_for(config.model_architecture, dropout_rate=config.dropout_rate)
    return Trainer(spec, config, *splits(n, scenario), dataset)


def run(trainer: Trainer, epochs: int | None = None) -> Trainer:
    for metrics in trainer.epochs():
        if metrics["epoch"] == epochs:
            break
    return trainer


def same(mine: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)


def timeless(history: list[Metrics]) -> list[Metrics]:
    return [{name: value for name, value in metrics.items() if name != "epoch_seconds"} for metrics in history]


@pytest.fixture(scope="module")
def trained() -> Trainer:
    """Three epochs on 2,000 samples; not to be changed."""
    torch.set_num_threads(1)
    return run(trainer_of())


def test_training_lowers_the_loss_and_tells_of_it(trained: Trainer) -> None:
    first, last = trained.history[0], trained.history[-1]
    assert [metrics["epoch"] for metrics in trained.history] == [1, 2, 3]
    assert last["train_loss"] < first["train_loss"]
    assert last["val_rmse_good_geom_m"] < 100
    assert trained.finished
    assert trained.best_checkpoint().metrics["val_loss"] <= min(m["val_loss"] for m in trained.history) + 0.001
    assert set(first) == {
        *("epoch", "epoch_seconds", "train_loss", "train_rmse_m", "learning_rate", "gradient_norm"),
        *("val_loss", "val_rmse_m", "val_rmse_good_geom_m"),
        *("val_distance_p50_m", "val_distance_p68_m", "val_distance_p95_m"),
        *("val_nees", "val_coverage_68", "val_coverage_95"),
    }


def test_one_seed_gives_one_model_and_another_another(trained: Trainer) -> None:
    again, other = run(trainer_of()), run(trainer_of(seed=1))
    assert same(again.model.state_dict(), trained.model.state_dict())
    assert timeless(again.history) == timeless(trained.history)
    assert not same(other.model.state_dict(), trained.model.state_dict())


@pytest.mark.parametrize("scheduler", list(Scheduler))
def test_resuming_is_never_having_stopped(scheduler: Scheduler) -> None:
    settings: dict[str, Any] = {"epochs": 4, "lr_scheduler": scheduler, "dropout_rate": 0.2}
    whole = run(trainer_of(**settings))
    state = run(trainer_of(**settings), epochs=2).state()
    torch.manual_seed(99)
    resumed = trainer_of(**settings)
    resumed.restore(state)
    assert resumed.epoch == 2
    run(resumed)
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert same(resumed.best_weights, whole.best_weights)
    assert timeless(resumed.history) == timeless(whole.history)
    assert (resumed.best_epoch, resumed.best_val_loss) == (whole.best_epoch, whole.best_val_loss)
    assert resumed.calibrate() == whole.calibrate()
    # Without the random state the dropout, and so the weights, would differ.
    forgetful = trainer_of(**settings)
    forgetful.restore(state)
    torch.manual_seed(5)
    assert not same(run(forgetful).model.state_dict(), whole.model.state_dict())


def test_a_finished_training_restores_as_finished(trained: Trainer) -> None:
    again = trainer_of()
    again.restore(trained.state())
    assert again.finished
    assert list(again.epochs()) == []
    assert same(again.model.state_dict(), trained.model.state_dict())


def test_restore_refuses_what_it_cannot_continue(trained: Trainer) -> None:
    state = trained.state()
    with pytest.raises(ValueError, match="the saved state's config"):
        trainer_of(learning_rate=1e-3).restore(state)
    with pytest.raises(ValueError, match="the saved state's dataset"):
        trainer_of(dataset={"dataset_id": "a", "sha256": "c"}).restore(state)
    with pytest.raises(ValueError, match="the saved state's spec"):
        Trainer(spec_for(dropout_rate=0.5), TrainingConfig(**BASE), *splits(), DATASET).restore(state)
    with pytest.raises(ValueError, match="the saved state's format is 'triangulation-checkpoint/1'"):
        trainer_of().restore(write_checkpoint(trained.best_checkpoint()))
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        trainer_of().restore(state[:-100])
    other = trainer_of()
    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="the saved state's threads is 1, this training's is 2"):
        other.restore(state)


def test_patience_stops_and_gives_the_best_epoch_back() -> None:
    # After the first epoch nothing falls by a million, so the third is the last; so high a rate makes it no good one.
    trainer = run(trainer_of(epochs=10, early_stop_patience=2, early_stop_delta=1e6, learning_rate=0.1))
    assert trainer.finished
    val_losses = [metrics["val_loss"] for metrics in trainer.history]
    assert (trainer.epoch, trainer.best_epoch) == (3, 1 + int(np.argmin(val_losses)))
    best, last = trainer.best_checkpoint(), trainer.last_checkpoint()
    assert best.epoch < last.epoch == 3
    assert best.metrics == trainer.history[best.epoch - 1]
    assert not same(best.weights, last.weights)
    _, val = splits()
    assert fault(best, val) is None
    assert fault(last, val) is None
    # The weights of one epoch do not pass for those of another.
    assert "is recorded as" in str(fault(replace(last, epoch=best.epoch, metrics=best.metrics), val))
    # Nor does a covariance that was tampered with: positions alone do not make a model.
    scaled = best.weights | {"covariance_scale": best.weights["covariance_scale"] * 2}
    assert "val_nees" in str(fault(replace(best, weights=scaled), val))


def test_patience_zero_never_stops() -> None:
    trainer = run(trainer_of(epochs=4, early_stop_patience=0, early_stop_delta=1e6))
    assert trainer.epoch == 4


def test_min_snr_drops_training_rows_only(trained: Trainer) -> None:
    train, _ = splits()
    mean_snr_db = np.array([row[heard].mean() for row, heard in zip(train.snr_db, train.signal_present, strict=True)])
    # Between two rows, so that rounding decides nothing.
    limit_db = float(np.sort(mean_snr_db)[[600, 601]].mean())
    strict = trainer_of(min_snr_db=limit_db)
    assert len(strict.train) == (mean_snr_db >= limit_db).sum()
    assert len(strict.train) == len(trained.train) - 601
    assert len(strict.val) == len(trained.val)
    assert len(strict.calibration) == len(trained.calibration)


def test_max_gdop_changes_the_metric_only(trained: Trainer) -> None:
    narrow = run(trainer_of(max_gdop=2.5))
    assert same(narrow.model.state_dict(), trained.model.state_dict())
    name = "val_rmse_good_geom_m"
    for mine, others in zip(timeless(narrow.history), timeless(trained.history), strict=True):
        assert mine.pop(name) != others.pop(name)
        assert mine == others
    assert run(trainer_of(epochs=1, warmup_epochs=0, max_gdop=0.01)).history[0][name] is None


def test_divergence_is_one_sentence() -> None:
    trainer = trainer_of()
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match=r"epoch 1: train_loss is nan.*lower learning_rate \(now 0.003\)"):
        run(trainer)
    assert trainer.epoch == 0


def test_calibration_makes_the_ellipse_hold_what_it_says() -> None:
    trainer = run(trainer_of(4000))
    before = trainer.last_checkpoint()
    assert trainer.covariance_scale == 1.0
    scale = trainer.calibrate()
    assert scale > 0
    assert trainer.covariance_scale == pytest.approx(scale)
    checkpoint = read_checkpoint(write_checkpoint(trainer.best_checkpoint()))
    assert float(checkpoint.weights["covariance_scale"]) == pytest.approx(scale)
    assert float(before.weights["covariance_scale"]) == 1.0
    _, val = splits(4000)
    for rows, tolerance in ((val.is_calibration, 0.011), (~val.is_calibration, 0.05)):
        batch = val.take(rows)
        prediction = predict(checkpoint.locator(), locator_inputs(batch))
        frame = checkpoint.spec.network.frame
        target_m = frame.enu_m(batch.tx_lat, batch.tx_lon, np.full(len(batch), checkpoint.spec.tx_height_m))[:, :2]
        assert coverage(prediction.nees(target_m), 0.95) == pytest.approx(0.95, abs=tolerance)
    # Positions are left as they were.
    assert fault(checkpoint, val) is None


def test_rmse_is_over_samples_whatever_the_batches(trained: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    _, val = splits()
    val = val.take(~val.is_calibration)
    prediction = predict(trained.last_checkpoint().locator(), locator_inputs(val))
    lat, lon = trained.spec.network.frame.geodetic(prediction.en_m, trained.spec.tx_height_m)
    expected_m = np.sqrt(np.mean(haversine_m(lat, lon, val.tx_lat, val.tx_lon) ** 2))
    assert trained.history[-1]["val_rmse_m"] == pytest.approx(expected_m, rel=1e-4)
    monkeypatch.setattr(trainer_module, "VALIDATION_ROWS", 37)
    in_pieces = trained._validate()
    for name, value in in_pieces.items():
        assert value == pytest.approx(trained.history[-1][name], rel=1e-3), name


def test_a_tampered_model_is_found(trained: Trainer) -> None:
    _, val = splits()
    checkpoint = trained.last_checkpoint()
    assert fault(checkpoint, val) is None
    name = "rounds.1.read.weight"
    tampered = checkpoint.weights | {name: checkpoint.weights[name] + 0.5}
    assert "the reloaded model gives" in str(fault(replace(checkpoint, weights=tampered), val))
    broken = checkpoint.weights | {name: torch.full_like(checkpoint.weights[name], float("nan"))}
    assert fault(replace(checkpoint, weights=broken), val) == f"weights are not finite: {name}"
    flat = checkpoint.weights | {"covariance_scale": torch.tensor(0.0)}
    assert fault(replace(checkpoint, weights=flat), val) == (
        f"epoch {checkpoint.epoch} predicts error ellipses without extent; the training has diverged"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="accelerator: gpu was asked for, but PyTorch finds no CUDA device"):
        trainer_of(accelerator=Accelerator.gpu)
    assert trainer_of(accelerator=Accelerator.auto).device.type == "cpu"


def test_too_few_rows_are_refused() -> None:
    train, val = splits()
    spec, config = spec_for(), TrainingConfig(**BASE)
    with pytest.raises(ValueError, match=r"at least 20 rows for validation and as many for calibration"):
        Trainer(spec, config, train, val.take(slice(0, 30)), DATASET)
    with pytest.raises(ValueError, match="the training split has no rows above min_snr_db 100"):
        trainer_of(min_snr_db=100)
    with pytest.raises(ValueError, match=r"the training split has no rows$"):
        Trainer(spec, config, train.take(slice(0, 0)), val, DATASET)


def test_schedules_rise_and_fall() -> None:
    for scheduler in Scheduler:
        trainer = trainer_of(epochs=4, warmup_epochs=1, lr_scheduler=scheduler)
        rates = [metrics["learning_rate"] for metrics in trainer.epochs()]
        assert max(rates) <= 3e-3 * 1.0001
        assert rates[0] > rates[1] > rates[2] > rates[3]
        assert rates[-1] < 3e-3 / 20


def test_regression_and_levels_alone_are_far_worse_on_the_same_rows(trained: Trainer) -> None:
    regression = run(trainer_of(model_architecture=Architecture.regression, epochs=8))
    levels = run(trainer_of(scenario=PRESETS[Preset.rss], epochs=8))
    name = "val_distance_p50_m"
    assert trained.best_checkpoint().metrics[name] < 60
    assert regression.best_checkpoint().metrics[name] > 10 * trained.best_checkpoint().metrics[name]
    assert levels.best_checkpoint().metrics[name] > 100 * trained.best_checkpoint().metrics[name]
