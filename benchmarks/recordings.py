"""How honest regions are on recordings, with and without a calibration: the table of ``docs/locating.md``::

    python -m benchmarks.recordings [--network FILE] [--seeds 40] [--known 250]

Each recording has clock biases and gains of its own, some transmissions of known position, which calibrate, and 2,000
others, which are located by the universal weights. It takes a second and a half a recording.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from triangulation_pipeline.calibration import SiteCalibration, estimate_calibration
from triangulation_pipeline.formats.simulated import simulated_recording
from triangulation_pipeline.model.locator import Locator
from triangulation_pipeline.model.predict import predict
from triangulation_pipeline.model.universal import universal_model
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork
from triangulation_pipeline.network_file import read_network
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.scenario import PRESETS, Preset

UNKNOWN = 2000
LEVELS = (0.5, 0.95)
UNCALIBRATED = PRESETS[Preset.uncalibrated].model_dump(include={"site_bias_sigma_ns", "gain_offset_sigma_db"})


def measure(
    model: Locator, network: ReceiverNetwork, preset: Preset, known: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of one recording: (2, 3) coverage at both levels and median error, m, without and with a calibration; and (r,)
    the errors of the biases that the calibration finds, in units of what it says of them."""
    scenario = PRESETS[preset]
    recorded = Layout(network, scenario.model_copy(update=UNCALIBRATED))
    recording, truth = simulated_recording(recorded, known + UNKNOWN, 1.0, seed)
    some, rest = recording.take(slice(0, known)), recording.take(slice(known, None))
    found = estimate_calibration(Layout(network, scenario), some.measurements, some.latitude, some.longitude)
    true_m = network.frame.en_m(rest.latitude, rest.longitude, rest.altitude_m)
    rows = []
    for calibration in (SiteCalibration.prior(network), found):
        layout = calibration.conditions(Layout(network, scenario))
        positions = predict(model, layout, calibration.apply(layout, rest.measurements))
        content, error_m = positions.content_at(true_m), np.linalg.norm(positions.en_m - true_m, axis=1)
        rows.append([*((content <= level).mean() for level in LEVELS), np.median(error_m)])
    return np.array(rows), (found.toa_bias_ns - truth.toa_bias_ns) / found.toa_bias_sigma_ns


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each preset, without and with a calibration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=Path, help="a network file; without it the default network")
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--known", type=int, default=250, help="transmissions of known position")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    network = NORTH_WEST_ITALY if given.network is None else read_network(given.network)
    model = universal_model().locator()
    print(f"{network.name}, {given.seeds} recordings: mean (least to most) within the regions, and median error")
    for preset in (Preset.default, Preset.valley):
        found = [measure(model, network, preset, given.known, seed) for seed in range(given.seeds)]
        rows, off = np.array([each[0] for each in found]), np.array([each[1] for each in found])
        for number, name in enumerate(("not calibrated", "calibrated")):
            half, most, error_m = rows[:, number].T
            print(
                f"{preset.value:<8} {name:<15}"
                + "".join(
                    f"{level:>5.0%}: {100 * share.mean():.1f} ({100 * share.min():.1f} to {100 * share.max():.1f}) %"
                    for level, share in zip(LEVELS, (half, most), strict=True)
                )
                + f"  {error_m.mean():.0f} m"
            )
        print(
            f"{preset.value:<8} biases within two standard errors: {100 * (np.abs(off) < 2).mean():.1f} %, "
            f"rms {np.sqrt((off**2).mean()):.2f}, the worst {np.abs(off).max():.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
