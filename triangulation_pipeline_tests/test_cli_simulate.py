"""``triangulation simulate``."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from triangulation_pipeline.calibration_file import read_calibration
from triangulation_pipeline.formats.measurement_file import read_measurements
from triangulation_pipeline.formats.recording import Recording
from triangulation_pipeline.formats.simulated import simulated_recording
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline_tests.test_cli_locate import ITALY, triangulation


def test_a_recording_is_written_and_read_as_any_other(tmp_path: Path) -> None:
    out, truth = tmp_path / "m.csv.gz", tmp_path / "truth.yaml"
    done = triangulation("simulate", ITALY, "--out", out, "--truth", truth, "--transmissions", "300", "--seed", "2")
    assert done.exit_code == 0, done.output
    # The receivers are those of the preset uncalibrated.
    layout = Layout(NORTH_WEST_ITALY, PRESETS[Preset.uncalibrated])
    told, drawn = simulated_recording(layout, 300, 0.1, seed=2)
    found = Recording.concatenate(list(read_measurements(out, layout)))
    assert not len(found.refused)
    assert f"simulated: 300 transmissions, {found.is_known.sum()} of known position; " in done.stdout
    np.testing.assert_array_equal(found.measurements.toa_ns, told.measurements.toa_ns)
    np.testing.assert_array_equal(found.latitude, told.latitude)
    np.testing.assert_allclose(read_calibration(truth, NORTH_WEST_ITALY).toa_bias_ns, drawn.toa_bias_ns, atol=1e-3)
    assert np.abs(drawn.toa_bias_ns).max() > 50
    assert b"latitude" in gzip.decompress(out.read_bytes())


def test_how_far_clocks_are_off_can_be_said(tmp_path: Path) -> None:
    truth = tmp_path / "truth.yaml"
    options = ("--truth", truth, "--transmissions", "5", "--set", "site_bias_sigma_ns=5000", "--preset", "valley")
    assert triangulation("simulate", ITALY, "--out", tmp_path / "m.csv", *options).exit_code == 0
    assert np.abs(read_calibration(truth, NORTH_WEST_ITALY).toa_bias_ns).max() > 1000


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--out", "m.parquet"], "--out: the name must end in .csv or .csv.gz, got "),
        (["--out", "/none/m.csv"], "/none/m.csv cannot be written: its folder does not exist"),
        (["--out", "m.csv", "--truth", "/none/t.yaml"], "/none/t.yaml cannot be written: its folder does not exist"),
        (["--out", "m.csv", "--set", "clock_sigma_ns=0"], "scenario: clock_sigma_ns: "),
        (["--out", "m.csv", "--set", "min_detections=8"], "min_detections"),
        (["--out", "m.csv", "--known", "10"], "10.0 is not in the range 0<=x<=1"),
        ([], "Missing option '--out'"),
    ],
)
def test_mistakes_are_found_before_any_work(
    options: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = triangulation("simulate", ITALY, *options)
    assert done.exit_code in {1, 2}
    assert sentence in done.output
    assert list(tmp_path.iterdir()) == []
