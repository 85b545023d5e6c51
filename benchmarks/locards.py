"""Real aircraft: the figures of ``docs/locating.md`` on the recordings of LocaRDS, which stay where they are::

    python -m benchmarks.locards FOLDER

The folder has ``set_1.csv`` to ``set_4.csv``, and ``sensors.csv``. Five folds by aircraft: each is located with a
calibration by the other aircraft. Beside the universal weights stands soft-L1 least squares on the same rows, with the
same calibration, from every place that the weights think possible. It takes half a minute.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import t as student_t

import triangulation_pipeline as tp
from triangulation_pipeline.formats.columns import parse_mapping
from triangulation_pipeline.frame import LocalFrame
from triangulation_pipeline.model.predict import predict
from triangulation_pipeline.model.universal import universal_model
from triangulation_pipeline.physics.constants import GOOD_GDOP, SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.geometry import dilution
from triangulation_pipeline.positions.mixtures import MixturePositions

MAPPING = parse_mapping(
    {
        "receptions": "measurements",
        "receiver": "measurements.0",
        "toa_ns": {"column": "measurements.1", "unit": "ns"},
        "toa_sigma_ns": {"constant": 60},
        "altitude_m": "geoAltitude",
        "silence": "unknown",
    }
)
"""The mapping file of the page. Levels are in units of the device, and are left out."""
FOLDS, LEVELS = 5, (0.5, 0.683, 0.9, 0.95)
SOFT_L1_SCALE_M, LEAST_WEIGHT = 30.0, 1e-3
# The course of an aircraft follows from another place of it so near in time, if it is as fast as an airliner.
COURSE_S, SPEEDS_M_PER_S = (1.0, 200.0), (80.0, 350.0)

Float = NDArray[np.float64]


def network_of(sensors: pd.DataFrame) -> tp.ReceiverNetwork:
    """The sensors that are marked as good."""
    good = sensors[sensors["good"]]
    places = zip(good["serial"], good["latitude"], good["longitude"], good["height"], strict=True)
    sites = (tp.Site(name=str(name), lat=lat, lon=lon, altitude_m=height) for name, lat, lon, height in places)
    return tp.ReceiverNetwork(name="LocaRDS", sites=tuple(sites))


def soft_l1_en_m(layout: tp.Layout, rows: tp.Measurements, starts: MixturePositions) -> Float:
    """(n, 2) where soft-L1 least squares of calibrated rows ends, of all starts the one with the least cost."""
    found = np.zeros((len(rows), 2))
    for row in range(len(rows)):
        timed = rows.toa_present[row]
        geometry = tp.Geometry(layout.network, float(rows.tx_altitude_m[row]))
        range_m = SPEED_OF_LIGHT_M_PER_NS * rows.toa_ns[row, timed]

        def off(
            place: Float, geometry: tp.Geometry = geometry, timed: NDArray = timed, range_m: Float = range_m
        ) -> Float:
            return (range_m - geometry.ranges_m(place[:2])[0][timed] - place[2]) / SOFT_L1_SCALE_M

        least = np.inf
        for start in starts.component_en_m[row, starts.log_weight[row] > np.log(LEAST_WEIGHT)]:
            emission_m = np.median(off(np.append(start, 0.0))) * SOFT_L1_SCALE_M
            tried = least_squares(off, np.append(start, emission_m), loss="soft_l1", x_scale=1e3, max_nfev=60)
            if tried.cost < least:
                least, found[row] = tried.cost, tried.x[:2]
    return found


def speeds_m_per_s(table: pd.DataFrame, en_m: Float) -> Float:
    """(n, 2) speed of each aircraft by its own next message or the one before, east and north; NaN if it is unknown."""
    order = np.lexsort((table["timeAtServer"], table["aircraft"]))
    place_m, time_s = en_m[order], table["timeAtServer"].to_numpy()[order]
    apart_s, same = np.diff(time_s), np.diff(table["aircraft"].to_numpy()[order]) == 0
    step = np.diff(place_m, axis=0) / np.where(apart_s > 0, apart_s, np.nan)[:, None]
    usable = same & (apart_s > COURSE_S[0]) & (apart_s < COURSE_S[1])
    step[~usable] = np.nan
    none = np.full((1, 2), np.nan)
    after, before = np.concatenate([step, none]), np.concatenate([none, step])
    found = np.empty_like(en_m)
    found[order] = np.where(np.isnan(after), before, after)
    speed = np.linalg.norm(found, axis=1)
    found[~((speed > SPEEDS_M_PER_S[0]) & (speed < SPEEDS_M_PER_S[1]))] = np.nan
    return found


def share_below(found: MixturePositions, place_m: Float, direction: Float) -> Float:
    """(n,) probability that the coordinate along a unit vector (n, 2) is less than that of a place (n, 2)."""
    off_m = np.einsum("nki,ni->nk", place_m[:, None] - found.component_en_m, direction)
    scale_m = np.sqrt(np.einsum("ni,nkij,nj->nk", direction, found.scale_m2, direction))
    below = student_t.cdf(off_m / scale_m, np.minimum(found.freedom, 1e9))
    return np.asarray((np.exp(found.log_weight) * below).sum(1))


def error_m(en_m: Float, frame: LocalFrame, table: pd.DataFrame) -> Float:
    """(n,) from the reported places to positions."""
    altitude_m = table["geoAltitude"].to_numpy(np.float64)
    return tp.Positions.of_points(en_m).error_m(frame, altitude_m, table["latitude"], table["longitude"])


def show(name: str, error: Float) -> None:
    """Prints the statistics of errors."""
    print(
        f"{name:<24} median {np.median(error):5.1f}  p95 {np.percentile(error, 95):6.1f}  "
        f"RMSE {np.sqrt(np.mean(error**2)):6.1f} m, {(error > 1000).sum()} beyond 1 km"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints errors and coverage of the rows with a GDOP below 5, and the errors along and across the course."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--refractivity-ppm", type=float, default=315.0)
    given = parser.parse_args(arguments)
    folder = given.folder
    scenario = tp.Scenario(refractivity_ppm=given.refractivity_ppm)
    torch.set_num_threads(1)
    layout = tp.Layout(network_of(pd.read_csv(folder / "sensors.csv")), scenario)
    frame, model = layout.network.frame, universal_model().locator()
    table = pd.concat([pd.read_csv(file) for file in sorted(folder.glob("set_[1-4].csv"))], ignore_index=True)
    recording = tp.recording_of_frame(table, layout, MAPPING)
    true_m = frame.en_m(table["latitude"], table["longitude"], table["geoAltitude"])
    speed = speeds_m_per_s(table, true_m)
    fold = table["aircraft"].to_numpy() % FOLDS
    parts, order, places = [], [], []
    for number in range(FOLDS):
        known, asked = recording.take(fold != number), np.flatnonzero(fold == number)
        calibration = tp.estimate_calibration(layout, known.measurements, known.latitude, known.longitude)
        conditions = calibration.conditions(layout)
        rows = calibration.apply(conditions, recording.take(asked).measurements)
        parts.append(predict(model, conditions, rows))
        places.append(soft_l1_en_m(conditions, rows, parts[-1]))
        order.append(asked)
    back = np.argsort(np.concatenate(order))
    found, peer_m = MixturePositions.concatenate(parts).take(back), np.concatenate(places)[back]
    _, gradient = tp.Geometry(layout.network, recording.measurements.tx_altitude_m).ranges_m(true_m)
    good = dilution(gradient, recording.measurements.toa_present)[1] < GOOD_GDOP
    print(
        f"{good.sum():,} of {len(table):,} messages of {table['aircraft'].nunique()} aircraft with GDOP < {GOOD_GDOP:g}"
    )
    mode_m = found.mode_en_m()
    show("universal, densest place", error_m(mode_m, frame, table)[good])
    show("soft-L1 least squares", error_m(peer_m, frame, table)[good])
    content = found.content_at(true_m)[good]
    print("regions hold " + ", ".join(f"{level:g}: {(content <= level).mean():.3f}" for level in LEVELS))

    flies = good & np.isfinite(speed).all(1)
    off_m, pace = (mode_m - true_m)[flies], np.linalg.norm(speed[flies], axis=1)
    course = speed[flies] / pace[:, None]
    side = np.stack([course[:, 1], -course[:, 0]], axis=1)
    along_m, across_m = (np.einsum("ni,ni->n", off_m, direction) for direction in (course, side))
    late_s = np.percentile(along_m / pace, (5, 50, 75, 90))
    inside = np.abs(2 * share_below(found.take(flies), true_m[flies], side) - 1)
    print(
        f"{flies.sum()} of known course: rms {np.sqrt(np.mean(along_m**2)):.0f} m along it ({np.median(along_m):.0f} m "
        f"ahead in the median), {np.sqrt(np.mean(across_m**2)):.0f} m across ({np.median(np.abs(across_m)):.0f} m)"
    )
    print("the reported place is late by, s: " + ", ".join(f"{value:.2f}" for value in late_s) + " (5, 50, 75, 90 %)")
    print("intervals across hold " + ", ".join(f"{level:g}: {(inside <= level).mean():.3f}" for level in LEVELS))


if __name__ == "__main__":
    main()
