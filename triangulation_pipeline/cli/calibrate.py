"""``triangulation calibrate``."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from triangulation_pipeline.calibration import SiteCalibration, estimate_calibration
from triangulation_pipeline.calibration_file import calibration_document, write_calibration
from triangulation_pipeline.cli.measured import (
    check_file,
    checked_outputs,
    mapping_of,
    measurement_options,
    watched_refusals,
)
from triangulation_pipeline.cli.options import json_option, overrides_of
from triangulation_pipeline.cli.tables import Columns, Row, say, show_json, show_rows
from triangulation_pipeline.documents import file_name
from triangulation_pipeline.formats.measurement_file import read_measurements
from triangulation_pipeline.formats.recording import Recording
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.network_file import read_network
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.scenario import Preset, scenario_of

if TYPE_CHECKING:
    from sqlalchemy import Engine

MOST_TRANSMISSIONS, MOST_PAIRS = 50_000, 2_000_000
"""A calibration rests on the last transmissions of a file: so many at most, and so many pairs of a transmission and a
site, which take less than a gigabyte."""

_DRIFT_SIGMAS = 5.0
_MANY_OUTLIERS = 0.05


@click.command()
@measurement_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the calibration as YAML, or as JSON if the name ends in .json. `triangulation locate` reads it.",
)
@click.option(
    "--store",
    is_flag=True,
    help="Keep the calibration in the project's database: `triangulation locate --calibration stored` takes it.",
)
@json_option
def calibrate(
    file: str,
    network: Path,
    mapping: Path | None,
    file_format: str | None,
    preset: str | None,
    settings: tuple[str, ...],
    refused: Path | None,
    out: Path | None,
    store: bool,
    as_json: bool,
) -> None:
    """Find clock biases and gains of the sites.

    FILE is a measurement file, or - for standard input. From its transmissions of known position (latitude, longitude)
    the clock bias, the noise of the clock, the drift, the share of outliers and the gain of each site are estimated,
    each with its standard error. Transmit powers are not known, so gains are relative to each other.
    """
    check_file(file)
    layout = Layout(read_network(network), scenario_of(Preset(preset or Preset.default), overrides_of(settings)))
    columns = mapping_of(mapping)
    places = checked_outputs((file, network, mapping), out=out, refused=refused)
    engine = _database() if store else None

    most = min(MOST_TRANSMISSIONS, MOST_PAIRS // len(layout.network.sites))
    known: list[Recording] = []
    held = 0
    with watched_refusals(places.get("refused")) as refusals:
        for recording in refusals.watch(read_measurements(file, layout, columns, file_format)):
            if not recording.is_known.any():
                continue
            # Refused rows must not pile up: they are counted already.
            known.append(replace(recording.take(recording.is_known), refused=recording.refused.iloc[:0].copy()))
            held += len(known[-1])
            while held - len(known[0]) >= most:
                held -= len(known.pop(0))
    if not held:
        refusals.show()
        raise ValueError(
            "a calibration needs transmissions of known position, this file has none (latitude, longitude)"
        )
    used = Recording.concatenate(known)
    used = used.take(slice(max(0, len(used) - most), None))
    found = estimate_calibration(layout, used.measurements, used.latitude, used.longitude)
    if "out" in places:
        write_calibration(found, layout.network, places["out"])
    calibration_id = None if engine is None else _store(engine, found, layout.network)
    document = calibration_document(found, layout.network) | {"transmissions": len(used)}
    written = [file_name(place) for place in places.values()]
    if as_json:
        show_json(document | {"refused": refusals.document(), "calibration_id": calibration_id, "written": written})
        return
    _show(document)
    refusals.show()
    for name in written:
        say(f"written: {name}")
    if calibration_id is not None:
        say(f"stored: {calibration_id}")


def _database() -> "Engine":
    from triangulation_pipeline.cli.home import open_engine_from_here

    return open_engine_from_here("--store keeps the calibration in the project's database; --out keeps it in a file")


def _store(engine: "Engine", calibration: SiteCalibration, network: ReceiverNetwork) -> str:
    from triangulation_pipeline.storage.calibrations import store_calibration

    try:
        return store_calibration(engine, calibration, network)
    finally:
        engine.dispose()


def _show(document: dict[str, Any]) -> None:
    say(
        f"{document['transmissions']:,} transmissions of known position, {_moment(document['from_ns'])} to "
        f"{_moment(document['to_ns'])}"
    )

    def pair(name: str, sigma: str, scale: float = 1.0) -> Any:
        return lambda row: None if row[name] is None else _with_error(scale * row[name], scale * row[sigma])

    columns: Columns = {
        "site": lambda row: row["name"],
        "rows": lambda row: f"{row['rows']:,}",
        "bias ns": pair("toa_bias_ns", "toa_bias_sigma_ns"),
        "noise": pair("toa_sigma_factor", "toa_sigma_factor_sigma"),
        "drift ps/s": pair("drift_ns_per_s", "drift_sigma_ns_per_s", 1e3),
        "outliers %": pair("outlier_share", "outlier_share_sigma", 100.0),
        "gain dB": pair("gain_offset_db", "gain_offset_sigma_db"),
    }
    sites = document["sites"]
    show_rows(sites, False, columns, note=_note)
    if silent := [site["name"] for site in sites if not site["rows"]]:
        say(f"heard none of them, so nothing is known: {', '.join(silent)}")
    for number in sorted({site["group"] for site in sites} - {0}):
        island = ", ".join(site["name"] for site in sites if site["group"] == number)
        say(f"no transmission joins these to the others, so their biases have a sum of their own, 0: {island}")
    say("noise: standard deviation of arrival times, in units of what the receiver says of it")


def _note(row: Row) -> str | None:
    """What is wrong with a receiver, in a sentence."""
    if not row["rows"]:
        return None
    if row["toa_bias_ns"] is None:
        return "no arrival time of it can be compared with those of the others; its clock counts as not calibrated."
    if row["drift_ns_per_s"] is not None and abs(row["drift_ns_per_s"]) > _DRIFT_SIGMAS * row["drift_sigma_ns_per_s"]:
        return "its clock drifts; a bias serves only near the time of this calibration."
    if row["outlier_share"] > _MANY_OUTLIERS + 3 * row["outlier_share_sigma"]:
        return "many of its arrival times are far off."
    return None


def _with_error(value: float, sigma: float) -> str:
    """A number and its standard error, which has two digits."""
    decimals = int(np.clip(1 - np.floor(np.log10(sigma)), 0, 4)) if sigma > 0 else 1
    return f"{value:.{decimals}f} ± {sigma:.{decimals}f}"


def _moment(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")
