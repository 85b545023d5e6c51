from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from triangulation_pipeline.model.inputs import LocatorInputs
from triangulation_pipeline.model.locator import Locator
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS

from .helpers import HALF_TIMED, HOME, MIXED, RSS, VALLEY, fresh, odd_rows, samples, spec_for


@pytest.fixture(scope="module")
def model() -> Locator:
    return fresh(spec_for())


@pytest.fixture(scope="module")
def mixed(model: Locator) -> LocatorInputs:
    return model.prepare(MIXED, samples(300, VALLEY, HALF_TIMED))


def same(one: LocatorInputs, other: LocatorInputs, rows: slice = slice(None), atol: float = 0.0) -> None:
    for field in fields(LocatorInputs):
        torch.testing.assert_close(
            getattr(one, field.name)[rows], getattr(other, field.name)[rows], rtol=1e-4 if atol else 0, atol=atol
        )


def test_rows_hold_the_receivers_that_hear_those_with_arrival_times_first(mixed: LocatorInputs) -> None:
    batch = samples(300, VALLEY, HALF_TIMED)
    np.testing.assert_array_equal(mixed.num_hearing_B.numpy(), batch.num_detections)
    for row in range(50):
        timed, others = batch.toa_present[row], batch.signal_present[row] & ~batch.toa_present[row]
        expected = [*np.flatnonzero(timed), *np.flatnonzero(others)]
        found = mixed.site_m_B3W[row, :, : len(expected)].T.numpy()
        np.testing.assert_allclose(found, HALF_TIMED.site_enu_m[expected], rtol=1e-6)
        assert mixed.timed_BW[row].sum() == timed.sum()
        toa_m = batch.toa_ns[row, timed] * SPEED_OF_LIGHT_M_PER_NS
        middle = np.sort(toa_m)[(len(toa_m) - 1) // 2] if len(toa_m) else 0.0
        np.testing.assert_allclose(mixed.toa_m_BW[row, : timed.sum()].numpy(), toa_m - middle, atol=0.02)


def test_emission_time_leaves_no_trace(model: Locator) -> None:
    batch = samples(100)
    later = replace(batch, toa_ns=np.where(batch.toa_present, batch.toa_ns + 123_456.0, 0.0))
    one, other = (model.prepare(HOME, rows) for rows in (batch, later))
    torch.testing.assert_close(one.toa_m_BW, other.toa_m_BW, rtol=0, atol=0.02)
    torch.testing.assert_close(one.hypothesis_m_BK2[:, 0], other.hypothesis_m_BK2[:, 0], rtol=0, atol=2.0)


def test_frequency_offsets_carry_nothing(model: Locator) -> None:
    batch = samples(60)
    same(model.prepare(HOME, batch), model.prepare(HOME, replace(batch, frequency_offset_hz=batch.power_dbm)))


def test_every_odd_row_is_finite(model: Locator) -> None:
    inputs = model.prepare(HOME, odd_rows())
    for field in fields(LocatorInputs):
        assert torch.isfinite(getattr(inputs, field.name)).all(), field.name
    assert inputs.alive_BK[:, 0].all()
    assert (inputs.spread_m_BK3[..., [0, 2]] > 0).all()


def test_rows_are_prepared_independently_of_others(model: Locator, mixed: LocatorInputs) -> None:
    batch = samples(300, VALLEY, HALF_TIMED)
    alone = LocatorInputs.concatenate([model.prepare(MIXED, batch.take(slice(i, i + 1))) for i in range(0, 60, 3)])
    there = mixed.take(torch.arange(0, 60, 3)).narrowed(alone.hears_BW.shape[1])
    same(alone, there, atol=0.02)


def test_no_rows_are_fine(model: Locator) -> None:
    assert len(model.prepare(HOME, samples(10).take(slice(0, 0)))) == 0


def test_take_narrow_and_concatenate_keep_rows_whole(model: Locator, mixed: LocatorInputs) -> None:
    few = mixed.take(mixed.num_hearing_B <= 4)
    assert len(few) > 10
    narrow = few.narrowed(4)
    assert narrow.hears_BW.shape[1] == 4
    assert torch.equal(narrow.num_hearing_B, few.num_hearing_B)
    same(narrow.narrowed(mixed.hears_BW.shape[1]), few)
    both = LocatorInputs.concatenate([narrow, mixed])
    assert len(both) == len(few) + len(mixed)
    same(both.take(slice(0, len(few))), few)
    same(both.take(slice(len(few), len(both))), mixed)
    same(
        LocatorInputs.concatenate([mixed.take(torch.tensor([7])), mixed.take(slice(3, 4))]),
        mixed.take(torch.tensor([7, 3])),
    )


def test_all_of_a_row_moves_to_a_device(mixed: LocatorInputs) -> None:
    moved = mixed.to(torch.device("meta"))
    assert {getattr(moved, field.name).device.type for field in fields(LocatorInputs)} == {"meta"}


def test_rows_without_times_have_parts_of_a_posterior(model: Locator) -> None:
    inputs = model.prepare(HOME, samples(200, RSS))
    share = inputs.hypothesis_features_BKF[..., 0].exp() * inputs.alive_BK
    torch.testing.assert_close(share.sum(1), torch.ones(200), rtol=0, atol=1e-4)
    assert (share[:, 0] >= share.amax(1) - 1e-6).all()
