import itertools
import logging
import math
import re
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from triangulation_pipeline.frame import haversine_m
from triangulation_pipeline.model.checkpoint import Checkpoint, DatasetReference, dump, load, write_checkpoint
from triangulation_pipeline.model.inputs import LocatorInputs
from triangulation_pipeline.model.locator import Mixture
from triangulation_pipeline.model.losses import locator_loss
from triangulation_pipeline.model.predict import locate
from triangulation_pipeline.model.spec import Architecture, RegressionConfig, StartConfig, TriangulationConfig
from triangulation_pipeline.network import NORTH_WEST_ITALY, random_network
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.positions.mixtures import MixturePositions
from triangulation_pipeline.positions.statistics import median_of_bounds_m
from triangulation_pipeline.samples import Samples
from triangulation_pipeline.training import rows as rows_module
from triangulation_pipeline.training import trainer as trainer_module
from triangulation_pipeline.training import validation
from triangulation_pipeline.training.config import Accelerator, Scheduler, TrainingConfig
from triangulation_pipeline.training.metrics import EpochMetrics
from triangulation_pipeline.training.rows import PreparedRows
from triangulation_pipeline.training.trainer import Trainer, TrainingDiverged, TrainingStopped, choose_device, train
from triangulation_pipeline.training.verify import fault

from .conftest import BASE, DEFAULT, FEW, STORED, Script, own, random, run, same, splits, trainer_of

ONE_STEP: dict[str, Any] = {"epochs": 1, "warmup_epochs": 0, "batch_size": 65_536}
REGRESSION: dict[str, Any] = {"dataset": own(FEW), "model_architecture": Architecture.regression}


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
    settings: dict[str, Any] = {"dataset": own(FEW), "epochs": 4, "lr_scheduler": scheduler}
    whole = run(trainer_of(**settings))
    state = run(trainer_of(**settings), epochs=2).state()
    resumed = trainer_of(**settings)
    resumed.restore(state)
    assert resumed.epoch == 2
    run(resumed)
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert same(resumed.best_weights, whole.best_weights)
    assert timeless(resumed.history) == timeless(whole.history)
    assert (resumed.best_epoch, resumed.best_val_loss) == (whole.best_epoch, whole.best_val_loss)
    assert resumed.norms == whole.norms
    # In another order of the rows the weights would differ.
    forgetful = trainer_of(**settings)
    forgetful.restore(state)
    forgetful.order.manual_seed(5)
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
    settings: dict[str, Any] = {"dataset": own(FEW), "epochs": 2}
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
        trainer_of(stored=DatasetReference(dataset_id="a", sha256="c")).restore(state)
    dataset, config = own(), TrainingConfig(**BASE)
    spec = config.locator_spec(dataset).model_copy(update={"config": TriangulationConfig(embedding=16)})
    with pytest.raises(ValueError, match="the saved state's spec"):
        Trainer(spec, config, dataset, *splits(dataset), STORED).restore(state)
    with pytest.raises(ValueError, match="the saved state's format is 'triangulation-checkpoint/3'"):
        trainer_of().restore(write_checkpoint(trained.best_checkpoint()))
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        trainer_of().restore(state[:-100])
    for name, value in (("format", "triangulation-training-state/2"), ("device", "cuda")):
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
    trainer = trainer_of(own(FEW), epochs=4, early_stop_delta=1.0)
    by_epoch = [trainer.last_checkpoint() for _ in trainer.epochs()]
    assert [len({repr(each.weights) for each in by_epoch}), by_epoch[-1].epoch] == [4, 4]
    published = trainer.best_checkpoint()
    assert (published.epoch, published.metrics) == (best, asdict(trainer.history[best - 1]))
    assert (trainer.best_epoch, trainer.best_val_loss) == (best, min(val_losses))
    assert same(published.weights, by_epoch[best - 1].weights)


def test_a_checkpoint_says_where_it_comes_from(trained: Trainer) -> None:
    for checkpoint in (trained.best_checkpoint(), trained.last_checkpoint()):
        assert (checkpoint.spec, checkpoint.dataset) == (trained.spec, STORED)
        assert TrainingConfig.model_validate(checkpoint.config) == trained.config
        assert checkpoint.metrics == asdict(trained.history[checkpoint.epoch - 1])


