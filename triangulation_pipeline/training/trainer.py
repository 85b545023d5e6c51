"""The training loop: one object whose whole state can be saved and restored, one epoch at a time."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
from torch import Tensor

from triangulation_pipeline.model.architectures import build_locator
from triangulation_pipeline.model.checkpoint import Checkpoint, DatasetReference, dump, load
from triangulation_pipeline.model.losses import locator_loss
from triangulation_pipeline.model.spec import LOCATOR_VERSION, RANDOM, UNIVERSAL, LocatorSpec
from triangulation_pipeline.model.universal import universal_model
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.solvers import SOLVERS_VERSION
from triangulation_pipeline.positions.statistics import median_of_bounds_m, rmse_m
from triangulation_pipeline.samples import Samples
from triangulation_pipeline.training.config import TRAINING_VERSION, Accelerator, TrainingConfig
from triangulation_pipeline.training.metrics import EpochMetrics
from triangulation_pipeline.training.rows import PreparedRows, batches, filter_by_snr
from triangulation_pipeline.training.schedule import learning_rate_schedule
from triangulation_pipeline.training.validation import validate

# A step is hundreds of operations of microseconds: a second thread gains a quarter on an idle machine, costs tenfold on
# a busy one (threads spin while they wait for each other), and makes results depend on the number of cores.
CPU_THREADS = 1
LEAST_VALIDATION_ROWS = 20
# A step whose gradient is longer than WILD times the median of the last GUARD_STEPS is not made: about once in 600,000
# rows the gradient of one row is so long that, even clipped, it undoes what many steps have learned. Before there are
# so many steps, gradients grow by more than that without harm.
WILD, GUARD_STEPS = 15.0, 200
# Raised with every change of what a state holds, also of the fields of EpochMetrics.
STATE_FORMAT = "triangulation-training-state/3"

log = logging.getLogger(__name__)


class TrainingDiverged(ArithmeticError):
    """Raised if a loss or a gradient is not a finite number."""


class TrainingStopped(Exception):
    """Raised if a stop was requested. The epoch in progress is lost; those before it are complete."""


def train(dataset: DatasetSpec, config: TrainingConfig, train_rows: Samples, val_rows: Samples) -> Checkpoint:
    """Trains a locator and gives the weights of its best epoch.

    Parameters
    ----------
    dataset : DatasetSpec
        What the rows were simulated by. The locator is for its network and scenario; for any network if the dataset is
        of random ones.
    config : TrainingConfig
        The settings; ``parent_model_id`` must be None, "universal" or "random", as the name of a model means something
        to a registry only.
    train_rows, val_rows : Samples
        Rows of the dataset, with the truth. Those of ``val_rows`` choose the best epoch.

    Returns
    -------
    Checkpoint
        The model. ``locate`` takes it.

    Raises
    ------
    ValueError
        If a setting cannot be met or a split has too few rows.
    TrainingDiverged
        If the loss is not a finite number any more.
    """
    if config.registered_parent is not None:
        raise ValueError(
            f"parent_model_id must be {UNIVERSAL} or {RANDOM} without a registry, got {config.registered_parent}"
        )
    parent = universal_model() if config.parent_model_id == UNIVERSAL else None
    trainer = Trainer(config.locator_spec(dataset), config, dataset, train_rows, val_rows, parent=parent)
    for _ in trainer.epochs():
        pass
    return trainer.best_checkpoint()


def choose_device(accelerator: Accelerator) -> torch.device:
    """The device for a setting. Raises ValueError for ``gpu`` if there is none."""
    if accelerator is Accelerator.cpu or (accelerator is Accelerator.auto and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("accelerator: gpu was asked for, but PyTorch finds no CUDA device; take auto or cpu")
    return torch.device("cuda")


class Trainer:
    """Trains one locator: ``for metrics in trainer.epochs()``, then ``best_checkpoint()``. Between epochs, ``state()``
    holds the complete state of the training.

    On the CPU it sets PyTorch to one thread, for the whole process. The rows are of ``dataset``; ``reference`` says
    where that is stored, if it is. The training begins with the weights of ``parent``, if there is one.

    Raises ValueError if a split has too few rows, or the parent is of another architecture or has other constants.
    """

    def __init__(
        self,
        spec: LocatorSpec,
        config: TrainingConfig,
        dataset: DatasetSpec,
        train: Samples,
        val: Samples,
        reference: DatasetReference | None = None,
        parent: Checkpoint | None = None,
    ) -> None:
        self.spec, self.config, self.reference = spec, config, reference
        self.device = choose_device(config.accelerator)
        if self.device.type == "cpu":
            torch.set_num_threads(CPU_THREADS)
        torch.manual_seed(config.seed)
        self.order = torch.Generator().manual_seed(config.seed)
        train = filter_by_snr(train, config.min_snr_db)
        if len(val) < LEAST_VALIDATION_ROWS:
            raise ValueError(
                f"the validation split must have at least {LEAST_VALIDATION_ROWS} rows, it has {len(val)}: raise "
                "num_samples"
            )
        self.model = build_locator(spec)
        if parent is not None:
            _check_parent(spec, parent.spec)
            self.model.load_state_dict(parent.weights)
        self.train, self.val = (PreparedRows.of(self.model, dataset, rows, self.device) for rows in (train, val))
        self.model.to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.scheduler = learning_rate_schedule(self.optimizer, config, math.ceil(len(self.train) / config.batch_size))
        self.history: list[EpochMetrics] = []
        self.best_epoch, self.best_val_loss = 0, math.inf
        self.best_weights: dict[str, Tensor] = {}
        # What patience counts from: the last fall of val_loss by more than early_stop_delta.
        self.progress_epoch, self.progress_val_loss = 0, math.inf
        # The norms of the last gradients that are numbers.
        self.norms: deque[float] = deque(maxlen=GUARD_STEPS)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or early stopping ends the training."""
        patience = self.config.early_stop_patience
        return self.epoch >= self.config.epochs or 0 < patience <= self.epoch - self.progress_epoch

    @property
    def limit_m(self) -> float | None:
        """The rms Cramér-Rao bound of the validation rows with good geometry, metres; None if there are none."""
        return rmse_m(self.val.crlb_m[self.val.gdop < self.config.max_gdop])

    @property
    def limit_p50_m(self) -> float | None:
        """The median error that the Cramér-Rao bounds of the validation rows leave possible, metres."""
        return median_of_bounds_m(self.val.crlb_m)

    def epochs(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[EpochMetrics]:
        """Trains epoch by epoch and gives the metrics of each.

        Raises TrainingDiverged, and TrainingStopped before the first batch for which ``should_stop`` is true: that
        epoch is lost, and after ``restore`` of the state before it, it is trained again to the same weights.
        """
        while not self.finished:
            started = time.perf_counter()
            measured = self.train_epoch(should_stop) | self._validated()
            seconds = time.perf_counter() - started
            metrics = EpochMetrics(epoch=self.epoch + 1, epoch_seconds=seconds, **measured)
            self.history.append(metrics)
            if metrics.val_loss < self.best_val_loss:
                self.best_val_loss, self.best_epoch = metrics.val_loss, self.epoch
                self.best_weights = self._weights()
            if metrics.val_loss < self.progress_val_loss - self.config.early_stop_delta:
                self.progress_val_loss, self.progress_epoch = metrics.val_loss, self.epoch
            yield metrics

    def best_checkpoint(self) -> Checkpoint:
        """The weights of the best epoch."""
        return self._checkpoint(self.best_weights, self.best_epoch)

    def last_checkpoint(self) -> Checkpoint:
        """The weights of the epoch that was trained last."""
        return self._checkpoint(self._weights(), self.epoch)

    def state(self) -> bytes:
        """Everything that decides how the training continues, as bytes."""
        return dump(
            {
                **self._identity(),
                "weights": self.model.state_dict(),
                "best_weights": self.best_weights,
                "best_epoch": self.best_epoch,
                "best_val_loss": self.best_val_loss,
                "progress_epoch": self.progress_epoch,
                "progress_val_loss": self.progress_val_loss,
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "norms": list(self.norms),
                "order": self.order.get_state(),
                "random": torch.get_rng_state(),
                "device_random": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
                "history": [asdict(metrics) for metrics in self.history],
            }
        )

    def restore(self, content: bytes) -> None:
        """Goes back to a saved state: the training continues to the same weights as if it had never stopped.

        Raises ValueError for a state of another format, training, version of the arithmetic or kind of device, and on
        the CPU for another number of threads, with which sums round differently.
        """
        state = load(content)
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ValueError(
                    f"the saved state's {name} is {state.get(name)!r}, this training's is {value!r}; launch a new run"
                )
        self.model.load_state_dict(state["weights"])
        self.best_weights = {name: tensor.to(self.device) for name, tensor in state["best_weights"].items()}
        self.best_epoch, self.best_val_loss = state["best_epoch"], state["best_val_loss"]
        self.progress_epoch, self.progress_val_loss = state["progress_epoch"], state["progress_val_loss"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.norms = deque(state["norms"], maxlen=GUARD_STEPS)
        self.order.set_state(state["order"])
        torch.set_rng_state(state["random"])
        if state["device_random"] is not None:
            torch.cuda.set_rng_state(state["device_random"])
        self.history = [EpochMetrics(**metrics) for metrics in state["history"]]

    def _identity(self) -> dict[str, Any]:
        """What a saved state and the training that continues from it must have in common."""
        return {
            "format": STATE_FORMAT,
            "spec": self.spec.model_dump(mode="json"),
            "config": self.config.model_dump(mode="json"),
            "dataset": None if self.reference is None else self.reference.model_dump(),
            "versions": {"training": TRAINING_VERSION, "locator": LOCATOR_VERSION, "solvers": SOLVERS_VERSION},
            "device": self.device.type,
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
        }

    def train_epoch(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        """One pass over the training rows; its training metrics, by name."""
        self.model.train()
        found_m = torch.empty_like(self.train.target_m_B2)
        losses, norms = [], []
        parts = batches(self.train.inputs.num_hearing_B, self.config.batch_size, self.order)
        for part in parts:
            if should_stop():
                raise TrainingStopped
            rows = part.to(self.device)
            inputs, target_m_B2 = self.train.batch(rows)
            mixture = self.model(inputs)
            loss = locator_loss(mixture, target_m_B2).mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm))
            learning_rate = float(self.optimizer.param_groups[0]["lr"])
            if not self._is_wild(norm):
                self.optimizer.step()
                norms.append(norm)
            self.scheduler.step()
            losses.append(loss.detach() * len(rows))
            found_m[rows] = mixture.en_m_B2.detach()
        if skipped := len(parts) - len(norms):
            log.warning(
                "epoch %d: %d of %d steps were left out, with a gradient over %g times as long as usual",
                *(self.epoch + 1, skipped, len(parts), WILD),
            )
        train_loss = float(torch.stack(losses).sum()) / len(self.train)
        gradient_norm = sum(norms) / len(norms) if norms else math.nan
        if not math.isfinite(train_loss) or not math.isfinite(gradient_norm):
            raise TrainingDiverged(
                f"training diverged in epoch {self.epoch + 1}: train_loss is {train_loss}, gradient_norm "
                f"{gradient_norm}; lower learning_rate (now {self.config.learning_rate:g}) or max_grad_norm "
                f"(now {self.config.max_grad_norm:g})"
            )
        return {
            "train_loss": train_loss,
            "train_rmse_m": rmse_m(self.train.error_m(found_m.double().cpu().numpy())),
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm,
        }

    def _is_wild(self, norm: float) -> bool:
        """Whether a gradient of that norm is far longer than those before it, or no number."""
        wild = len(self.norms) == GUARD_STEPS and not norm <= WILD * median(self.norms)
        if math.isfinite(norm):
            self.norms.append(norm)
        return wild

    def _validated(self) -> dict[str, Any]:
        """The validation metrics of the model as it is, by name."""
        found = validate(self.model, self.val, self.config.max_gdop)
        if not math.isfinite(found["val_loss"]):
            raise TrainingDiverged(
                f"training diverged in epoch {self.epoch + 1}: val_loss is {found['val_loss']}; lower learning_rate "
                f"(now {self.config.learning_rate:g})"
            )
        return found

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def _checkpoint(self, weights: dict[str, Tensor], epoch: int) -> Checkpoint:
        return Checkpoint(
            spec=self.spec,
            weights={name: tensor.cpu() for name, tensor in weights.items()},
            epoch=epoch,
            metrics=asdict(self.history[epoch - 1]),
            config=self.config.model_dump(mode="json"),
            dataset=self.reference,
        )


def _check_parent(spec: LocatorSpec, parent: LocatorSpec) -> None:
    """Raises ValueError if a training cannot begin with the weights of a parent. On which networks that was trained
    does not matter."""
    mine, its = (each.config.model_dump(mode="json") for each in (spec, parent))
    for name, value in mine.items():
        if its.get(name) != value:
            raise ValueError(
                f"parent_model_id: that model's {name} is {its.get(name)!r}, and must be this training's, {value!r}"
            )
