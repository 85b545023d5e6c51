"""Recordings of simulated samples, and the file in which they are written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from triangulation_pipeline.formats.measurement_file import read_measurements
from triangulation_pipeline.formats.recording import Recording, recording_of, write_measurements
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.samples import Samples
from triangulation_pipeline_tests.formats.conftest import LAYOUT, TIME_NS, Read
from triangulation_pipeline_tests.formats.test_measurement_file import LONG, same

VALLEY = Layout(NORTH_WEST_ITALY, PRESETS[Preset.valley].model_copy(update={"tx_altitude_m": 900.0}))


@pytest.fixture(scope="module")
def samples() -> Samples:
    return simulate(DatasetSpec(NORTH_WEST_ITALY, VALLEY.scenario, 500, seed=2))


@pytest.mark.parametrize("name", ["m.csv", "m.csv.gz"])
def test_what_is_written_is_read_back_to_the_bit(name: str, samples: Samples, tmp_path: Path) -> None:
    written = recording_of(samples, NORTH_WEST_ITALY, withhold=0.6)
    write_measurements(written, tmp_path / name)
    found = Recording.concatenate(list(read_measurements(tmp_path / name, VALLEY)))
    assert not len(found.refused)
    assert same(found, written)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_recordings_of_samples(samples: Samples) -> None:
    found = recording_of(samples, NORTH_WEST_ITALY, withhold=0.6)
    assert 0.3 < found.is_known.mean() < 0.5
    known = found.is_known
    np.testing.assert_array_equal(found.latitude[known], samples.tx_lat[known])
    assert found.transmission_id[3] == samples.sample_id[3].tobytes().hex()
    assert recording_of(samples, NORTH_WEST_ITALY).is_known.all()
    assert not recording_of(samples, NORTH_WEST_ITALY, withhold=1).is_known.any()
    # Which ones are known does not depend on the rest.
    np.testing.assert_array_equal(
        recording_of(samples.take(slice(100, 200)), NORTH_WEST_ITALY, withhold=0.6).is_known, known[100:200]
    )
    with pytest.raises(ValueError, match="withhold must be 0 to 1, got 2"):
        recording_of(samples, NORTH_WEST_ITALY, withhold=2)
    with pytest.raises(ValueError, match="the network has 4 sites, the samples are of 7"):
        recording_of(samples, LAYOUT.network)


def test_a_name_with_a_quote_is_written_in_quotes(samples: Samples, tmp_path: Path) -> None:
    written = recording_of(samples.take(slice(0, 2)), NORTH_WEST_ITALY)
    ids = np.array(['say "2"', "3"], object)
    write_measurements(replace(written, transmission_id=ids), tmp_path / "m.csv")
    (found,) = read_measurements(tmp_path / "m.csv", VALLEY)
    assert found.transmission_id.tolist() == ids.tolist()
    with pytest.raises(ValueError, match="a transmission_id with a line break cannot be written as CSV"):
        write_measurements(replace(written, transmission_id=np.array(["1\n", "2"], object)), tmp_path / "other.csv")
    assert not (tmp_path / "other.csv").exists()


def test_a_recording_with_gaps_and_odd_names_round_trips(read: Read, tmp_path: Path) -> None:
    text = LONG.replace("t1,", '"t, 1",')
    first = read(text)
    assert first.transmission_id.tolist() == ["t, 1", "t2"]
    write_measurements(first, tmp_path / "again.csv")
    assert same(Recording.concatenate(list(read_measurements(tmp_path / "again.csv", LAYOUT))), first)
    # Absolute arrival times are written from the time of their transmission.
    lines = (tmp_path / "again.csv").read_text().splitlines()
    assert lines[1].startswith(f'"t, 1",{TIME_NS},"A",1000.25,50,-90.5,20,145000000,12.5,45.1,7.5,300')


def test_rows_are_taken(samples: Samples) -> None:
    whole = recording_of(samples, NORTH_WEST_ITALY, withhold=0.6)
    unknown = whole.take(~whole.is_known)
    assert len(unknown) == (~whole.is_known).sum()
    assert not unknown.is_known.any()
    assert same(Recording.concatenate([whole.take(slice(0, 70)), whole.take(slice(70, None))]), whole)


def test_a_place_that_cannot_be_written_is_one_sentence(samples: Samples, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"m\.csv cannot be written: No such file or directory"):
        write_measurements(recording_of(samples, NORTH_WEST_ITALY), tmp_path / "none" / "m.csv")


def test_rows_without_arrival_times_have_levels_alone(tmp_path: Path) -> None:
    layout = Layout(NORTH_WEST_ITALY, PRESETS[Preset.rss])
    written = recording_of(simulate(DatasetSpec(NORTH_WEST_ITALY, layout.scenario, 50, seed=3)), NORTH_WEST_ITALY)
    write_measurements(written, tmp_path / "m.csv")
    assert same(Recording.concatenate(list(read_measurements(tmp_path / "m.csv", layout))), written)
    assert Scenario().transmitter_altitude_m == layout.scenario.transmitter_altitude_m
