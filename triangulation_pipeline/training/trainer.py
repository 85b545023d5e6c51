"""The training loop: one object whose whole state can be saved and restored, one epoch at a time."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triangulation_pipeline.model.architectures import build_locator
from triangulation_pipeline.model.checkpoint import Checkpoint, DatasetReference, dump, load
from triangulation_pipeline.model.losses import locator_loss, normalised_error_squared
from triangulation_pipeline.model.spec import LOCATOR_VERSION, LocatorSpec
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.physics.solvers import SOLVERS_VERSION
from triangulation_pipeline.positions import Positions, chi_square_2, median_of_bounds_m, rmse_m
from triangulation_pipeline.samples import Samples
from triangulation_pipeline.training.config import TRAINING_VERSION, Accelerator, TrainingConfig
from triangulation_pipeline.training.metrics import EpochMetrics, position_metrics
from triangulation_pipeline.training.rows import SplitTensors, filter_by_snr, fit_data
from triangulation_pipeline.training.schedule import learning_rate_schedule

# A step is hundreds of operations of microseconds: a second thread gains a quarter on an idle machine, costs tenfold on
# a busy one (threads spin while they wait for each other), and makes results depend on the number of cores.
CPU_THREADS = 1
VALIDATION_ROWS = 8192
CALIBRATED_COVERAGE = 0.95
LEAST_CALIBRATION_ROWS = 20
# Raised with every change of what a state holds, also of the fields of EpochMetrics.
STATE_FORMAT = "triangulation-training-state/2"


class TrainingDiverged(ArithmeticError):
    """Raised if a loss or a gradient is not a finite number."""


class TrainingStopped(Exception):
    """Raised if a stop was requested. The epoch in progress is lost; those before it are complete."""


def train(
    network: ReceiverNetwork,
    scenario: Scenario,
    config: TrainingConfig,
    train_rows: Samples,
    val_rows: Samples,
) -> Checkpoint:
    """Trains a locator and gives the weights of its best epoch, with calibrated covariances.

    Parameters
    ----------
    network, scenario
        What the locator is for: its receivers, the altitude of the transmitters and the margin of the service area.
    config
        The settings; ``parent_model_id`` must be None, as a model's name means something to a registry only.
    train_rows, val_rows
        Samples of the network with the truth. Those of ``val_rows`` that ``is_calibration`` marks calibrate the
        covariances; the others choose the best epoch.

    Raises ValueError if a setting cannot be met or a split has too few rows, and TrainingDiverged.
    """
    if config.parent_model_id is not None:
        raise ValueError(f"parent_model_id must be None to train without a registry, got {config.parent_model_id}")
    trainer = Trainer(config.locator_spec(network, scenario), config, train_rows, val_rows)
    for _ in trainer.epochs():
        pass
    best, _ = trainer.finish()
    return best


def choose_device(accelerator: Accelerator) -> torch.device:
    """The device for a setting. Raises ValueError for ``gpu`` if there is none."""
    if accelerator is Accelerator.cpu or (accelerator is Accelerator.auto and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("accelerator: gpu was asked for, but PyTorch finds no CUDA device; take auto or cpu")
    return torch.device("cuda")


class Trainer:
    """Trains one locator: ``for metrics in trainer.epochs()``, then ``finish()``. Between epochs, ``state()`` holds the
    complete state of the training.

    On the CPU it sets PyTorch to one thread, for the whole process. ``dataset`` is the stored dataset of the rows, if
    they are of one. The training begins with the weights, site biases and input scaling of ``parent``, if there is one.

    Raises ValueError if a split has too few rows, or the parent is built for something else.
    """

    def __init__(
        self,
        spec: LocatorSpec,
        config: TrainingConfig,
        train: Samples,
        val: Samples,
        dataset: DatasetReference | None = None,
        parent: Checkpoint | None = None,
    ) -> None:
        self.spec, self.config, self.dataset = spec, config, dataset
        self.device = choose_device(config.accelerator)
        if self.device.type == "cpu":
            torch.set_num_threads(CPU_THREADS)
        torch.manual_seed(config.seed)
        self.order = torch.Generator().manual_seed(config.seed)
        train = filter_by_snr(train, config.min_snr_db)
        self.train, self.val, self.calibration = (
            SplitTensors.of(spec, batch, self.device) for batch in (train, *_validation_and_calibration(val))
        )
        self.model = build_locator(spec).to(self.device)
        if parent is None:
            self.model.fit(fit_data(spec, train, self.train))
        else:
            self._begin_from(parent)
        for rows in (self.train, self.val, self.calibration):
            rows.find_initial_fixes(self.model)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.scheduler = learning_rate_schedule(self.optimizer, config, math.ceil(len(self.train) / config.batch_size))
        self.history: list[EpochMetrics] = []
        self.best_epoch, self.best_val_loss = 0, math.inf
        self.best_weights: dict[str, Tensor] = {}
        # What patience counts from: the last fall of val_loss by more than early_stop_delta.
        self.progress_epoch, self.progress_val_loss = 0, math.inf
        self.calibrated_metrics: dict[str, Any] = {}

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

    @property
    def covariance_scale(self) -> float:
        """The factor of the covariances: 1 before the calibration."""
        return float(self.model.covariance_scale)

    def epochs(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[EpochMetrics]:
        """Trains epoch by epoch and gives the metrics of each.

        Raises TrainingDiverged, and TrainingStopped before the first batch for which ``should_stop`` is true: that
        epoch is lost, and after ``restore`` of the state before it, it is trained again to the same weights.
        """
        while not self.finished:
            started = time.perf_counter()
            measured = self.train_epoch(should_stop) | self._validate()
            seconds = time.perf_counter() - started
            metrics = EpochMetrics(epoch=self.epoch + 1, epoch_seconds=seconds, **measured)
            self.history.append(metrics)
            if metrics.val_loss < self.best_val_loss:
                self.best_val_loss, self.best_epoch = metrics.val_loss, self.epoch
                self.best_weights = self._weights()
            if metrics.val_loss < self.progress_val_loss - self.config.early_stop_delta:
                self.progress_val_loss, self.progress_epoch = metrics.val_loss, self.epoch
            yield metrics

    def finish(self) -> tuple[Checkpoint, Checkpoint]:
        """The weights of the best epoch, calibrated, and those of the last epoch, with the covariances as trained."""
        last = self.last_checkpoint()
        self.calibrate()
        return self.best_checkpoint(), last

    def calibrate(self) -> float:
        """Loads the best weights and fits their covariance scale on the calibration rows, so that the 95 % ellipse
        covers 95 % of them; the mean NEES would depend on a few wild rows. Returns the scale."""
        self.model.load_state_dict(self.best_weights)
        nees = self._evaluate(self.calibration)[2]
        scale = float(np.quantile(nees, CALIBRATED_COVERAGE)) / chi_square_2(CALIBRATED_COVERAGE)
        self.model.covariance_scale.fill_(scale)
        self.best_weights = self._weights()
        self.calibrated_metrics = self._validate()
        return scale

    def best_checkpoint(self) -> Checkpoint:
        """The weights of the best epoch; after ``calibrate`` with the validation metrics of the calibrated model."""
        return self._checkpoint(self.best_weights, self.best_epoch, self.calibrated_metrics)

    def last_checkpoint(self) -> Checkpoint:
        """The weights of the epoch that was trained last, with the covariances as trained; not after ``calibrate``."""
        return self._checkpoint(self._weights(), self.epoch, {})

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
            "dataset": None if self.dataset is None else self.dataset.model_dump(),
            "versions": {"training": TRAINING_VERSION, "locator": LOCATOR_VERSION, "solvers": SOLVERS_VERSION},
            "device": self.device.type,
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
        }

    def _begin_from(self, parent: Checkpoint) -> None:
        mine, its = _built_for(self.spec), _built_for(parent.spec)
        for name, value in mine.items():
            if its.get(name) != value:
                found, wanted = its.get(name), value
                if name == "network":
                    found, wanted = (
                        f"{network.name} ({network.digest[:8]})" for network in (parent.spec.network, self.spec.network)
                    )
                raise ValueError(
                    f"parent_model_id: that model's {name} is {found!r}, and must be this training's, {wanted!r}"
                )
        self.model.load_state_dict(parent.weights)
        self.model.covariance_scale.fill_(1.0)

    def train_epoch(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        """One pass over the training rows; its training metrics, by name."""
        self.model.train()
        permutation = torch.randperm(len(self.train), generator=self.order).to(self.device)
        found_m = torch.empty_like(self.train.target_m)
        losses, norms = [], []
        for rows in permutation.split(self.config.batch_size):
            if should_stop():
                raise TrainingStopped
            located = self.model(self.train.inputs.take(rows), self.train.initial_m[rows])
            loss = locator_loss(located, self.train.target_m[rows]).mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm))
            learning_rate = float(self.optimizer.param_groups[0]["lr"])
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.detach() * len(rows))
            found_m[rows] = located.en_m_B2.detach()
        train_loss = float(torch.stack(losses).sum()) / len(self.train)
        gradient_norm = float(torch.stack(norms).mean())
        if not math.isfinite(train_loss) or not math.isfinite(gradient_norm):
            raise TrainingDiverged(
                f"training diverged in epoch {self.epoch + 1}: train_loss is {train_loss}, gradient_norm "
                f"{gradient_norm}; lower learning_rate (now {self.config.learning_rate:g}) or max_grad_norm "
                f"(now {self.config.max_grad_norm:g})"
            )
        return {
            "train_loss": train_loss,
            "train_rmse_m": rmse_m(self._distance_m(self.train, found_m)),
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm,
        }

    def _validate(self) -> dict[str, Any]:
        """The validation metrics of the model as it is, by name."""
        loss, distance_m, nees = self._evaluate(self.val)
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"training diverged in epoch {self.epoch + 1}: val_loss is {loss}; lower learning_rate "
                f"(now {self.config.learning_rate:g})"
            )
        return {
            "val_loss": loss,
            "val_rmse_good_geom_m": rmse_m(distance_m[self.val.gdop < self.config.max_gdop]),
            **position_metrics(distance_m, nees),
        }

    @torch.no_grad()
    def _evaluate(self, rows: SplitTensors) -> tuple[float, NDArray[np.float64], NDArray[np.float32]]:
        """Mean loss, position errors (n,) in metres and NEES (n,)."""
        self.model.eval()
        losses, positions, nees = [], [], []
        for i in range(0, len(rows), VALIDATION_ROWS):
            part = slice(i, i + VALIDATION_ROWS)
            located = self.model(rows.inputs.take(part), rows.initial_m[part])
            losses.append(locator_loss(located, rows.target_m[part]).double().sum())
            positions.append(located.en_m_B2)
            nees.append(normalised_error_squared(located, rows.target_m[part]))
        loss = float(torch.stack(losses).sum()) / len(rows)
        return loss, self._distance_m(rows, torch.cat(positions)), torch.cat(nees).cpu().numpy()

    def _distance_m(self, rows: SplitTensors, found_m: Tensor) -> NDArray[np.float64]:
        found = Positions.of_points(found_m.double().cpu().numpy())
        return found.error_m(self.spec.network.frame, self.spec.tx_altitude_m, rows.lat, rows.lon)

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def _checkpoint(self, weights: dict[str, Tensor], epoch: int, remeasured: dict[str, Any]) -> Checkpoint:
        return Checkpoint(
            spec=self.spec,
            weights={name: tensor.cpu() for name, tensor in weights.items()},
            epoch=epoch,
            metrics=asdict(replace(self.history[epoch - 1], **remeasured)),
            config=self.config.model_dump(mode="json"),
            dataset=self.dataset,
        )


def _built_for(spec: LocatorSpec) -> dict[str, Any]:
    """What a model and the training that begins from it must have in common, by name."""
    common = spec.config.model_dump(mode="json", exclude={"dropout_rate"}) | dict(spec)
    del common["config"]
    return common | {"network": spec.network.digest}


def _validation_and_calibration(val: Samples) -> tuple[Samples, Samples]:
    reserved = val.is_calibration
    if reserved.sum() < LEAST_CALIBRATION_ROWS or (~reserved).sum() < LEAST_CALIBRATION_ROWS:
        raise ValueError(
            f"the validation split must have at least {LEAST_CALIBRATION_ROWS} rows for validation and as many for "
            f"calibration, it has {(~reserved).sum()} and {reserved.sum()}: raise num_samples"
        )
    return val.take(~reserved), val.take(reserved)
