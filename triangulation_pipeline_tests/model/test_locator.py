from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triangulation_pipeline.model.architectures import build_locator
from triangulation_pipeline.model.architectures.triangulation import information_cholesky
from triangulation_pipeline.model.encoder import ReceiverAttention, ReceiverEncoder, pooled
from triangulation_pipeline.model.inputs import LocatorInputs, locator_inputs
from triangulation_pipeline.model.locator import Locator, cholesky
from triangulation_pipeline.model.losses import locator_loss
from triangulation_pipeline.model.predict import predict
from triangulation_pipeline.model.spec import Architecture, EncoderConfig, LocatorSpec
from triangulation_pipeline.physics.scenario import PRESETS, Preset

from .helpers import DEFAULT, HALF_TIMED, VALLEY, fitted, fresh, poked, samples, spec_for, target_m

RSS = PRESETS[Preset.rss]
Case = tuple[LocatorSpec, Locator, LocatorInputs]

CASES = {
    "triangulation": (spec_for(), DEFAULT),
    "regression": (spec_for(Architecture.regression), DEFAULT),
    "rss": (spec_for(), RSS),
    "mixed": (spec_for(network=HALF_TIMED), VALLEY),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    """What a locator is built for, the locator with random weights, and rows; of each kind of data."""
    spec, scenario = CASES[request.param]
    return spec, poked(fresh(spec, scenario)), locator_inputs(samples(700, scenario, spec.network, seed=1))


def test_the_mixed_case_is_mixed() -> None:
    timed = locator_inputs(samples(700, VALLEY, HALF_TIMED, seed=1)).toa_present_BR.sum(1)
    assert (timed < 3).sum() > 50
    assert (timed >= 3).sum() > 50


def test_answers_do_not_depend_on_order_or_the_number_of_rows(case: Case) -> None:
    _, model, inputs = case
    inputs = inputs.take(slice(0, 300))
    whole = predict(model, inputs)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    shuffled = predict(model, inputs.take(order))
    # The same rows again and again: more than are predicted at once.
    again = torch.arange(9000) % len(inputs)
    many = predict(model, inputs.take(again), model.initial_fix(inputs)[again])
    scale_m2 = np.abs(whole.covariance_m2).max((1, 2), keepdims=True)
    for other, rows in ((shuffled, order.numpy()), (many, again.numpy())):
        # Float32 at 100 km: a hundredth of a metre; sums round otherwise in batches of another size.
        np.testing.assert_allclose(other.en_m, whole.en_m[rows], rtol=0, atol=0.5)
        np.testing.assert_allclose(
            other.covariance_m2 / scale_m2[rows], (whole.covariance_m2 / scale_m2)[rows], atol=2e-3
        )


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), mixed=st.booleans())
def test_numbers_of_absent_receivers_never_matter(seed: int, mixed: bool) -> None:
    spec, scenario = CASES["mixed"] if mixed else (spec_for(), VALLEY)
    model = poked(fresh(spec, scenario))
    inputs = locator_inputs(samples(200, scenario, spec.network, seed=1))
    start_m = model.initial_fix(inputs)
    generator = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> torch.Tensor:
        return torch.randn(inputs.present_BR.shape, generator=generator) * scale

    absent, untimed = ~inputs.present_BR, ~inputs.toa_present_BR
    assert absent.any()
    changed = LocatorInputs(
        present_BR=inputs.present_BR,
        snr_db_BR=torch.where(absent, noise(20), inputs.snr_db_BR),
        power_dbm_BR=torch.where(absent, noise(100), inputs.power_dbm_BR),
        toa_present_BR=inputs.toa_present_BR,
        toa_m_BR=torch.where(untimed, noise(1e4), inputs.toa_m_BR),
        sigma_m_BR=torch.where(untimed, noise(100).abs() + 1, inputs.sigma_m_BR),
    )
    # Regressed rows read an untimed receiver's arrival time only if it was heard; that is 0 by the batch's contract.
    regressed = (inputs.toa_present_BR.sum(1) < 3)[:, None]
    heard = inputs.present_BR & regressed
    changed = replace(
        changed,
        toa_m_BR=torch.where(heard, inputs.toa_m_BR, changed.toa_m_BR),
        sigma_m_BR=torch.where(heard, inputs.sigma_m_BR, changed.sigma_m_BR),
    )
    mine, others = predict(model, inputs, start_m), predict(model, changed, start_m)
    np.testing.assert_allclose(others.en_m, mine.en_m, rtol=0, atol=0.05)
    np.testing.assert_allclose(others.covariance_m2, mine.covariance_m2, rtol=1e-4, atol=1e-2)
    # The start does read a silent receiver's floor (silence is information), but neither its SNR nor its arrival time.
    silent = replace(changed, power_dbm_BR=inputs.power_dbm_BR)
    assert torch.equal(model.initial_fix(silent), start_m)


