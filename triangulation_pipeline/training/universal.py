"""Makes the weights that come with the package, and their data sheet::

    python -m triangulation_pipeline.training.universal [FOLDER]

It simulates a dataset over random networks and trains on it, in some minutes of one core. The same code gives the same
weights on one machine. Without FOLDER it replaces the files in the package; whoever does that raises TRAINING_VERSION.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from triangulation_pipeline.model.checkpoint import Checkpoint, write_checkpoint
from triangulation_pipeline.model.spec import LOCATOR_VERSION, RANDOM
from triangulation_pipeline.model.universal import DATA_SHEET_FILE, FOLDER, WEIGHTS_FILE
from triangulation_pipeline.physics.dataset_spec import GENERATOR_VERSION, ROWS_PER_LAYOUT, DatasetSpec
from triangulation_pipeline.physics.layout import DRAWN_PARAMETERS, Layouts
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.samples import Split, samples_digest
from triangulation_pipeline.training.config import TRAINING_VERSION, Accelerator, TrainingConfig
from triangulation_pipeline.training.rows import PreparedRows
from triangulation_pipeline.training.trainer import train
from triangulation_pipeline.training.validation import validate

DATASET = DatasetSpec(None, Scenario(), num_samples=240_000, seed=0, layouts=Layouts.random)
CONFIG = TrainingConfig(
    job_name="universal", parent_model_id=RANDOM, batch_size=512, epochs=8, accelerator=Accelerator.cpu
)
# Networks that the training never saw: 40 for the data sheet, the first two of them for a quick test.
HELD_OUT = DatasetSpec(None, Scenario(), num_samples=40 * ROWS_PER_LAYOUT, seed=1, layouts=Layouts.random)
QUICK = DatasetSpec(None, Scenario(), num_samples=2 * ROWS_PER_LAYOUT, seed=1, layouts=Layouts.random)


def main(folder: Path) -> None:
    """Writes weights and data sheet into the folder."""
    samples = simulate(DATASET)
    split = samples.split
    model = train(DATASET, CONFIG, samples.take(split == Split.train), samples.take(split == Split.val))
    content = write_checkpoint(model)
    sheet = {
        "made_by": "python -m triangulation_pipeline.training.universal",
        "sha256": hashlib.sha256(content).hexdigest(),
        "weights_digest": model.weights_digest,
        "parameters": sum(tensor.numel() for tensor in model.weights.values()),
        "versions": {"generator": GENERATOR_VERSION, "locator": LOCATOR_VERSION, "training": TRAINING_VERSION},
        "dataset": {
            "dataset_id": DATASET.dataset_id,
            "sha256": samples_digest([samples]),
            "num_samples": DATASET.num_samples,
            "seed": DATASET.seed,
            "layouts": -(-DATASET.num_samples // ROWS_PER_LAYOUT),
            "ranges": ranges(DATASET),
        },
        "settings": model.config,
        "figures": {"validation": model.metrics, "held_out": figures(model, HELD_OUT), "quick": figures(model, QUICK)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).write_bytes(content)
    (folder / DATA_SHEET_FILE).write_text(json.dumps(sheet, indent=2) + "\n")


def ranges(dataset: DatasetSpec) -> dict[str, dict[str, float]]:
    """Least and greatest value, over the layouts of a dataset, of what is drawn for each."""
    numbers = np.unique(dataset.layout_number(np.arange(dataset.num_samples)))
    layouts = [dataset.layout(int(number)) for number in numbers]
    values: dict[str, list[float]] = {"sites": [len(layout.network.sites) for layout in layouts]}
    values |= {name: [getattr(layout.scenario, name) for layout in layouts] for name in DRAWN_PARAMETERS}
    return {name: {"least": min(drawn), "greatest": max(drawn)} for name, drawn in values.items()}


def figures(model: Checkpoint, dataset: DatasetSpec) -> dict[str, Any]:
    """The validation metrics of a model on all rows of a dataset."""
    locator = model.locator()
    rows = PreparedRows.of(locator, dataset, simulate(dataset), torch.device("cpu"))
    return {
        "num_samples": dataset.num_samples,
        "seed": dataset.seed,
        **validate(locator, rows, model.config["max_gdop"]),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(str(FOLDER)))
