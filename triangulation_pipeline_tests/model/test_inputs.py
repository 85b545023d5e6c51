from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from triangulation_pipeline.model.inputs import LocatorInputs, locator_inputs
from triangulation_pipeline.model.predict import predict
from triangulation_pipeline.model.spec import Architecture
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.scenario import PRESETS, Preset

from .helpers import HALF_TIMED, VALLEY, fitted, fresh, poked, samples, spec_for, target_m


def test_masks_dtypes_and_centring() -> None:
    batch = samples(1000, VALLEY, HALF_TIMED)
    inputs = locator_inputs(batch)
    assert torch.equal(inputs.present_BR, torch.tensor(batch.signal_present))
    assert torch.equal(inputs.toa_present_BR, torch.tensor(batch.toa_present))
    assert inputs.present_BR.dtype == inputs.toa_present_BR.dtype == torch.bool
    floats = (inputs.snr_db_BR, inputs.power_dbm_BR, inputs.toa_m_BR, inputs.sigma_m_BR)
    assert {x.dtype for x in floats} == {torch.float32}
    timed = batch.toa_present
    assert (inputs.toa_m_BR.numpy()[~timed] == 0).all()
    assert (inputs.sigma_m_BR.numpy()[~timed] == 1).all()
    np.testing.assert_allclose(
        inputs.sigma_m_BR.numpy()[timed], batch.toa_sigma_ns[timed] * SPEED_OF_LIGHT_M_PER_NS, rtol=1e-6
    )
    # One receiver of each timed row is the middle: zero; the others keep their differences to the millimetre.
    several = timed.sum(1) >= 2
    assert (((inputs.toa_m_BR.numpy() == 0) & timed).sum(1)[several] >= 1).all()
    earlier = ((inputs.toa_m_BR.numpy() < 0) & timed).sum(1)
    np.testing.assert_array_equal(earlier[several], (timed.sum(1)[several] - 1) // 2)
    rows = np.flatnonzero(several)[:200]
    for row in rows:
        first, second = np.flatnonzero(timed[row])[:2]
        expected_m = (batch.toa_ns[row, first] - batch.toa_ns[row, second]) * SPEED_OF_LIGHT_M_PER_NS
        found_m = float(inputs.toa_m_BR[row, first]) - float(inputs.toa_m_BR[row, second])
        assert abs(found_m - expected_m) < 0.03


def test_emission_time_leaves_no_trace() -> None:
    batch = samples(200)
    later = replace(batch, toa_ns=np.where(batch.toa_present, batch.toa_ns + 123_456.0, 0.0))
    torch.testing.assert_close(locator_inputs(later).toa_m_BR, locator_inputs(batch).toa_m_BR, rtol=0, atol=0.01)


def test_rows_without_arrival_times_are_zeros_not_nan() -> None:
    inputs = locator_inputs(samples(100, PRESETS[Preset.rss]))
    assert not inputs.toa_present_BR.any()
    for field in fields(LocatorInputs):
        assert torch.isfinite(getattr(inputs, field.name)).all(), field.name
    assert (inputs.toa_m_BR == 0).all()


def test_rows_are_picked_together() -> None:
    inputs = locator_inputs(samples(50))
    picked = inputs.take(torch.tensor([7, 3]))
    assert len(picked) == 2
    for field in fields(LocatorInputs):
        assert torch.equal(getattr(picked, field.name), getattr(inputs, field.name)[[7, 3]])


def test_all_of_a_row_moves_to_a_device() -> None:
    inputs = locator_inputs(samples(50)).to(torch.device("meta"))
    assert {getattr(inputs, field.name).device.type for field in fields(LocatorInputs)} == {"meta"}


def test_frequency_offsets_carry_nothing() -> None:
    batch = samples(300)
    shuffled = replace(batch, frequency_offset_hz=batch.frequency_offset_hz[::-1].copy())
    assert not np.array_equal(batch.frequency_offset_hz, shuffled.frequency_offset_hz)
    model = poked(fresh(spec_for()))
    mine, others = predict(model, locator_inputs(batch)), predict(model, locator_inputs(shuffled))
    assert np.array_equal(mine.en_m, others.en_m)
    assert np.array_equal(mine.covariance_m2, others.covariance_m2)


def test_no_rows_give_no_rows() -> None:
    batch = samples(50)
    for architecture in Architecture:
        prediction = predict(fitted(spec_for(architecture)), locator_inputs(batch.take(slice(0, 0))))
        assert prediction.en_m.shape == (0, 2)
        assert prediction.covariance_m2.shape == (0, 2, 2)


@pytest.mark.parametrize("architecture", list(Architecture))
def test_a_prediction_is_the_models_answer_without_dropout(architecture: Architecture) -> None:
    batch, model = samples(50), poked(fresh(spec_for(architecture, dropout_rate=0.5)))
    inputs = locator_inputs(batch)
    start_m = model.initial_fix(inputs) + 500.0
    with torch.no_grad():
        located = model(inputs, start_m)
        other = model(inputs, model.initial_fix(inputs))
    # Whatever the mode that the model was left in.
    prediction = predict(model.train(), inputs, start_m)
    np.testing.assert_array_equal(prediction.en_m, located.en_m_B2.double().numpy())
    for covariance_m2, factor in zip(prediction.covariance_m2, located.scale_tril_m_B22.double().numpy(), strict=True):
        np.testing.assert_allclose(covariance_m2, factor @ factor.T)
    # Without a start the model looks for its own.
    np.testing.assert_array_equal(predict(model, inputs).en_m, other.en_m_B2.double().numpy())


def test_nees_of_a_prediction_against_numpy() -> None:
    batch = samples(50)
    prediction = predict(poked(fresh(spec_for())), locator_inputs(batch))
    target = target_m(batch).double().numpy()
    expected = [
        (t - p) @ np.linalg.inv(c) @ (t - p)
        for t, p, c in zip(target, prediction.en_m, prediction.covariance_m2, strict=True)
    ]
    np.testing.assert_allclose(prediction.nees(target), expected, rtol=1e-6)