def test_mixed_rows_are_those_of_each_kind_alone() -> None:
    spec, scenario = CASES["mixed"]
    model = poked(fresh(spec, scenario))
    inputs = locator_inputs(samples(300, scenario, spec.network, seed=1))
    start_m = model.initial_fix(inputs)
    solved = inputs.toa_present_BR.sum(1) >= 3
    with torch.no_grad():
        whole = model(inputs, start_m)
        assert torch.equal(whole.solved_B, solved)
        for rows in (solved, ~solved):
            alone = model(inputs.take(rows), start_m[rows])
            assert torch.equal(alone.solved_B, solved[rows])
            torch.testing.assert_close(whole.en_m_B2[rows], alone.en_m_B2, rtol=0, atol=0)
            torch.testing.assert_close(whole.scale_tril_m_B22[rows], alone.scale_tril_m_B22, rtol=0, atol=0)
    assert len(whole.rounds_m_B2) == 2
    # The loss of rows of both kinds reaches both halves.
    truth_m = target_m(samples(300, scenario, spec.network, seed=1), spec.network)
    locator_loss(model(inputs, start_m), truth_m).mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_gradients_reach_every_parameter_that_can_have_one() -> None:
    batch = samples(300)
    model = poked(fresh(spec_for())).train()
    inputs = locator_inputs(batch)
    locator_loss(model(inputs, model.initial_fix(inputs)), target_m(batch)).mean().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    # Every row has three arrival times: nothing is regressed.
    assert without == {name for name, _ in model.named_parameters() if name.startswith("regression.")}


def test_weights_common_to_all_receivers_cancel() -> None:
    """A common weight changes no least-squares fix, and the information takes no part in the likelihood's gradient."""
    batch = samples(300)
    model = poked(fresh(spec_for())).train()
    inputs = locator_inputs(batch)
    locator_loss(model(inputs, model.initial_fix(inputs)), target_m(batch)).mean().backward()
    for solver_round in model.rounds:
        assert abs(float(solver_round.read.bias.grad[0])) < 1e-2 * float(solver_round.read.weight.grad.abs().max())


def test_covariances_are_positive_definite_and_in_metres(case: Case) -> None:
    _, model, inputs = case
    prediction = predict(model, inputs)
    assert np.isfinite(prediction.en_m).all()
    assert (np.linalg.eigvalsh(prediction.covariance_m2) > 0).all()
    assert np.allclose(prediction.covariance_m2, prediction.covariance_m2.transpose(0, 2, 1))
    model.covariance_scale.fill_(4.0)
    np.testing.assert_allclose(predict(model, inputs).covariance_m2, 4 * prediction.covariance_m2, rtol=1e-5)


def test_information_cholesky_is_the_inverse_information() -> None:
    rng = np.random.default_rng(0)
    bearing = rng.uniform(0, 2 * np.pi, (30, 7))
    weight = rng.uniform(0.5, 2, (30, 7)) / 30.0**2
    tril = information_cholesky(*(torch.tensor(x) for x in (weight, np.cos(bearing), np.sin(bearing)))).numpy()
    design = np.stack([np.cos(bearing), np.sin(bearing), np.ones_like(bearing)], -1)
    expected = np.linalg.inv(np.einsum("nri,nr,nrj->nij", design, weight, design))[:, :2, :2]
    np.testing.assert_allclose(tril @ tril.transpose(0, 2, 1), expected, rtol=1e-3)


