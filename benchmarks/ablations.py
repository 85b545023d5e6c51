"""What each part of the locator is worth: the table of ``docs/model.md``::

    python -m benchmarks.ablations

Every line is a training of its own, most of them on 42,000 rows of random networks, and is measured by how far its log
density lies below that of the exact posterior on two sets of rows that no training uses. It takes about six minutes.
"""

import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from triangulation_pipeline.calibration import calibrated
from triangulation_pipeline.model.architectures import build_locator
from triangulation_pipeline.model.checkpoint import Checkpoint
from triangulation_pipeline.model.predict import predict
from triangulation_pipeline.model.spec import (
    RANDOM,
    UNIVERSAL,
    ArchitectureConfig,
    LocatorSpec,
    RegressionConfig,
    StartConfig,
    TriangulationConfig,
)
from triangulation_pipeline.model.universal import universal_model
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import ROWS_PER_LAYOUT, DatasetSpec
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.layout import Layout, Layouts
from triangulation_pipeline.physics.posterior import exact_posterior
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.samples import Samples, Split
from triangulation_pipeline.training.config import Accelerator, TrainingConfig
from triangulation_pipeline.training.trainer import Trainer

Float = NDArray[np.float64]

ROWS = 1500
EPOCHS = 4
NETWORKS = DatasetSpec(None, Scenario(), 60_000, 11, Layouts.random)
OWN = DatasetSpec(NORTH_WEST_ITALY, Scenario(), 50_000, 0)
HELD_OUT = DatasetSpec(None, Scenario(), 40 * ROWS_PER_LAYOUT, 12, Layouts.random)
SUPPOSED_DELAYS = {"nlos_probability": 0.15, "nlos_mean_ns": 500.0}


class Unaware(DatasetSpec):
    """A dataset of which the locator is not told how many paths are late, and by how much."""

    def layout(self, number: int) -> Layout:
        """The layout with ``SUPPOSED_DELAYS``."""
        found = super().layout(number)
        return Layout(found.network, found.scenario.model_copy(update=SUPPOSED_DELAYS))


@dataclass(frozen=True)
class Judged:
    """Rows by which trainings are judged, with the exact posterior's log density there."""

    dataset: DatasetSpec
    samples: Samples
    exact: Float

    @classmethod
    def of(cls, dataset: DatasetSpec, samples: Samples) -> "Judged":
        """At most ``ROWS`` of the samples, by their ids."""
        samples = samples.take(np.sort(np.lexsort(samples.sample_id.T)[:ROWS]))
        exact = np.empty(len(samples))
        for layout, rows in dataset.by_layout(samples):
            part = calibrated(layout, samples.take(rows))
            truth_en_m = part.tx_en_m(layout.network.frame)
            geometry = Geometry(layout.network, part.tx_altitude_m)
            exact[rows] = exact_posterior(geometry, part, layout.scenario, truth_en_m).log_density_at
        return cls(dataset, samples, exact)

    def nats_below(self, model: Checkpoint, unaware: bool) -> Float:
        """(n,) the exact posterior's log density less the model's."""
        locator, found = model.locator(), np.empty(len(self.samples))
        for layout, rows in self.dataset.by_layout(self.samples):
            part = calibrated(layout, self.samples.take(rows))
            truth_en_m = part.tx_en_m(layout.network.frame)
            if unaware:
                layout = Layout(layout.network, layout.scenario.model_copy(update=SUPPOSED_DELAYS))
            found[rows] = predict(locator, layout, part).log_density(truth_en_m)
        return self.exact - found


def trained(
    dataset: DatasetSpec, constants: ArchitectureConfig, epochs: int = EPOCHS, parent: Checkpoint | None = None
) -> Checkpoint:
    """The best epoch of a training with these constants."""
    samples = simulate(dataset)
    config = TrainingConfig(
        model_architecture=constants.architecture,
        batch_size=512,
        epochs=epochs,
        accelerator=Accelerator.cpu,
        parent_model_id=RANDOM if parent is None else UNIVERSAL,
        learning_rate=3e-3 if parent is None else 1e-3,
    )
    split = samples.split
    train, val = samples.take(split == Split.train), samples.take(split == Split.val)
    trainer = Trainer(LocatorSpec(config=constants), config, dataset, train, val, parent=parent)
    for _ in trainer.epochs():
        pass
    return trainer.best_checkpoint()


def main() -> None:
    """Prints a line of the table for each training."""
    torch.set_num_threads(1)
    own, held_out = simulate(OWN), simulate(HELD_OUT)
    places = (
        Judged.of(OWN, own.take((own.split == Split.test) & (own.gdop < 5))),
        Judged.of(HELD_OUT, held_out.take((held_out.toa_present.sum(1) >= 4) & (held_out.gdop < 5))),
    )
    whole, universal = TriangulationConfig(), universal_model()
    unaware = Unaware(NETWORKS.network, NETWORKS.scenario, NETWORKS.num_samples, NETWORKS.seed, NETWORKS.layouts)
    variants = {
        "42,000 rows of random networks": lambda: trained(NETWORKS, whole),
        "one hypothesis instead of three": lambda: trained(
            NETWORKS, whole.model_copy(update={"start": StartConfig(hypotheses=1)})
        ),
        "one component per hypothesis instead of two": lambda: trained(
            NETWORKS, whole.model_copy(update={"components": 1})
        ),
        "no component per receiver": lambda: trained(NETWORKS, whole.model_copy(update={"alternatives": False})),
        "one Student's t, one hypothesis": lambda: trained(
            NETWORKS,
            whole.model_copy(update={"components": 1, "alternatives": False, "start": StartConfig(hypotheses=1)}),
        ),
        "not told of the scenario's late arrivals": lambda: trained(unaware, whole),
        "the architecture `regression`": lambda: trained(NETWORKS, RegressionConfig()),
        "35,000 rows of the default network alone, 14 epochs": lambda: trained(OWN, whole, epochs=14),
        "the universal weights, as they come": lambda: universal,
        "the universal weights, 3 more epochs on the default network": lambda: trained(OWN, whole, 3, universal),
    }
    print(f"| nats below the exact posterior on {ROWS:,} rows | default network | random networks | parameters |")
    print("|---|---|---|---|")
    for name, variant in variants.items():
        started = time.perf_counter()
        model = variant()
        cells = []
        for place in places:
            below = place.nats_below(model, unaware=name.startswith("not told"))
            cells.append(f"{np.mean(below):.3f} ± {np.std(below) / np.sqrt(len(below)):.3f}")
        parameters = sum(p.numel() for p in build_locator(model.spec).parameters())
        print(f"| {name} | {' | '.join(cells)} | {parameters:,} |", flush=True)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
