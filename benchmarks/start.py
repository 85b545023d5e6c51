"""How long commands take from a cold start: the interpreter, all imports, the model, and a small file."""

import subprocess
import sys
import tempfile
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.generation import seconds
from triangulation_pipeline.formats.recording import recording_of, write_measurements
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.physics.simulator import simulate


def _seconds(*arguments: str | Path) -> float:
    program = [sys.executable, "-m", "triangulation_pipeline.cli", *map(str, arguments)]
    return seconds(lambda: subprocess.run(program, check=True, stdout=subprocess.DEVNULL))


def measure() -> dict[str, str]:
    """Name and value of each number, ready to print."""
    with tempfile.TemporaryDirectory() as name:
        network, measurements = Path(name) / "network.yaml", Path(name) / "measurements.csv"
        with network.open("wb") as file:
            YAML(pure=True).dump(NORTH_WEST_ITALY.model_dump(mode="json", exclude_none=True), file)
        samples = simulate(DatasetSpec(NORTH_WEST_ITALY, Scenario(), 100, seed=0))
        write_measurements(recording_of(samples, NORTH_WEST_ITALY), measurements)
        commands: dict[str, tuple[str | Path, ...]] = {
            "plan of 7 sites": ("plan", network),
            "calibrate, 100 transmissions": ("calibrate", measurements, "--network", network),
            "locate, 100 transmissions": ("locate", measurements, "--network", network),
        }
        return {f"cold start: {title}, s": f"{_seconds(*command):.1f}" for title, command in commands.items()}