def test_a_covariance_lies_within_a_metre_and_a_hundred_kilometres() -> None:
    east, north = (torch.tensor([[1.0, 0.0, -1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0, -1.0]]))
    for weight, deviation_m in ((1e6, 1.0), (0.0, 100e3), (0.5 / 40.0**2, 40.0)):
        found = information_cholesky(torch.full((1, 4), weight), east, north)[0]
        torch.testing.assert_close(found, deviation_m * torch.eye(2), rtol=1e-4, atol=1e-3)
    # On one line of sight the position across it is unknown, with whatever the rounding leaves.
    seven = torch.linspace(-1, 1, 7)[None]
    found = information_cholesky(torch.full((1, 7), 1e-4), 0.6 * seven, 0.8 * seven)
    assert torch.isfinite(found).all()
    assert (found.diagonal(dim1=1, dim2=2) >= 1.0).all()


def test_cholesky_factors_have_a_bounded_diagonal() -> None:
    found = cholesky(torch.tensor([[0.5, -0.3, 2.0], [100.0, -100.0, -7.0], [-100.0, 100.0, 0.0]])).double().numpy()
    expected = [[[np.exp(0.5), 0], [2, np.exp(-0.3)]], [[np.exp(8), 0], [-7, np.exp(-8)]]]
    np.testing.assert_allclose(found[:2], expected, rtol=1e-6)
    np.testing.assert_allclose(found[2], [[np.exp(-8), 0], [0, np.exp(8)]], rtol=1e-6)


@pytest.mark.parametrize(("architecture", "count"), [(Architecture.triangulation, 3), (Architecture.regression, 1)])
def test_levels_are_scaled_by_those_of_the_receivers_that_hear(architecture: Architecture, count: int) -> None:
    batch, model = samples(4096), fitted(spec_for(architecture))
    heard = batch.signal_present
    assert not heard.all()
    levels = np.stack([batch.snr_db[heard], batch.power_dbm[heard]]).astype(float)
    encoders = [module for module in model.modules() if isinstance(module, ReceiverEncoder)]
    assert len(encoders) == count
    for encoder in encoders:
        np.testing.assert_allclose(encoder.level_mean.numpy(), levels.mean(1), rtol=1e-4)
        np.testing.assert_allclose(encoder.level_std.numpy(), levels.std(1, ddof=1), rtol=1e-4)