def test_the_weights_of_one_epoch_do_not_pass_for_those_of_another(trained: Trainer) -> None:
    dataset = own()
    _, val = splits(dataset)
    first, last = run(trainer_of(), epochs=1).last_checkpoint(), trained.last_checkpoint()
    assert fault(first, dataset, val) is None
    assert fault(last, dataset, val) is None
    pretender = Checkpoint(**vars(last) | {"epoch": 1, "metrics": first.metrics})
    assert "is recorded as" in str(fault(pretender, dataset, val))


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
    trainer = trainer_of(own(FEW), max_grad_norm=limit)
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


ROWS = len(splits(own(FEW))[0])


@pytest.mark.parametrize(("batch_size", "steps"), [(ROWS // 4 - 1, 5), (ROWS, 1), (ROWS - 1, 2), (8, -(-ROWS // 8))])
def test_a_step_is_made_for_each_batch(batch_size: int, steps: int) -> None:
    trainer = trainer_of(batch_size=batch_size, epochs=1, warmup_epochs=0, **REGRESSION)
    made = itertools.count()
    trainer.optimizer.register_step_post_hook(lambda *_: next(made))
    run(trainer)
    assert next(made) == steps


def test_each_epoch_meets_every_row_once_in_an_order_of_its_own() -> None:
    trainer = trainer_of(batch_size=100, epochs=2, **REGRESSION)
    met: list[NDArray[np.float32]] = []

    def note(_: torch.nn.Module, given: tuple[LocatorInputs]) -> None:
        if torch.is_grad_enabled():
            met.append(given[0].toa_m_BW[:, 0].numpy())

    trainer.model.register_forward_pre_hook(note)
    run(trainer)
    first, second = np.concatenate(met[:5]), np.concatenate(met[5:])
    every = np.sort(trainer.train.inputs.toa_m_BW[:, 0].numpy())
    assert np.array_equal(np.sort(first), every)
    assert np.array_equal(np.sort(second), every)
    assert not np.array_equal(first, second)


def test_the_seed_is_that_of_the_first_weights_and_of_the_order_of_the_rows() -> None:
    mine, others = (trainer_of(seed=seed, epochs=1, warmup_epochs=0, **REGRESSION) for seed in (1, 2))
    assert not same(initial(mine), initial(others))
    others.model.load_state_dict(mine.model.state_dict())
    assert not same(initial(run(mine)), initial(run(others)))


def test_min_snr_drops_training_rows_only(trained: Trainer) -> None:
    train, _ = splits(own())
    mean_snr_db = np.array([row[heard].mean() for row, heard in zip(train.snr_db, train.signal_present, strict=True)])
    # Between two rows, so that rounding decides nothing.
    limit_db = float(np.sort(mean_snr_db)[[600, 601]].mean())
    strict = trainer_of(min_snr_db=limit_db)
    assert len(strict.train) == (mean_snr_db >= limit_db).sum()
    assert len(strict.train) == len(trained.train) - 601
    assert len(strict.val) == len(trained.val)


def test_a_row_that_is_just_loud_enough_is_trained_on() -> None:
    dataset = own(FEW)
    train, val = splits(dataset)
    snr_db = np.where(train.signal_present, np.float32(12.0), np.float32(0.0))
    snr_db[:50][train.signal_present[:50]] = 11.0
    loud = Samples(**vars(train) | {"snr_db": snr_db})
    for limit_db, rows in ((11.0, ROWS), (11.5, ROWS - 50), (12.0, ROWS - 50)):
        config = TrainingConfig(**BASE | {"min_snr_db": limit_db, "model_architecture": Architecture.regression})
        assert len(Trainer(config.locator_spec(dataset), config, dataset, loud, val).train) == rows


def test_max_gdop_changes_the_metric_only(trained: Trainer) -> None:
    narrow = run(trainer_of(max_gdop=2.5))
    assert same(narrow.model.state_dict(), trained.model.state_dict())
    name = "val_rmse_good_geom_m"
    for mine, others in zip(timeless(narrow.history), timeless(trained.history), strict=True):
        assert mine.pop(name) != others.pop(name)
        assert mine == others
    assert run(trainer_of(epochs=1, warmup_epochs=0, max_gdop=0.01)).history[0].val_rmse_good_geom_m is None


def test_a_training_loss_that_is_no_number_ends_the_training_in_one_sentence() -> None:
    trainer = trainer_of(own(FEW))
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

    def loss(mixture: Mixture, aim_m: torch.Tensor) -> torch.Tensor:
        return locator_loss(mixture, aim_m) + (0 * mixture.mean_m_BC2.sum((1, 2))).sqrt()

    monkeypatch.setattr(trainer_module, "locator_loss", loss)
    with pytest.raises(TrainingDiverged, match=r"epoch 1: train_loss is \d.*, gradient_norm nan; .*max_grad_norm"):
        run(trainer_of(**ONE_STEP | REGRESSION))


def with_norms(monkeypatch: pytest.MonkeyPatch, *norms: float) -> None:
    """Makes the gradients of the steps have these norms, one after the other, and then the last for ever."""
    coming = itertools.chain(norms, itertools.repeat(norms[-1]))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(next(coming)))


@pytest.mark.parametrize(
    ("norms", "steps", "mean"),
    [
        ((1.0, 1.0, 14.9, 1.0, 1.0), 5, 3.78),
        ((1.0, 1.0, 15.1, 1.0, 1.0), 4, 1.0),
        ((1.0, 20.0, 1.0, 20.0, 20.0), 2, 1.0),
        ((1.0, math.inf, 1.0, math.nan, 1.0), 3, 1.0),
    ],
)
def test_a_step_with_a_wild_gradient_is_left_out(
    norms: tuple[float, ...], steps: int, mean: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At more than 15 times the median of the 200 before it."""
    with_norms(monkeypatch, *norms)
    trainer = trainer_of(batch_size=100, epochs=1, warmup_epochs=0, **REGRESSION)
    trainer.norms.extend([1.0] * 200)
    made = itertools.count()
    trainer.optimizer.register_step_post_hook(lambda *_: next(made))
    with caplog.at_level(logging.WARNING):
        run(trainer)
    assert next(made) == steps
    assert trainer.history[0].gradient_norm == pytest.approx(mean)
    told = [f"epoch 1: {5 - steps} of 5 steps were left out, with a gradient over 15 times as long as usual"]
    assert caplog.messages == told * (steps < 5)
    # The schedule goes on.
    assert trainer.scheduler.last_epoch == 5


def test_the_guard_waits_for_200_steps_and_remembers_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was left out counts too, so that it follows where all gradients grow."""
    norms = [1.0] * 50 + [100.0] * 49 + [1.0] * 100 + [100.0] + [100.0] * 3
    with_norms(monkeypatch, *norms)
    trainer = trainer_of(batch_size=8, epochs=4, warmup_epochs=0, early_stop_patience=0, **REGRESSION)
    made: list[int] = []
    trainer.optimizer.register_step_post_hook(lambda *_: made.append(trainer.scheduler.last_epoch))
    run(trainer)
    steps = 4 * -(-ROWS // 8)
    assert 200 < steps < 260
    assert set(range(steps)) - {*made} == set(range(200, steps))
    assert list(trainer.norms) == [*norms, *[100.0] * steps][steps - 200 : steps]


def answer(checkpoint: Checkpoint, samples: Samples) -> tuple[MixturePositions, NDArray[np.float64]]:
    """What the model says of the rows of its own network, and how far off that is, metres."""
    prediction = locate(checkpoint, samples)
    lat, lon = NORTH_WEST_ITALY.frame.geodetic(prediction.en_m, samples.tx_altitude_m)
    return prediction, haversine_m(lat, lon, samples.tx_lat, samples.tx_lon)


def mean_loss(checkpoint: Checkpoint, dataset: DatasetSpec, samples: Samples) -> float:
    model = checkpoint.locator()
    rows = PreparedRows.of(model, dataset, samples, torch.device("cpu"))
    with torch.no_grad():
        return float(locator_loss(model(rows.inputs), rows.target_m_B2).double().mean())


def test_each_validation_metric_is_what_its_name_says(trained: Trainer) -> None:
    dataset = own()
    _, val = splits(dataset)
    checkpoint, metrics = trained.last_checkpoint(), asdict(trained.history[-1])
    prediction, distance_m = answer(checkpoint, val)
    truth_m = val.tx_en_m(NORTH_WEST_ITALY.frame)
    near = distance_m[val.gdop < 5]
    assert 0 < len(near) < len(distance_m)
    expected = {
        "val_loss": mean_loss(checkpoint, dataset, val),
        "val_rmse_m": math.sqrt(np.mean(distance_m**2)),
        "val_rmse_good_geom_m": math.sqrt(np.mean(near**2)),
        "val_distance_p50_m": np.percentile(distance_m, 50),
        "val_distance_p68_m": np.percentile(distance_m, 68),
        "val_distance_p95_m": np.percentile(distance_m, 95),
        "val_nees": np.mean(prediction.nees(truth_m)),
        "val_coverage_68": np.mean(prediction.covers(truth_m, 0.683)),
        "val_coverage_95": np.mean(prediction.covers(truth_m, 0.95)),
    }
    assert expected.keys() == {name for name in metrics if name.startswith("val_")}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_each_training_metric_is_over_the_rows_whatever_the_batches() -> None:
    """With a step so short that all batches meet the same weights; the last batch is a small one."""
    trainer = trainer_of(own(FEW), batch_size=100, epochs=1, warmup_epochs=0, learning_rate=1e-12, weight_decay=0.0)
    started = time.perf_counter()
    (metrics,) = trainer.epochs()
    elapsed = time.perf_counter() - started
    train, _ = splits(own(FEW))
    checkpoint = trainer.last_checkpoint()
    _, distance_m = answer(checkpoint, train)
    assert metrics.train_loss == pytest.approx(mean_loss(checkpoint, own(FEW), train), rel=1e-4)
    assert metrics.train_rmse_m == pytest.approx(math.sqrt(np.mean(distance_m**2)), rel=1e-4)
    assert 0.1 * elapsed < metrics.epoch_seconds <= elapsed


def test_metrics_are_over_the_rows_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows again and again, more than are prepared and validated at once: each mean stays what it is."""
    monkeypatch.setattr(rows_module, "PREPARED_AT_ONCE", 100)
    monkeypatch.setattr(validation, "VALIDATED_AT_ONCE", 64)
    dataset = own(FEW)
    train, val = splits(dataset)
    config = TrainingConfig(**BASE | ONE_STEP | {"model_architecture": Architecture.regression})
    once, often = (
        asdict(run(Trainer(config.locator_spec(dataset), config, dataset, train, val.take(rows))).history[0])
        for rows in (slice(None), np.tile(np.arange(len(val)), 5))
    )
    for name in ("val_loss", "val_rmse_m", "val_rmse_good_geom_m", "val_nees", "val_coverage_68", "val_coverage_95"):
        assert often[name] == pytest.approx(once[name], rel=1e-5), name
    assert often["val_distance_p50_m"] == pytest.approx(once["val_distance_p50_m"], rel=0.05)


def test_the_limits_are_those_of_the_validation_rows() -> None:
    trainer = trainer_of(own(FEW), max_gdop=3.0)
    _, val = splits(own(FEW))
    near = val.crlb_m[val.gdop < 3.0].astype(float)
    assert 0 < len(near) < (val.gdop < 5.0).sum()
    assert trainer.limit_m == pytest.approx(math.sqrt(np.mean(near**2)))
    assert trainer.limit_p50_m == median_of_bounds_m(val.crlb_m)


def child_of(parent: Checkpoint, **settings: Any) -> Trainer:
    return trainer_of(parent=parent, **REGRESSION | settings)


@pytest.fixture(scope="module")
def parent() -> Checkpoint:
    """A model of other rows."""
    return run(trainer_of(own(1500), model_architecture=Architecture.regression)).best_checkpoint()


def test_fine_tuning_begins_with_the_parents_weights(parent: Checkpoint) -> None:
    child = child_of(parent)
    assert same(dict(child.model.state_dict()), parent.weights)
    assert (child.epoch, child.best_epoch, child.history) == (0, 0, [])
    assert run(child).history[0].train_loss < run(trainer_of(**REGRESSION)).history[0].train_loss
    assert not same(dict(child.model.state_dict()), parent.weights)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (TriangulationConfig(), "architecture is 'triangulation', and must be this training's, 'regression'"),
        (RegressionConfig(heads=4), "heads is 4, and must be this training's, 2"),
        (RegressionConfig(start=StartConfig(hypotheses=2)), "start is .*'hypotheses': 2.*'hypotheses': 3"),
    ],
)
def test_a_parent_of_another_kind_is_refused(parent: Checkpoint, config: Any, words: str) -> None:
    spec = parent.spec.model_copy(update={"config": config})
    with pytest.raises(ValueError, match=r"parent_model_id: that model's \w+ is.*") as caught:
        child_of(replace(parent, spec=spec))
    assert re.search(words, str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("trained_on", ["random layouts", "another network"])
def test_a_parent_may_have_been_trained_elsewhere(parent: Checkpoint, trained_on: str) -> None:
    elsewhere = {"network": None, "scenario": None}
    if trained_on == "another network":
        elsewhere = {"network": random_network(5, seed=1), "scenario": DEFAULT}
    child = child_of(replace(parent, spec=parent.spec.model_copy(update=elsewhere)))
    assert child.spec.network == NORTH_WEST_ITALY
    assert same(dict(child.model.state_dict()), parent.weights)


def test_random_layouts_are_trained_on_and_belong_to_no_network() -> None:
    dataset = random()
    assert sum(1 for _ in dataset.by_layout(splits(dataset)[0])) == 3
    trainer = run(trainer_of(dataset, model_architecture=Architecture.regression))
    checkpoint = trainer.best_checkpoint()
    assert (checkpoint.spec.network, checkpoint.spec.scenario) == (None, None)
    assert trainer.history[-1].val_loss < trainer.history[0].val_loss
    assert fault(checkpoint, dataset, splits(dataset)[1]) is None
    # It serves the default network as it is.
    assert np.isfinite(mean_loss(checkpoint, own(FEW), splits(own(FEW))[1]))


def test_training_by_one_call_gives_what_the_steps_give() -> None:
    dataset = own(FEW)
    config = TrainingConfig(**BASE | {"model_architecture": Architecture.regression})
    checkpoint = train(dataset, config, *splits(dataset))
    best = run(trainer_of(**REGRESSION)).best_checkpoint()
    assert checkpoint.weights_digest == best.weights_digest
    assert (checkpoint.config, checkpoint.dataset) == (best.config, None)
    named = config.model_copy(update={"parent_model_id": "parent:1"})
    with pytest.raises(ValueError, match=r"parent_model_id must be universal or random .*, got parent:1"):
        train(dataset, named, *splits(dataset))


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
        trainer_of(own(FEW), accelerator=Accelerator.gpu)


def test_a_training_on_the_cpu_takes_one_thread() -> None:
    torch.set_num_threads(2)
    assert trainer_of(accelerator=Accelerator.cpu, **REGRESSION).device.type == "cpu"
    assert torch.get_num_threads() == 1


def test_too_few_rows_are_refused() -> None:
    dataset = own()
    train, val = splits(dataset)
    config = TrainingConfig(**BASE | {"model_architecture": Architecture.regression})

    def trainer(train: Samples, val: Samples) -> Trainer:
        return Trainer(config.locator_spec(dataset), config, dataset, train, val)

    assert len(trainer(train, val.take(slice(20))).val) == 20
    with pytest.raises(ValueError, match="the validation split must have at least 20 rows, it has 19: raise num_samp"):
        trainer(train, val.take(slice(19)))
    with pytest.raises(ValueError, match="the training split has no rows above min_snr_db 100"):
        trainer_of(min_snr_db=100)
    with pytest.raises(ValueError, match=r"the training split has no rows$"):
        trainer(train.take(slice(0)), val)


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


def test_a_warm_up_may_be_a_part_of_an_epoch() -> None:
    trainer = trainer_of(batch_size=100, epochs=1, warmup_epochs=0.4, **REGRESSION)  # two steps of five
    rates: list[float] = []
    trainer.optimizer.register_step_post_hook(lambda *_: rates.append(trainer.scheduler.get_last_lr()[0]))
    run(trainer)
    falls = 3e-3 * (0.01 + 0.99 * (1 + np.cos(np.pi * np.arange(3) / 3)) / 2)
    assert rates == pytest.approx([1e-3, 2e-3, *falls])


def test_schedules_go_by_steps_and_the_last_batch_of_an_epoch_is_one() -> None:
    trainer = run(trainer_of(batch_size=100, epochs=4, warmup_epochs=1, early_stop_patience=0, **REGRESSION))
    turns = (np.array([9, 14, 19]) - 5) / 15  # five steps an epoch
    expected = [3e-3 * 5 / 6, *(3e-3 * (0.01 + 0.99 * (1 + np.cos(np.pi * turns)) / 2))]
    assert [metrics.learning_rate for metrics in trainer.history] == pytest.approx(expected)
