import itertools
import math
import re
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chi2
from triangulation_pipeline.physics.solvers.site_biases import fit_site_biases_ns

from triangulation_pipeline.frame import haversine_m
from triangulation_pipeline.model.checkpoint import (
    Checkpoint,
    DatasetReference,
    dump,
    load,
    read_checkpoint,
    write_checkpoint,
)
from triangulation_pipeline.model.inputs import LocatorInputs, locator_inputs
from triangulation_pipeline.model.locator import Located
from triangulation_pipeline.model.losses import locator_loss
from triangulation_pipeline.model.predict import predict
from triangulation_pipeline.model.spec import Architecture, RegressionConfig
from triangulation_pipeline.network import NORTH_WEST_ITALY, random_network
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.positions import Positions, coverage, median_of_bounds_m
from triangulation_pipeline.samples import Samples
from triangulation_pipeline.training import trainer as trainer_module
from triangulation_pipeline.training.config import Accelerator, Scheduler, TrainingConfig
from triangulation_pipeline.training.metrics import EpochMetrics
from triangulation_pipeline.training.trainer import Trainer, TrainingDiverged, TrainingStopped, choose_device, train
from triangulation_pipeline.training.verify import fault

from ..model.helpers import DEFAULT, spec_for, target_m
from .conftest import BASE, DATASET, FEW, Script, run, same, splits, trainer_of

ONE_STEP: dict[str, Any] = {"epochs": 1, "warmup_epochs": 0, "batch_size": 65_536}
REGRESSION: dict[str, Any] = {"n": FEW, "model_architecture": Architecture.regression}


def timeless(history: list[EpochMetrics]) -> list[dict[str, Any]]:
    """The metrics without the one that differs from run to run."""
    return [{**asdict(metrics), "epoch_seconds": 0.0} for metrics in history]


def test_training_lowers_the_loss_and_tells_of_it(trained: Trainer) -> None:
    first, last = trained.history[0], trained.history[-1]
    assert [metrics.epoch for metrics in trained.history] == [1, 2, 3]
    assert last.train_loss < first.train_loss
    assert last.val_rmse_good_geom_m < 100
    assert trained.finished
    assert trained.best_checkpoint().metrics["val_loss"] <= min(m.val_loss for m in trained.history) + 0.001
    assert set(asdict(first)) == {
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
    settings: dict[str, Any] = {"n": FEW, "epochs": 4, "lr_scheduler": scheduler, "dropout_rate": 0.2}
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


def test_a_resumed_training_keeps_its_best_epoch_and_its_patience(script: Script) -> None:
    settings: dict[str, Any] = REGRESSION | {"epochs": 9, "early_stop_patience": 3, "early_stop_delta": 0.25}
    # The best is the second, but what counts as progress is the first.
    script(2.0, 1.875, 3.0, 2.5, 1.0)
    whole = run(trainer_of(**settings))
    script(2.0, 1.875, 3.0)
    state = run(trainer_of(**settings), epochs=3).state()
    resumed = trainer_of(**settings)
    resumed.restore(state)
    script(2.5, 1.0)
    run(resumed)
    assert (whole.epoch, whole.best_epoch, resumed.epoch, resumed.best_epoch) == (4, 2, 4, 2)
    assert resumed.best_val_loss == 1.875
    assert same(resumed.best_checkpoint().weights, whole.best_checkpoint().weights)
    assert not same(resumed.best_checkpoint().weights, resumed.last_checkpoint().weights)


def test_an_epoch_that_was_stopped_is_trained_again_to_the_same_weights() -> None:
    settings: dict[str, Any] = {"n": FEW, "epochs": 2}
    trainer = trainer_of(**settings)
    run(trainer, epochs=1)
    state, asked = trainer.state(), itertools.count(1)
    with pytest.raises(TrainingStopped):
        next(trainer.epochs(should_stop=lambda: next(asked) == 3))
    assert next(asked) == 4  # once for each batch
    assert trainer.epoch == 1
    trainer.restore(state)
    assert same(run(trainer).model.state_dict(), run(trainer_of(**settings)).model.state_dict())


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
        trainer_of(dataset=DatasetReference(dataset_id="a", sha256="c")).restore(state)
    with pytest.raises(ValueError, match="the saved state's spec"):
        Trainer(spec_for(dropout_rate=0.5), TrainingConfig(**BASE), *splits(), DATASET).restore(state)
    with pytest.raises(ValueError, match="the saved state's format is 'triangulation-checkpoint/2'"):
        trainer_of().restore(write_checkpoint(trained.best_checkpoint()))
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        trainer_of().restore(state[:-100])
    for name, value in (("format", "triangulation-training-state/1"), ("device", "cuda")):
        with pytest.raises(ValueError, match=f"the saved state's {name} is '{value}', this training's is '"):
            trainer_of().restore(dump(load(state) | {name: value}))
    for name in ("training", "locator", "solvers"):
        versions = load(state)["versions"]
        with pytest.raises(ValueError, match=rf"the saved state's versions is .*'{name}': 0.* launch a new run"):
            trainer_of().restore(dump(load(state) | {"versions": versions | {name: 0}}))
    other = trainer_of()
    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="the saved state's threads is 1, this training's is 2"):
        other.restore(state)


