"""The peak of a whole run, against what ``defs/memory.py`` expects of it."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from triangulation_pipeline.defs.memory import needed_bytes

ROOT = Path(__file__).parent.parent
CLI = [sys.executable, "-m", "triangulation_pipeline.cli"]
# The smaller of each pair gives what the programs themselves take.
SITES, SAMPLES = (7, 30), (20_000, 60_000)


def measure() -> dict[str, str]:
    """Name and value of each number, ready to print."""
    found = {}
    for sites in SITES:
        low, high = (_peak_bytes(samples, sites) for samples in SAMPLES)
        needed = needed_bytes(SAMPLES[1], sites) - needed_bytes(SAMPLES[0], sites)
        each = (high - low) / (SAMPLES[1] - SAMPLES[0])
        found[f"memory, peak of a run, {sites} sites, kB a sample"] = f"{each / 1e3:.1f}"
        found[f"  share of what is expected of {sites} sites"] = f"{(high - low) / needed:.0%}"
    return found


def _peak_bytes(samples: int, sites: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "dagster.yaml", folder)
        env = {**os.environ, "DAGSTER_HOME": folder}
        network = subprocess.run([*CLI, "network", "--random-sites", str(sites)], check=True, capture_output=True)
        (Path(folder) / "sites.yaml").write_bytes(network.stdout)
        (Path(folder) / "run.yaml").write_text(
            "ops:\n  receiver_network: {config: {network_file: sites.yaml}}\n"
            f"  synthetic_dataset: {{config: {{num_samples: {samples}}}}}\n"
            "  trained_model: {config: {epochs: 1, warmup_epochs: 0}}\n"
        )
        command = [*CLI, "run", "--config", f"{folder}/run.yaml"]
        with subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.DEVNULL) as run:
            _, status, usage = os.wait4(run.pid, 0)
            run.returncode = os.waitstatus_to_exitcode(status)
        assert run.returncode == 0, f"a run of {samples} samples and {sites} sites failed"
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
