"""How long one fix takes, how long many take to be located and written, and the memory of it: the numbers of
``docs/locating.md`` and ``docs/fixes.md``::

    python -m benchmarks.locate [--rows 1000000]

Many fixes go from a CSV file to a CSV file through ``triangulation locate``, beside the classical solver on the same
rows, which takes arrays and gives points alone.
"""

import argparse
import gc
import io
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.generation import seconds
from benchmarks.memory import CLI
from triangulation_pipeline.calibration import SiteCalibration
from triangulation_pipeline.formats.fixes import rows_of, write_csv
from triangulation_pipeline.formats.geojson import write_geojson
from triangulation_pipeline.formats.kml import write_kml
from triangulation_pipeline.formats.measurement_file import read_measurements
from triangulation_pipeline.formats.recording import Recording, recording_of, write_measurements
from triangulation_pipeline.model.predict import locate, locate_recordings
from triangulation_pipeline.model.universal import universal_model
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.physics.solvers.gauss_newton import Loss, gauss_newton

SINGLE_FIXES = 2000
WRITTEN_FIXES = 500
ROWS = 60_000
SOLVED_ROWS = 4096
LAYOUT = Layout(NORTH_WEST_ITALY, PRESETS[Preset.default])


def measure(rows: int = ROWS) -> dict[str, str]:
    """Name and value of each number, ready to print."""
    with tempfile.TemporaryDirectory() as folder:
        found = _latency(Path(folder)) | _formats() | _throughput(Path(folder), rows)
    gc.unfreeze()
    torch.backends.mkldnn.set_flags(_enabled=True)
    return found


def _write(path: Path, rows: int) -> None:
    """A recording without true places."""
    samples = simulate(DatasetSpec(LAYOUT.network, LAYOUT.scenario, rows, seed=1))
    write_measurements(recording_of(samples, LAYOUT.network, withhold=1.0), path)


def _latency(folder: Path) -> dict[str, str]:
    """Of one transmission after the other, with the model loaded."""
    path, calibration, checkpoint = folder / "single.csv", SiteCalibration.prior(LAYOUT.network), universal_model()
    _write(path, SINGLE_FIXES)
    table = pd.read_csv(path, dtype={"transmission_id": str})
    frames = [frame for _, frame in table.groupby("transmission_id", sort=False)]
    recording = Recording.concatenate(list(read_measurements(path, LAYOUT)))
    blocks = [recording.take(slice(i, i + 1)) for i in range(SINGLE_FIXES)]
    arrays = [block.measurements for block in blocks]
    each: dict[str, Callable[[int], object]] = {
        "arrays to posterior (locate)": lambda i: locate(checkpoint, arrays[i], LAYOUT, calibration),
        "block to line of JSON (--follow)": lambda i: [
            list(rows_of(fixes)) for fixes in locate_recordings(checkpoint, [blocks[i]], LAYOUT, calibration)
        ],
        "DataFrame to DataFrame": lambda i: checkpoint.locate(frames[i], LAYOUT.network, calibration),
    }
    found = {}
    gc.freeze()  # this and the two settings of PyTorch are those of the command
    torch.backends.mkldnn.set_flags(_enabled=False)
    for name, work in each.items():
        times_ms = []
        for i in range(SINGLE_FIXES):
            started = time.perf_counter()
            work(i)
            times_ms.append(1e3 * (time.perf_counter() - started))
        # The first builds the model and the tables of the layout.
        p50, p99 = np.percentile(times_ms[1:], [50, 99])
        found[f"one fix, {name}, p50 / p99 ms"] = f"{p50:.1f} / {p99:.1f}"
    return found


def _formats() -> dict[str, str]:
    """Of the files of fixes; all but CSV have regions, whose drawing takes most of their time."""
    samples = simulate(DatasetSpec(LAYOUT.network, LAYOUT.scenario, WRITTEN_FIXES, seed=1))
    recording, calibration = recording_of(samples, LAYOUT.network), SiteCalibration.prior(LAYOUT.network)
    fixes = list(locate_recordings(universal_model(), [recording], LAYOUT, calibration))
    found = {}
    for name, write in (("CSV", write_csv), ("GeoJSON", write_geojson), ("KML", write_kml)):
        each_s = seconds(partial(write, io.BytesIO(), LAYOUT.network, fixes)) / WRITTEN_FIXES
        found[f"one of {WRITTEN_FIXES:,} fixes, written as {name}, ms"] = f"{1e3 * each_s:.3g}"
    return found


def _throughput(folder: Path, rows: int) -> dict[str, str]:
    """From file to file, by the command, as if it had not had to start; beside the solver."""
    samples = simulate(DatasetSpec(LAYOUT.network, LAYOUT.scenario, SOLVED_ROWS, seed=2))
    geometry = Geometry(LAYOUT.network, samples.tx_altitude_m)
    solved = SOLVED_ROWS / seconds(lambda: gauss_newton(geometry, samples, Loss.huber))
    (folder / "network.json").write_text(LAYOUT.network.model_dump_json())
    (few_s, few_bytes), (many_s, many_bytes) = (_command(folder, number) for number in (rows // 4, rows))
    located = (rows - rows // 4) / (many_s - few_s)
    return {
        f"{rows:,} fixes, CSV to CSV, s": f"{many_s:.1f}",
        "  fixes a second, without the start": f"{located:,.0f}",
        "  share of the Huber solver's, one core": f"{located / solved:.1f}",
        f"  peak memory of {rows // 4:,} / {rows:,}, MB": f"{few_bytes / 1e6:.0f} / {many_bytes / 1e6:.0f}",
    }


def _command(folder: Path, rows: int) -> tuple[float, int]:
    """Seconds and peak memory, bytes."""
    path = folder / f"{rows}.csv"
    # In a process of its own: the peak memory of a command is at least what the process that starts it holds.
    simulating = multiprocessing.get_context("spawn").Process(target=_write, args=(path, rows))
    simulating.start()
    simulating.join()
    command = [*CLI, "locate", str(path), "--network", f"{folder}/network.json", "--out", f"{folder}/fixes.csv"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as run:
        _, status, usage = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
    assert run.returncode == 0, f"locate failed for {rows} transmissions"
    path.unlink()
    return time.perf_counter() - started, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Prints one line a number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help=f"transmissions of the file (default: {ROWS:,})")
    rows = parser.parse_args().rows
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, PyTorch {torch.__version__}"
    )
    for name, value in measure(rows).items():
        print(f"{name:<62}{value:>14}", flush=True)


if __name__ == "__main__":
    main()