@pytest.mark.parametrize(
    ("val_losses", "patience", "delta", "epochs"),
    [
        ((4.0, 3.875, 3.75), 2, 0.25, 3),  # falls, but not by more than the delta
        ((4.0, 3.875, 3.625), 2, 0.25, 5),  # in the third epoch it has fallen by more than that
        ((4.0, 3.875, 3.75, 3.625), 3, 0.25, 7),  # small falls add up
        ((4.0, 3.0, 3.0), 1, 0.0, 3),  # the same again is no fall
        ((4.0, 3.875, 3.75), 1, 0.0, 4),
        ((1.0,), 0, 0.25, 8),  # 0 is never
        ((1.0,), 8, 0.25, 8),
        ((1.0,), 7, 0.25, 8),
        ((1.0,), 6, 0.25, 7),
    ],
)
def test_patience_counts_the_epochs_without_a_fall_of_more_than_the_delta(
    val_losses: tuple[float, ...], patience: int, delta: float, epochs: int, script: Script
) -> None:
    script(*val_losses)
    trainer = trainer_of(epochs=8, early_stop_patience=patience, early_stop_delta=delta, **REGRESSION)
    done = [trainer.finished for _ in trainer.epochs()]
    assert done == [False] * (epochs - 1) + [True]
    assert trainer.epoch == epochs


@pytest.mark.parametrize(
    ("val_losses", "best"),
    [
        ((4.0, 1.0, 2.0, 3.0), 2),
        ((4.0, 1.0, 2.0, 0.9375), 4),  # by however little
        ((1.0, 1.0, 2.0, 1.0), 1),  # the first of equals
    ],
)
def test_the_weights_of_the_epoch_with_the_lowest_validation_loss_are_published(
    val_losses: tuple[float, ...], best: int, script: Script
) -> None:
    script(*val_losses)
    trainer = trainer_of(FEW, epochs=4, early_stop_delta=1.0)
    by_epoch = [trainer.last_checkpoint() for _ in trainer.epochs()]
    assert [len({repr(each.weights) for each in by_epoch}), by_epoch[-1].epoch] == [4, 4]
    published = trainer.best_checkpoint()
    assert (published.epoch, published.metrics) == (best, asdict(trainer.history[best - 1]))
    assert (trainer.best_epoch, trainer.best_val_loss) == (best, min(val_losses))
    assert same(published.weights, by_epoch[best - 1].weights)
    # Calibrated, they differ by their scale only.
    scale = trainer.calibrate()
    calibrated = trainer.best_checkpoint()
    assert calibrated.epoch == best
    expected = by_epoch[best - 1].weights | {"covariance_scale": torch.tensor(scale)}
    assert same(calibrated.weights, expected)
    assert same({name: tensor.cpu() for name, tensor in trainer.model.state_dict().items()}, expected)


