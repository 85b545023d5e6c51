"""The training loop: one object whose whole state can be saved and restored, one epoch at a time."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triangulation_pipeline.frame import LocalFrame
from triangulation_pipeline.model.inputs import LocatorInputs, locator_inputs
from triangulation_pipeline.model.locator import Locator, build_locator
from triangulation_pipeline.model.losses import locator_loss, normalised_error_squared
from triangulation_pipeline.model.spec import LocatorSpec
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.solvers import fit_site_biases_ns
from triangulation_pipeline.positions import (
    Positions,
    chi_square_2,
    median_of_bounds_m,
    rmse_m,
)
from triangulation_pipeline.samples import Samples
from triangulation_pipeline.training.checkpoint import Checkpoint, dump, load
from triangulation_pipeline.training.config import Accelerator, Scheduler, TrainingConfig
from triangulation_pipeline.training.metrics import EpochMetrics, position_metrics

# A step is hundreds of operations of microseconds: a second thread gains a quarter on an idle machine, costs tenfold on
# a busy one (threads spin while they wait for each other), and makes results depend on the number of cores.
CPU_THREADS = 1
VALIDATION_ROWS = 8192
CALIBRATED_COVERAGE = 0.95
LEAST_CALIBRATION_ROWS = 20
STATE_FORMAT = "triangulation-training-state/1"


class TrainingDiverged(ArithmeticError):
    """A loss that is not a finite number."""


class TrainingStopped(Exception):
    """Somebody asked the training to stop; what its epochs left is complete."""


@dataclass(frozen=True)
class Rows:
    """A split as tensors on the training device, with what its metrics need."""

    inputs: LocatorInputs
    start_m: Tensor  # (n, 2)
    target_m: Tensor  # (n, 2)
    lat: NDArray[np.float64]
    lon: NDArray[np.float64]
    gdop: NDArray[np.float32]
    crlb_m: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.lat)


def choose_device(accelerator: Accelerator) -> torch.device:
    """The device for a setting. Raises ValueError for ``gpu`` without one."""
    if accelerator is Accelerator.cpu or (accelerator is Accelerator.auto and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("accelerator: gpu was asked for, but PyTorch finds no CUDA device; take auto or cpu")
    return torch.device("cuda")


class Trainer:
    """Trains one locator. ``for metrics in trainer.epochs()`` runs it; between epochs ``state()`` is all there is.

    On the CPU it sets PyTorch to one thread, for the whole process. ``parent`` is the checkpoint of
    ``config.parent_model_id``: its weights, site biases and input scaling are where the training begins.

    Raises ValueError where a split leaves too few rows, or the parent is another kind of model.
    """

    def __init__(
        self,
        spec: LocatorSpec,
        config: TrainingConfig,
        train: Samples,
        val: Samples,
        dataset: dict[str, str],
        parent: Checkpoint | None = None,
    ) -> None:
        if (parent is None) != (config.parent_model_id is None):
            raise ValueError("a training has a parent's checkpoint exactly where its config names parent_model_id")
        self.spec, self.config, self.dataset = spec, config, dataset
        self.device = choose_device(config.accelerator)
        if self.device.type == "cpu":
            torch.set_num_threads(CPU_THREADS)
        torch.manual_seed(config.seed)
        self.order = torch.Generator().manual_seed(config.seed)
        train = _loud_enough(train, config.min_snr_db)
        reserved = val.is_calibration
        if reserved.sum() < LEAST_CALIBRATION_ROWS or (~reserved).sum() < LEAST_CALIBRATION_ROWS:
            raise ValueError(
                f"the validation split must have at least {LEAST_CALIBRATION_ROWS} rows for validation and as many for "
                f"calibration, it has {(~reserved).sum()} and {reserved.sum()}: raise num_samples"
            )
        self.model: Locator = build_locator(spec).to(self.device)
        if parent is None:
            site_bias_m = fit_site_biases_ns(Geometry(spec.network, spec.tx_height_m), train) * SPEED_OF_LIGHT_M_PER_NS
            self.model.fit(
                locator_inputs(train).to(self.device),
                self._target_m(train).to(self.device),
                torch.as_tensor(site_bias_m, dtype=torch.float32, device=self.device),
            )
        else:
            self._begin_from(parent)
        self.train, self.val, self.calibration = (
            self._rows(batch) for batch in (train, val.take(~reserved), val.take(reserved))
        )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.scheduler = _scheduler(self.optimizer, config, math.ceil(len(self.train) / config.batch_size))
        self.history: list[EpochMetrics] = []
        self.best_epoch = 0
        self.best_val_loss = math.inf
        self.best_weights: dict[str, Tensor] = {}
        # What patience counts from: the last fall of val_loss by more than early_stop_delta.
        self.progress_epoch = 0
        self.progress_val_loss = math.inf
        self.calibrated_metrics: dict[str, Any] = {}

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    @property
    def finished(self) -> bool:
        """All epochs are done, or patience is at an end."""
        patience = self.config.early_stop_patience
        return self.epoch >= self.config.epochs or 0 < patience <= self.epoch - self.progress_epoch

    @property
    def limit_m(self) -> float | None:
        """The rms Cramér-Rao bound of the validation rows with good geometry, metres."""
        return rmse_m(self.val.crlb_m[self.val.gdop < self.config.max_gdop])

    @property
    def limit_p50_m(self) -> float | None:
        """The median error that the Cramér-Rao bounds of the validation rows leave possible, metres."""
        return median_of_bounds_m(self.val.crlb_m)

    @property
    def covariance_scale(self) -> float:
        """What the covariances are multiplied by: 1 before ``calibrate``."""
        return float(self.model.covariance_scale)

    def epochs(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[EpochMetrics]:
        """Trains epoch by epoch and gives the metrics of each.

        Raises TrainingDiverged, and TrainingStopped at the first batch at which ``should_stop``: that epoch is lost,
        and ``restore`` of the state before it trains it again to the same weights.
        """
        while not self.finished:
            started = time.perf_counter()
            measured = self._train_epoch(should_stop) | self._validate()
            seconds = time.perf_counter() - started
            metrics = EpochMetrics(epoch=self.epoch + 1, epoch_seconds=seconds, **measured)
            self.history.append(metrics)
            if metrics.val_loss < self.best_val_loss:
                self.best_val_loss, self.best_epoch = metrics.val_loss, self.epoch
                self.best_weights = self._weights()
            if metrics.val_loss < self.progress_val_loss - self.config.early_stop_delta:
                self.progress_val_loss, self.progress_epoch = metrics.val_loss, self.epoch
            yield metrics

    def calibrate(self) -> float:
        """Takes the best weights back and fits their covariance scale on the calibration rows, so that the 95 % ellipse
        covers 95 % of them: the mean NEES would follow a few wild rows. Gives the scale."""
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
        """The weights of the last epoch, with the covariances as trained. To be taken before ``calibrate``."""
        return self._checkpoint(self._weights(), self.epoch, {})

    def state(self) -> bytes:
        """Everything that decides how training goes on, as bytes."""
        return dump(
            {
                "format": STATE_FORMAT,
                "spec": self.spec.model_dump(mode="json"),
                "config": self.config.model_dump(mode="json"),
                "dataset": self.dataset,
                "code_version": version("triangulation-pipeline"),
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
                "device": self.device.type,
                "device_random": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
                "threads": torch.get_num_threads(),
                "history": [asdict(metrics) for metrics in self.history],
            }
        )

    def restore(self, content: bytes) -> None:
        """Goes back to a saved state; training on gives the very weights that never stopping would have given.

        Raises ValueError for a state of another training or kind of device, and on the CPU for another thread count,
        with which sums round differently.
        """
        state = load(content)
        mine: dict[str, object] = {
            "format": STATE_FORMAT,
            "spec": self.spec.model_dump(mode="json"),
            "config": self.config.model_dump(mode="json"),
            "dataset": self.dataset,
            "device": self.device.type,
        }
        if self.device.type == "cpu":
            mine["threads"] = torch.get_num_threads()
        for name, value in mine.items():
            if state.get(name) != value:
                raise ValueError(f"the saved state's {name} is {state.get(name)!r}, this training's is {value!r}")
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

    def _begin_from(self, parent: Checkpoint) -> None:
        for name in ("architecture", "network", "tx_height_m", "area_margin_m"):
            mine, its = getattr(self.spec, name), getattr(parent.spec, name)
            if mine != its:
                mine, its = (value.name if name == "network" else value for value in (mine, its))
                raise ValueError(
                    f"parent_model_id: that model's {name} is {its!r}, and must be this training's, {mine!r}"
                )
        self.model.load_state_dict(parent.weights)
        self.model.covariance_scale.fill_(1.0)

    def _train_epoch(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        """The training metrics of one pass over the training rows, by name."""
        self.model.train()
        permutation = torch.randperm(len(self.train), generator=self.order).to(self.device)
        found_m = torch.empty_like(self.train.target_m)
        losses, norms = [], []
        for rows in permutation.split(self.config.batch_size):
            if should_stop():
                raise TrainingStopped
            located = self.model(self.train.inputs.take(rows), self.train.start_m[rows])
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
    def _evaluate(self, rows: Rows) -> tuple[float, NDArray[np.float64], NDArray[np.float32]]:
        """Mean loss, distances (n,) and NEES (n,)."""
        self.model.eval()
        losses, positions, nees = [], [], []
        for i in range(0, len(rows), VALIDATION_ROWS):
            part = slice(i, i + VALIDATION_ROWS)
            located = self.model(rows.inputs.take(part), rows.start_m[part])
            losses.append(locator_loss(located, rows.target_m[part]).double().sum())
            positions.append(located.en_m_B2)
            nees.append(normalised_error_squared(located, rows.target_m[part]))
        loss = float(torch.stack(losses).sum()) / len(rows)
        return loss, self._distance_m(rows, torch.cat(positions)), torch.cat(nees).cpu().numpy()

    def _distance_m(self, rows: Rows, found_m: Tensor) -> NDArray[np.float64]:
        found = Positions.of_points(found_m.double().cpu().numpy())
        return found.error_m(self._frame, self.spec.tx_height_m, rows.lat, rows.lon)

    @property
    def _frame(self) -> LocalFrame:
        return self.spec.network.frame

    def _target_m(self, batch: Samples) -> Tensor:
        en_m = self._frame.en_m(batch.tx_lat, batch.tx_lon, self.spec.tx_height_m)
        return torch.as_tensor(en_m, dtype=torch.float32)

    def _rows(self, batch: Samples) -> Rows:
        inputs = locator_inputs(batch).to(self.device)
        return Rows(
            inputs=inputs,
            start_m=self.model.start(inputs),
            target_m=self._target_m(batch).to(self.device),
            lat=batch.tx_lat,
            lon=batch.tx_lon,
            gdop=batch.gdop,
            crlb_m=batch.crlb_m,
        )

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def _checkpoint(self, weights: dict[str, Tensor], epoch: int, remeasured: dict[str, Any]) -> Checkpoint:
        config: dict[str, Any] = self.config.model_dump(mode="json")
        return Checkpoint(
            spec=self.spec,
            weights={name: tensor.cpu() for name, tensor in weights.items()},
            epoch=epoch,
            metrics=asdict(replace(self.history[epoch - 1], **remeasured)),
            config=config,
            dataset=self.dataset,
            code_version=version("triangulation-pipeline"),
        )


def _loud_enough(batch: Samples, min_snr_db: float | None) -> Samples:
    if min_snr_db is not None:
        mean_snr_db = (batch.snr_db * batch.signal_present).sum(1) / np.maximum(batch.num_detections, 1)
        batch = batch.take(mean_snr_db >= min_snr_db)
    if not len(batch):
        raise ValueError(
            "the training split has no rows" + ("" if min_snr_db is None else f" above min_snr_db {min_snr_db:g}")
        )
    return batch


def _scheduler(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, steps_an_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    warmup, total = config.warmup_epochs * steps_an_epoch, config.epochs * steps_an_epoch
    if config.lr_scheduler is Scheduler.one_cycle:
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            config.learning_rate,
            total_steps=total + 1,
            pct_start=max(warmup, 1) / total,
            cycle_momentum=False,
        )

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