def test_tokens_know_levels_by_their_scaling_alone() -> None:
    """As much louder and as much wider as mean and deviation are: the same tokens."""
    torch.manual_seed(0)
    encoder = ReceiverEncoder(7, 0, EncoderConfig())
    inputs = locator_inputs(samples(20))
    encoder.fit(inputs)
    tokens = encoder(inputs, [])
    (snr_db, power_dbm), (snr_std, power_std) = encoder.level_mean.clone(), encoder.level_std.clone()
    encoder.level_mean.copy_(torch.stack([snr_db + 10, power_dbm - 30]))
    encoder.level_std.copy_(torch.stack([2 * snr_std, 3 * power_std]))
    wider = replace(
        inputs,
        snr_db_BR=snr_db + 10 + 2 * (inputs.snr_db_BR - snr_db),
        power_dbm_BR=power_dbm - 30 + 3 * (inputs.power_dbm_BR - power_dbm),
    )
    torch.testing.assert_close(encoder(wider, []), tokens, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(encoder(inputs, []), tokens, rtol=1e-2)


@torch.no_grad()
def test_tokens_tell_who_heard_from_who_timed() -> None:
    torch.manual_seed(0)
    encoder, inputs = ReceiverEncoder(7, 0, EncoderConfig()), locator_inputs(samples(20))
    everywhere = torch.ones(20, 7, dtype=torch.bool)
    both = replace(inputs, present_BR=everywhere, toa_present_BR=everywhere)
    heard = replace(both, toa_present_BR=~everywhere)
    neither = replace(heard, present_BR=~everywhere)
    tokens = [encoder(each, []) for each in (both, heard, neither)]
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert float((tokens[i] - tokens[j]).abs().max()) > 1e-3
    # The precision of an arrival time that is not there says nothing.
    vague = 100 * inputs.sigma_m_BR
    torch.testing.assert_close(encoder(replace(heard, sigma_m_BR=vague), []), tokens[1])
    assert float((encoder(replace(both, sigma_m_BR=vague), []) - tokens[0]).abs().max()) > 1e-3


def test_levels_that_are_all_the_same_are_scaled_to_finite_numbers() -> None:
    encoder, inputs = ReceiverEncoder(7, 0, EncoderConfig()), locator_inputs(samples(20))
    even = replace(inputs, snr_db_BR=torch.full((20, 7), 12.0), power_dbm_BR=torch.full((20, 7), -90.0))
    encoder.fit(even)
    assert torch.isfinite(encoder(even, [])).all()


@pytest.mark.parametrize("part", ["encoder", "attention"])
@pytest.mark.parametrize("dropout_rate", [0.0, 0.6])
def test_dropout_is_in_the_encoder_and_in_the_attention_block(part: str, dropout_rate: float) -> None:
    torch.manual_seed(0)
    inputs, tokens = locator_inputs(samples(20)), torch.randn(20, 7, 32)
    config = EncoderConfig(dropout_rate=dropout_rate)
    encoder, attention = ReceiverEncoder(7, 0, config), ReceiverAttention(config)
    encoder.fit(inputs)

    def output() -> torch.Tensor:
        return encoder(inputs, []) if part == "encoder" else attention(tokens, inputs.present_BR)

    assert torch.equal(output(), output()) == (dropout_rate == 0.0)
    encoder.eval()
    attention.eval()
    assert torch.equal(output(), output())


def test_pooling_without_keys_is_zero() -> None:
    tokens = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    key = torch.tensor([[True, False, True], [False, False, False]])
    found = pooled(tokens, key)
    torch.testing.assert_close(found[0, :4], tokens[0, [0, 2]].mean(0))
    torch.testing.assert_close(found[0, 4:], tokens[0, [0, 2]].amax(0))
    assert (found[1] == 0).all()


def test_state_dict_round_trip(case: Case) -> None:
    spec, model, inputs = case
    copy = build_locator(spec).eval()
    copy.load_state_dict(model.state_dict())
    start_m = model.initial_fix(inputs)
    assert torch.equal(copy.initial_fix(inputs), start_m)
    mine, others = predict(model, inputs, start_m), predict(copy, inputs, start_m)
    assert np.array_equal(mine.en_m, others.en_m)
    assert np.array_equal(mine.covariance_m2, others.covariance_m2)


def test_before_any_training_the_answer_is_the_robust_start() -> None:
    batch = samples(4096)
    inputs, model = locator_inputs(batch), fitted(spec_for())
    start_m = model.initial_fix(inputs)
    answer = predict(model, inputs, start_m).en_m
    good, truth = batch.gdop < 5, target_m(batch).numpy()
    started, answered = (np.hypot(*(p - truth)[good].T) for p in (start_m.numpy(), answer))
    assert np.sqrt(np.mean(answered**2)) < 1.02 * np.sqrt(np.mean(started**2))
    assert np.median(answered) < 1.02 * np.median(started)


def test_a_round_steps_no_further_than_two_kilometres() -> None:
    batch = samples(300)
    inputs, model = locator_inputs(batch), fitted(spec_for())
    far_m = target_m(batch) + 60e3
    with torch.no_grad():
        located = model(inputs, far_m)
    steps = [b - a for a, b in zip((far_m, *located.rounds_m_B2), located.rounds_m_B2, strict=False)]
    assert [float(step.norm(dim=1).max()) for step in steps] == pytest.approx([2000.0, 2000.0], rel=1e-3)
    # Nearer to its aim a round steps as far as it has to.
    near_m = target_m(batch) + 100
    with torch.no_grad():
        located = model(inputs, near_m)
    assert (located.rounds_m_B2[0] - near_m).norm(dim=1).median() < 300


def test_untrained_regression_answers_with_the_middle_of_the_area() -> None:
    inputs, model = locator_inputs(samples(50)), fitted(spec_for(Architecture.regression))
    found = predict(model, inputs).en_m
    np.testing.assert_allclose(found, model.middle_m.double().numpy()[None].repeat(50, 0))


def test_a_row_that_nobody_heard_has_a_finite_answer(case: Case) -> None:
    _, model, inputs = case
    silent = torch.zeros_like(inputs.present_BR)
    prediction = predict(model, replace(inputs, present_BR=silent, toa_present_BR=silent))
    assert np.isfinite(prediction.en_m).all()
    assert np.isfinite(prediction.covariance_m2).all()