def test_a_checkpoint_says_where_it_comes_from(trained: Trainer) -> None:
    for checkpoint in (trained.best_checkpoint(), trained.last_checkpoint()):
        assert (checkpoint.spec, checkpoint.dataset) == (trained.spec, DATASET)
        assert TrainingConfig.model_validate(checkpoint.config) == trained.config
        assert checkpoint.metrics == asdict(trained.history[checkpoint.epoch - 1])


def test_the_weights_of_one_epoch_do_not_pass_for_those_of_another(trained: Trainer) -> None:
    _, val = splits()
    first, last = run(trainer_of(), epochs=1).last_checkpoint(), trained.last_checkpoint()
    assert fault(first, val) is None
    assert fault(last, val) is None
    pretender = Checkpoint(**vars(last) | {"epoch": 1, "metrics": first.metrics})
    assert "is recorded as" in str(fault(pretender, val))


def initial(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of its learned weights as they are now."""
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def moved(before: dict[str, torch.Tensor], trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() - before[name] for name, parameter in trainer.model.named_parameters()}


@pytest.mark.parametrize("learning_rate", [1e-4, 1e-2])
def test_the_first_step_is_as_long_as_the_learning_rate(learning_rate: float) -> None:
    """Adam's first step moves each weight by the rate, in the direction of its gradient's sign."""
    trainer = trainer_of(learning_rate=learning_rate, weight_decay=0.0, **ONE_STEP | REGRESSION)
    before = initial(trainer)
    run(trainer)
    furthest = max(float(step.abs().max()) for step in moved(before, trainer).values())
    assert furthest == pytest.approx(learning_rate, rel=1e-3)
    assert trainer.history[0].learning_rate == learning_rate


@pytest.mark.parametrize("weight_decay", [0.01, 1.0])
def test_weights_decay_by_their_share_at_each_step(weight_decay: float) -> None:
    free, decaying = (trainer_of(weight_decay=w, **ONE_STEP | REGRESSION) for w in (0.0, weight_decay))
    before = initial(free)
    after = initial(run(free))
    run(decaying)
    for name, step in moved(after, decaying).items():
        torch.testing.assert_close(step, -3e-3 * weight_decay * before[name], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_gradients_are_clipped_to_the_norm_before_a_step(limit: float) -> None:
    trainer = trainer_of(FEW, max_grad_norm=limit)
    norms: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        slopes = [weight.grad for weight in trainer.model.parameters() if weight.grad is not None]
        norms.append(math.sqrt(sum(float(slope.double().square().sum()) for slope in slopes)))

    trainer.optimizer.register_step_pre_hook(note)
    (metrics,) = itertools.islice(trainer.epochs(), 1)
    if limit < 1:
        assert norms == pytest.approx([limit] * len(norms), rel=1e-3)
        assert metrics.gradient_norm > limit
    else:
        # What is told is the mean over the steps, of the gradients as they were.
        assert metrics.gradient_norm == pytest.approx(np.mean(norms), rel=1e-4)
        assert max(norms) > 1.01 * np.mean(norms)


@pytest.mark.parametrize(("batch_size", "steps"), [(100, 5), (421, 1), (420, 2), (8, 53)])
def test_a_step_is_made_for_each_batch(batch_size: int, steps: int) -> None:
    trainer = trainer_of(batch_size=batch_size, epochs=1, warmup_epochs=0, **REGRESSION)
    assert len(trainer.train) == 421
    made = itertools.count()
    trainer.optimizer.register_step_post_hook(lambda *_: next(made))
    run(trainer)
    assert next(made) == steps


def test_each_epoch_meets_every_row_once_in_an_order_of_its_own() -> None:
    trainer = trainer_of(batch_size=100, epochs=2, **REGRESSION)
    met: list[NDArray[np.float32]] = []

    def note(_: torch.nn.Module, given: tuple[LocatorInputs, torch.Tensor]) -> None:
        if torch.is_grad_enabled():
            met.append(given[0].power_dbm_BR[:, 0].numpy())

    trainer.model.register_forward_pre_hook(note)
    run(trainer)
    first, second = np.concatenate(met[:5]), np.concatenate(met[5:])
    every = np.sort(trainer.train.inputs.power_dbm_BR[:, 0].numpy())
    assert np.array_equal(np.sort(first), every)
    assert np.array_equal(np.sort(second), every)
    assert not np.array_equal(first, second)


def test_the_seed_is_that_of_the_first_weights_and_of_the_order_of_the_rows() -> None:
    mine, others = (trainer_of(seed=seed, epochs=1, warmup_epochs=0, **REGRESSION) for seed in (1, 2))
    assert not same(initial(mine), initial(others))
    others.model.load_state_dict(mine.model.state_dict())
    assert not same(initial(run(mine)), initial(run(others)))


@pytest.mark.parametrize("dropout_rate", [0.0, 0.5])
def test_dropout_is_of_the_training_alone(dropout_rate: float) -> None:
    """Steps so short that they change nothing: the losses differ by what is dropped, in each epoch anew."""
    settings: dict[str, Any] = ONE_STEP | REGRESSION | {"epochs": 3, "learning_rate": 1e-12, "weight_decay": 0.0}
    trainer = trainer_of(dropout_rate=dropout_rate, **settings)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.01)
    run(trainer)
    for first, second in itertools.combinations(trainer.history, 2):
        assert first.val_loss == pytest.approx(second.val_loss, rel=1e-6)
        assert (first.train_loss == pytest.approx(second.train_loss, rel=1e-6)) == (dropout_rate == 0.0)


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


def test_a_row_that_is_just_loud_enough_is_trained_on() -> None:
    train, val = splits(FEW)
    snr_db = np.where(train.signal_present, np.float32(12.0), np.float32(0.0))
    snr_db[:50][train.signal_present[:50]] = 11.0
    loud = Samples(**vars(train) | {"snr_db": snr_db})
    for limit_db, rows in ((11.0, 421), (11.5, 371), (12.0, 371)):
        config = TrainingConfig(**BASE | {"min_snr_db": limit_db})
        assert len(Trainer(spec_for(Architecture.regression), config, loud, val, DATASET).train) == rows


def test_max_gdop_changes_the_metric_only(trained: Trainer) -> None:
    narrow = run(trainer_of(max_gdop=2.5))
    assert same(narrow.model.state_dict(), trained.model.state_dict())
    name = "val_rmse_good_geom_m"
    for mine, others in zip(timeless(narrow.history), timeless(trained.history), strict=True):
        assert mine.pop(name) != others.pop(name)
        assert mine == others
    assert run(trainer_of(epochs=1, warmup_epochs=0, max_gdop=0.01)).history[0].val_rmse_good_geom_m is None


def test_a_training_loss_that_is_no_number_ends_the_training_in_one_sentence() -> None:
    trainer = trainer_of(FEW)
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match=r"epoch 1: train_loss is nan.*lower learning_rate \(now 0.003\)"):
        run(trainer)
    assert trainer.epoch == 0


def test_a_validation_loss_that_is_no_number_ends_the_training(script: Script) -> None:
    script(1.0, math.inf)
    trainer = trainer_of(**REGRESSION)
    with pytest.raises(TrainingDiverged, match=r"epoch 2: val_loss is inf; lower learning_rate \(now 0.003\)"):
        run(trainer)
    assert (trainer.epoch, trainer.best_epoch) == (1, 1)


def test_a_gradient_that_is_no_number_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a loss that is one: the root of zero has no slope."""

    def loss(located: Located, aim_m: torch.Tensor) -> torch.Tensor:
        return locator_loss(located, aim_m) + (0 * located.en_m_B2.sum(-1)).sqrt()

    monkeypatch.setattr(trainer_module, "locator_loss", loss)
    with pytest.raises(TrainingDiverged, match=r"epoch 1: train_loss is \d.*, gradient_norm nan; .*max_grad_norm"):
        run(trainer_of(**ONE_STEP | REGRESSION))


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
        target_m = frame.enu_m(batch.tx_lat, batch.tx_lon, np.full(len(batch), checkpoint.spec.tx_altitude_m))[:, :2]
        assert coverage(prediction.nees(target_m), 0.95) == pytest.approx(0.95, abs=tolerance)
    # Positions are left as they were.
    assert fault(checkpoint, val) is None


def answer(checkpoint: Checkpoint, batch: Samples) -> tuple[Positions, NDArray[np.float64]]:
    """What the model says of the rows, and how far off that is, metres."""
    prediction = predict(checkpoint.locator(), locator_inputs(batch))
    lat, lon = checkpoint.spec.network.frame.geodetic(prediction.en_m, checkpoint.spec.tx_altitude_m)
    return prediction, haversine_m(lat, lon, batch.tx_lat, batch.tx_lon)


def mean_loss(checkpoint: Checkpoint, batch: Samples) -> float:
    model, inputs = checkpoint.locator(), locator_inputs(batch)
    with torch.no_grad():
        return float(locator_loss(model(inputs, model.initial_fix(inputs)), target_m(batch)).double().mean())


def test_each_validation_metric_is_what_its_name_says(trained: Trainer) -> None:
    _, val = splits()
    val = val.take(~val.is_calibration)
    checkpoint, metrics = trained.last_checkpoint(), asdict(trained.history[-1])
    prediction, distance_m = answer(checkpoint, val)
    nees = prediction.nees(target_m(val).double().numpy())
    near = distance_m[val.gdop < 5]
    assert 0 < len(near) < len(distance_m)
    expected = {
        "val_loss": mean_loss(checkpoint, val),
        "val_rmse_m": math.sqrt(np.mean(distance_m**2)),
        "val_rmse_good_geom_m": math.sqrt(np.mean(near**2)),
        "val_distance_p50_m": np.percentile(distance_m, 50),
        "val_distance_p68_m": np.percentile(distance_m, 68),
        "val_distance_p95_m": np.percentile(distance_m, 95),
        "val_nees": np.mean(nees),
        "val_coverage_68": np.mean(nees <= chi2(2).ppf(0.683)),
        "val_coverage_95": np.mean(nees <= chi2(2).ppf(0.95)),
    }
    assert expected.keys() == {name for name in metrics if name.startswith("val_")}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_each_training_metric_is_over_the_rows_whatever_the_batches() -> None:
    """With a step so short that all batches meet the same weights; the last batch is a small one."""
    trainer = trainer_of(FEW, batch_size=100, epochs=1, warmup_epochs=0, learning_rate=1e-12, weight_decay=0.0)
    started = time.perf_counter()
    (metrics,) = trainer.epochs()
    elapsed = time.perf_counter() - started
    train, _ = splits(FEW)
    checkpoint = trainer.last_checkpoint()
    _, distance_m = answer(checkpoint, train)
    assert metrics.train_loss == pytest.approx(mean_loss(checkpoint, train), rel=1e-4)
    assert metrics.train_rmse_m == pytest.approx(math.sqrt(np.mean(distance_m**2)), rel=1e-4)
    assert 0.1 * elapsed < metrics.epoch_seconds <= elapsed


def test_metrics_are_over_the_rows_however_many_there_are() -> None:
    """The same rows again and again, more than are validated at once: each mean stays what it is."""
    train, val = splits(FEW)
    times = 15_000 // len(val)
    assert times * (~val.is_calibration).sum() > 8192
    config = TrainingConfig(**BASE | ONE_STEP)
    once, often = (
        asdict(run(Trainer(spec_for(Architecture.regression), config, train, val.take(rows), DATASET)).history[0])
        for rows in (slice(None), np.tile(np.arange(len(val)), times))
    )
    for name in ("val_loss", "val_rmse_m", "val_rmse_good_geom_m", "val_nees", "val_coverage_68", "val_coverage_95"):
        assert often[name] == pytest.approx(once[name], rel=1e-5), name
    assert often["val_distance_p50_m"] == pytest.approx(once["val_distance_p50_m"], rel=0.05)


def test_the_limits_are_those_of_the_validation_rows() -> None:
    trainer = trainer_of(FEW, max_gdop=3.0)
    _, val = splits(FEW)
    val = val.take(~val.is_calibration)
    near = val.crlb_m[val.gdop < 3.0].astype(float)
    assert 0 < len(near) < (val.gdop < 5.0).sum()
    assert trainer.limit_m == pytest.approx(math.sqrt(np.mean(near**2)))
    assert trainer.limit_p50_m == median_of_bounds_m(val.crlb_m)


@pytest.mark.parametrize("claimed", [0.25, 4.0])
def test_the_scale_lets_the_95_percent_ellipse_cover_as_much_of_the_calibration_rows(claimed: float) -> None:
    """A model that claims too little is widened, one that claims too much is narrowed, by the calibration rows."""
    trainer = run(trainer_of())
    before = trainer.best_checkpoint()
    _, val = splits()
    reserved = val.take(val.is_calibration)
    nees = answer(before, reserved)[0].nees(target_m(reserved).double().numpy())
    expected = np.quantile(nees, 0.95) / chi2(2).ppf(0.95)
    trainer.best_weights["covariance_scale"].fill_(claimed)
    assert trainer.calibrate() == pytest.approx(expected / claimed, rel=1e-4)


OTHER_NETWORK = random_network(7, seed=1)


def child_of(parent: Checkpoint, **settings: Any) -> Trainer:
    return trainer_of(parent=parent, **REGRESSION | settings)


@pytest.fixture(scope="module")
def parent() -> Checkpoint:
    """A calibrated model of other rows."""
    trainer = run(trainer_of(1500, model_architecture=Architecture.regression))
    trainer.calibrate()
    return trainer.best_checkpoint()


def test_fine_tuning_begins_with_the_parents_weights_and_no_scale(parent: Checkpoint) -> None:
    assert abs(float(parent.weights["covariance_scale"]) - 1) > 0.01
    child = child_of(parent)
    assert child.covariance_scale == 1.0
    weights = {**parent.weights, "covariance_scale": torch.tensor(1.0)}
    assert same(dict(child.model.state_dict()), weights)
    assert (child.epoch, child.best_epoch, child.history) == (0, 0, [])
    run(child)
    child.calibrate()
    _, val = splits(FEW)
    reserved = val.take(val.is_calibration)
    nees = answer(child.best_checkpoint(), reserved)[0].nees(target_m(reserved).double().numpy())
    assert coverage(nees, 0.95) == pytest.approx(0.95, abs=1 / len(reserved))


@pytest.mark.parametrize(
    ("field", "other", "words"),
    [
        ("config", spec_for().config, r"architecture is 'triangulation', and must be this training's, 'regression'"),
        ("config", RegressionConfig(heads=4), "heads is 4, and must be this training's, 2"),
        ("network", OTHER_NETWORK, rf"'{OTHER_NETWORK.name} \(.{{8}}\)'.*'{NORTH_WEST_ITALY.name} \(491d2d57\)'"),
        ("tx_altitude_m", 7.5, "is 7.5, and must be this training's, 2.0"),
        ("area_margin_m", 1234.5, f"is 1234.5, and must be this training's, {DEFAULT.area_margin_m}"),
    ],
)
def test_a_parent_of_another_kind_is_refused(parent: Checkpoint, field: str, other: object, words: str) -> None:
    spec = parent.spec.model_copy(update={field: other})
    with pytest.raises(ValueError, match=r"parent_model_id: that model's \w+ is.*") as caught:
        child_of(Checkpoint(**vars(parent) | {"spec": spec}))
    assert re.search(words, str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_parent_for_a_network_of_another_name_is_taken(parent: Checkpoint) -> None:
    renamed = parent.spec.network.model_copy(update={"name": "renamed"})
    spec = parent.spec.model_copy(update={"network": renamed})
    assert child_of(replace(parent, spec=spec)).spec.network.name == NORTH_WEST_ITALY.name


def test_a_parent_with_another_dropout_is_taken(parent: Checkpoint) -> None:
    assert child_of(parent, dropout_rate=0.3).spec.config.dropout_rate == 0.3


def test_training_by_one_call_gives_what_the_steps_give() -> None:
    train_rows, val_rows = splits(FEW)
    config = TrainingConfig(**BASE | {"model_architecture": Architecture.regression})
    checkpoint = train(NORTH_WEST_ITALY, DEFAULT, config, train_rows, val_rows)
    trainer = run(trainer_of(**REGRESSION))
    last = trainer.last_checkpoint()
    best, also_last = trainer.finish()
    assert checkpoint.weights_digest == best.weights_digest == trainer.best_checkpoint().weights_digest
    assert also_last.weights_digest == last.weights_digest
    assert (checkpoint.config, checkpoint.dataset) == (best.config, None)
    named = config.model_copy(update={"parent_model_id": "parent:1"})
    with pytest.raises(ValueError, match="parent_model_id must be None to train without a registry, got parent:1"):
        train(NORTH_WEST_ITALY, DEFAULT, named, train_rows, val_rows)


def test_a_locator_is_fitted_on_the_training_rows() -> None:
    """Site biases in metres, and the scaling of levels."""
    trainer, (train, _) = trainer_of(FEW), splits(FEW)
    bias_m = fit_site_biases_ns(Geometry(NORTH_WEST_ITALY, DEFAULT.tx_height_m), train) * 0.299792458
    np.testing.assert_allclose(trainer.model.start.site_bias_m_R.numpy(), bias_m, rtol=1e-5)
    assert np.abs(bias_m).max() > 1
    heard_db = train.snr_db[train.signal_present]
    encoder = trainer.model.regression.encoder
    assert float(encoder.level_mean[0]) == pytest.approx(heard_db.mean(), rel=1e-4)


@pytest.mark.parametrize(
    ("accelerator", "there", "device"),
    [
        (Accelerator.auto, False, "cpu"),
        (Accelerator.auto, True, "cuda"),
        (Accelerator.cpu, False, "cpu"),
        (Accelerator.cpu, True, "cpu"),
        (Accelerator.gpu, True, "cuda"),
    ],
)
def test_the_accelerator_decides_where_the_training_runs(
    accelerator: Accelerator, there: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert choose_device(accelerator).type == device


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="accelerator: gpu was asked for, but PyTorch finds no CUDA device"):
        trainer_of(FEW, accelerator=Accelerator.gpu)


def test_a_training_on_the_cpu_takes_one_thread() -> None:
    torch.set_num_threads(2)
    assert trainer_of(accelerator=Accelerator.cpu, **REGRESSION).device.type == "cpu"
    assert torch.get_num_threads() == 1


def test_too_few_rows_are_refused() -> None:
    train, val = splits()
    spec, config = spec_for(Architecture.regression), TrainingConfig(**BASE)
    reserved, others = (np.flatnonzero(part) for part in (val.is_calibration, ~val.is_calibration))

    def trainer(validation: int, calibration: int) -> Trainer:
        rows = np.concatenate([others[:validation], reserved[:calibration]])
        return Trainer(spec, config, train, val.take(rows), DATASET)

    enough = trainer(20, 20)
    assert (len(enough.val), len(enough.calibration)) == (20, 20)
    for validation, calibration in ((19, 77), (60, 19)):
        counts = f"it has {validation} and {calibration}: raise num_samples"
        with pytest.raises(ValueError, match=f"at least 20 rows for validation and as many for calibration, {counts}"):
            trainer(validation, calibration)
    with pytest.raises(ValueError, match="the training split has no rows above min_snr_db 100"):
        trainer_of(min_snr_db=100)
    with pytest.raises(ValueError, match=r"the training split has no rows$"):
        Trainer(spec, config, train.take(slice(0, 0)), val, DATASET)


def rates(**settings: Any) -> list[float]:
    """The learning rate of the last step of each epoch; without a batch size an epoch is one step."""
    trainer = run(trainer_of(**REGRESSION | {"batch_size": 65_536, "early_stop_patience": 0} | settings))
    return [float(metrics.learning_rate) for metrics in trainer.history]


@pytest.mark.parametrize("warmup_epochs", [0, 1, 3])
def test_the_cosine_rises_linearly_and_falls_to_a_hundredth(warmup_epochs: int) -> None:
    found = rates(epochs=8, warmup_epochs=warmup_epochs, learning_rate=0.01)
    rise = [0.01 * (i + 1) / (warmup_epochs + 1) for i in range(warmup_epochs)]
    turns = np.arange(8 - warmup_epochs) / (8 - warmup_epochs)
    fall = 1e-4 + (0.01 - 1e-4) * (1 + np.cos(np.pi * turns)) / 2
    assert found == pytest.approx([*rise, *fall])


@pytest.mark.parametrize("warmup_epochs", [1, 2, 3])
def test_one_cycle_rises_in_the_warm_up_and_falls_after_it(warmup_epochs: int) -> None:
    settings: dict[str, Any] = {"warmup_epochs": warmup_epochs, "lr_scheduler": Scheduler.one_cycle}
    found = rates(epochs=4, batch_size=50, learning_rate=0.01, **settings)
    assert max(found) == found[warmup_epochs - 1] == pytest.approx(0.01, rel=0.01)
    assert sorted(found[:warmup_epochs]) == found[:warmup_epochs]
    assert sorted(found[warmup_epochs:], reverse=True) == found[warmup_epochs:]


@pytest.mark.parametrize(("scheduler", "share"), [(Scheduler.cosine, 1 / 100), (Scheduler.one_cycle, 1 / 250_000)])
def test_schedules_end_with_the_last_step(scheduler: Scheduler, share: float) -> None:
    trainer = run(trainer_of(epochs=4, lr_scheduler=scheduler, early_stop_patience=0, **REGRESSION))
    assert trainer.scheduler.get_last_lr() == pytest.approx([share * 3e-3])
    assert trainer.optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_schedules_go_by_steps_and_the_last_batch_of_an_epoch_is_one() -> None:
    trainer = run(trainer_of(batch_size=100, epochs=4, warmup_epochs=1, early_stop_patience=0, **REGRESSION))
    turns = (np.array([9, 14, 19]) - 5) / 15  # five steps an epoch, for 421 rows
    expected = [3e-3 * 5 / 6, *(3e-3 * (0.01 + 0.99 * (1 + np.cos(np.pi * turns)) / 2))]
    assert [metrics.learning_rate for metrics in trainer.history] == pytest.approx(expected)


def test_regression_and_levels_alone_are_far_worse_on_the_same_rows(trained: Trainer) -> None:
    regression = run(trainer_of(model_architecture=Architecture.regression, epochs=8))
    levels = run(trainer_of(scenario=PRESETS[Preset.rss], epochs=8))
    name = "val_distance_p50_m"
    assert trained.best_checkpoint().metrics[name] < 60
    assert regression.best_checkpoint().metrics[name] > 10 * trained.best_checkpoint().metrics[name]
    assert levels.best_checkpoint().metrics[name] > 100 * trained.best_checkpoint().metrics[name]
