from dataclasses import replace
from itertools import pairwise

import numpy as np

from triangulation_pipeline.calibration import SiteCalibration
from triangulation_pipeline.formats.recording import Recording, recording_of
from triangulation_pipeline.model.predict import locate, locate_recordings
from triangulation_pipeline.model.universal import universal_model
from triangulation_pipeline.network import NORTH_WEST_ITALY

from .helpers import HOME, samples


def blocks() -> list[Recording]:
    """Of 1,000 transmissions, one of them empty."""
    recording = recording_of(samples(1000), NORTH_WEST_ITALY)
    edges = [0, 1, 400, 400, 650, 1000]
    return [recording.take(slice(*edge)) for edge in pairwise(edges)]


def test_fixes_are_the_same_to_the_bit_with_any_number_of_workers() -> None:
    checkpoint, known = universal_model(), SiteCalibration.prior(NORTH_WEST_ITALY)
    alone, shared = (list(locate_recordings(checkpoint, blocks(), HOME, known, workers)) for workers in (1, 3))
    assert [len(fixes) for fixes in alone] == [1, 399, 250, 350]
    for one, other in zip(alone, shared, strict=True):
        for name, values in one.columns.items():
            np.testing.assert_array_equal(values, other.columns[name], err_msg=name)
        np.testing.assert_array_equal(one.positions.scale_m2, other.positions.scale_m2)
    # Arrays are located as recordings are: with gains as uncertain as the calibration leaves them.
    measurements = blocks()[1].measurements
    arrays, certain = (
        locate(checkpoint, measurements, HOME, one) for one in (known, replace(known, gain_offset_sigma_db=np.zeros(7)))
    )
    np.testing.assert_array_equal(arrays.scale_m2, alone[1].positions.scale_m2)
    assert not np.array_equal(certain.en_m, arrays.en_m)


def test_a_model_is_made_once_and_a_training_gets_its_own() -> None:
    checkpoint = universal_model()
    assert checkpoint.served is checkpoint.served
    own = checkpoint.locator()
    assert own is not checkpoint.served
    assert not own.training
