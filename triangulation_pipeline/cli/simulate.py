"""``triangulation simulate``."""

from pathlib import Path

import click

from triangulation_pipeline.calibration_file import write_calibration
from triangulation_pipeline.cli.options import overrides_of, set_option
from triangulation_pipeline.cli.tables import say
from triangulation_pipeline.documents import file_name
from triangulation_pipeline.formats.recording import write_measurements
from triangulation_pipeline.formats.simulated import simulated_recording
from triangulation_pipeline.network_file import read_network
from triangulation_pipeline.outputs import checked_output
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.scenario import PRESETS, Preset, scenario_of

ENDINGS = (".csv", ".csv.gz")
MOST_TRANSMISSIONS = 100_000

# Nobody has calibrated the receivers of a recording. --set can say otherwise.
_UNKNOWN = PRESETS[Preset.uncalibrated].model_dump(include={"site_bias_sigma_ns", "gain_offset_sigma_db"})


@click.command()
@click.argument("network", metavar="NETWORK", type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the measurement file, as CSV: the name ends in .csv, or in .csv.gz if it is to be packed.",
)
@click.option(
    "--preset",
    type=click.Choice([preset.value for preset in Preset]),
    default=Preset.default.value,
    show_default=True,
    help="The conditions, as in a run.",
)
@set_option
@click.option(
    "--transmissions",
    type=click.IntRange(1, MOST_TRANSMISSIONS),
    default=2000,
    show_default=True,
    help="How many transmissions there are.",
)
@click.option(
    "--known",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="The share of transmissions whose place the file tells. With 1 and the same seed it tells the places of all.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the simulation.")
@click.option(
    "--truth",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the clock biases and gains that were drawn, in the form of a calibration.",
)
def simulate(
    network: Path,
    out: Path,
    preset: str,
    settings: tuple[str, ...],
    transmissions: int,
    known: float,
    seed: int,
    truth: Path | None,
) -> None:
    """Simulate a recording of a network.

    NETWORK is a network file. The measurement file that is written is what its receivers could have recorded: it serves
    to try calibrate and locate, and says nothing of a real place. Each receiver has a clock bias and a gain of its own,
    which do not change; the file does not tell them. They are drawn with the standard deviations of the preset
    uncalibrated, unless --set site_bias_sigma_ns and --set gain_offset_sigma_db give others.
    """
    if not out.name.lower().endswith(ENDINGS):
        raise ValueError(f"--out: the name must end in {' or '.join(ENDINGS)}, got {file_name(out)}")
    sites = read_network(network)
    layout = Layout(sites, scenario_of(Preset(preset), _UNKNOWN | overrides_of(settings)))
    place, truth_place = checked_output(out), None if truth is None else checked_output(truth)
    recording, drawn = simulated_recording(layout, transmissions, known, seed)
    write_measurements(recording, place)
    if truth_place is not None:
        write_calibration(drawn, sites, truth_place)
    say(
        f"simulated: {len(recording):,} transmissions, {int(recording.is_known.sum()):,} of known position; "
        f"{int(recording.measurements.signal_present.sum()):,} measurements by {len(sites.sites)} receivers"
    )
    for written in (place, truth_place):
        if written is not None:
            say(f"written: {file_name(written)}")
