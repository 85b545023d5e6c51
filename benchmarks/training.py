"""The trainer's epoch against a bare PyTorch loop: same model, same batches, same optimiser, in turns; and how fast
rows are prepared and validated."""

import math
import time
from statistics import median

import torch

from triangulation_pipeline.model.losses import locator_loss
from triangulation_pipeline.model.spec import RANDOM
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.samples import Split
from triangulation_pipeline.training.config import Accelerator, TrainingConfig
from triangulation_pipeline.training.rows import batches
from triangulation_pipeline.training.trainer import Trainer
from triangulation_pipeline.training.validation import validate

SAMPLES = 12_000
TURNS = 7


def measure() -> dict[str, str]:
    """Name and value of each number, ready to print."""
    dataset = DatasetSpec(NORTH_WEST_ITALY, PRESETS[Preset.default], SAMPLES, seed=0)
    samples = simulate(dataset)
    splits = samples.take(samples.split == Split.train), samples.take(samples.split == Split.val)
    config = TrainingConfig(epochs=2 * TURNS + 2, accelerator=Accelerator.cpu, parent_model_id=RANDOM)

    def trainer() -> Trainer:
        return Trainer(config.locator_spec(dataset), config, dataset, *splits)

    started = time.perf_counter()
    ours, bare = trainer(), trainer()
    prepared_s = (time.perf_counter() - started) / 2
    model, rows, optimizer = bare.model, bare.train, bare.optimizer

    def bare_epoch() -> float:
        """Shuffle, forward, loss, backward, clip, step; gives the mean loss."""
        model.train()
        losses = []
        for picked in batches(rows.inputs.num_hearing_B, config.batch_size, bare.order):
            inputs, target_m_B2 = rows.batch(picked)
            loss = locator_loss(model(inputs), target_m_B2).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            bare.scheduler.step()
            losses.append(loss.detach() * len(picked))
        return float(torch.stack(losses).sum()) / len(rows)

    durations: dict[str, list[float]] = {"trainer": [], "bare": []}
    for turn in range(TURNS + 1):
        started = time.perf_counter()
        metrics = ours.train_epoch(lambda: False)
        middle = time.perf_counter()
        loss = bare_epoch()
        ended = time.perf_counter()
        if not math.isclose(loss, metrics["train_loss"], rel_tol=1e-6):
            raise ArithmeticError(f"the two loops do not do the same work: {loss} against {metrics['train_loss']}")
        if turn:  # The first is to warm up.
            durations["trainer"].append(middle - started)
            durations["bare"].append(ended - middle)
    started = time.perf_counter()
    validate(model, bare.val, config.max_gdop)
    validated_s = time.perf_counter() - started
    ratio = median(a / b for a, b in zip(durations["trainer"], durations["bare"], strict=True))
    return {
        "preparing (start of every row), rows/s": f"{(len(rows) + len(bare.val)) / prepared_s:,.0f}",
        "validation, rows/s": f"{len(bare.val) / validated_s:,.0f}",
        "training epoch, Trainer, rows/s": f"{len(rows) / median(durations['trainer']):,.0f}",
        "training epoch, bare loop, rows/s": f"{len(rows) / median(durations['bare']):,.0f}",
        "  Trainer's time / bare loop's (at most 1.10)": f"{ratio:.3f}",
    }
