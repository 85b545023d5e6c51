"""Rows that the scenario hardly gives are told, and no others; by the places that the model finds."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from triangulation_pipeline.calibration import calibrated
from triangulation_pipeline.formats.fixes import fixes_of
from triangulation_pipeline.model.predict import predict
from triangulation_pipeline.model.universal import universal_model
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.samples import Samples

FIRST = np.arange(7) == 0


def flagged(preset: str, samples: Samples) -> np.ndarray:
    layout = Layout(NORTH_WEST_ITALY, PRESETS[Preset(preset)])
    rows = calibrated(layout, samples)
    found = predict(universal_model().locator(), layout, rows)
    return fixes_of(found, layout, rows, [""] * len(rows)).table["flags"].str.contains("unlike_training").to_numpy()


def simulated(preset: str, rows: int) -> Samples:
    return simulate(DatasetSpec(NORTH_WEST_ITALY, PRESETS[Preset(preset)], rows, seed=3))


def clock(samples: Samples, late_ns: float) -> Samples:
    return replace(samples, toa_ns=samples.toa_ns + np.where(FIRST & samples.toa_present, late_ns, 0.0))


def level(samples: Samples, shift_db: float) -> Samples:
    shifted_db = np.where(FIRST & samples.signal_present, shift_db, 0.0).astype(np.float32)
    return replace(samples, power_dbm=samples.power_dbm + shifted_db)


@pytest.mark.parametrize(
    ("preset", "damage"),
    [
        ("default", lambda rows: clock(rows, 1e4)),
        ("default", lambda rows: clock(rows, -1e4)),
        ("default", lambda rows: level(rows, 40)),
        ("default", lambda rows: level(rows, -40)),
        ("line_of_sight", lambda rows: replace(rows, toa_sigma_ns=rows.toa_sigma_ns / np.float32(5))),
    ],
    ids=["late", "early", "loud", "quiet", "noise"],
)
def test_wrong_rows_are_told(preset: str, damage: Callable[[Samples], Samples]) -> None:
    assert flagged(preset, damage(simulated(preset, 500))).mean() > 0.85


@pytest.mark.parametrize("preset", ["default", "valley", "line_of_sight"])
def test_rows_that_follow_the_scenario_are_not(preset: str) -> None:
    samples = simulated(preset, 2000)
    assert flagged(preset, samples).sum() <= 8  # 2 are expected
    # Where the place itself rests on the levels, they prove nothing.
    untimed = replace(samples, toa_present=np.zeros_like(samples.toa_present)).take(slice(0, 50))
    assert not flagged(preset, level(untimed, 40)).any()
