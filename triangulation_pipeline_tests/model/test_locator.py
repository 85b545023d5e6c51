from dataclasses import replace

import numpy as np
import pytest
import torch

from triangulation_pipeline.calibration import SiteCalibration
from triangulation_pipeline.measurements import RECEIVER_DTYPES
from triangulation_pipeline.model.inputs import LocatorInputs
from triangulation_pipeline.model.locator import Locator
from triangulation_pipeline.model.losses import locator_loss, log_density
from triangulation_pipeline.model.predict import predict, predicted
from triangulation_pipeline.model.spec import Architecture, LocatorSpec, StartConfig, TriangulationConfig
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Site, random_network
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.positions.mixtures import MixturePositions
from triangulation_pipeline.samples import Samples

from .helpers import DEFAULT, HALF_TIMED, HOME, MIXED, RSS, VALLEY, fresh, odd_rows, poked, samples, spec_for, target_m

LAYOUTS = {
    "home": HOME,
    "mixed": MIXED,
    "rss": Layout(NORTH_WEST_ITALY, RSS),
    "valley": Layout(NORTH_WEST_ITALY, VALLEY),
}


@pytest.fixture(scope="module", params=list(Architecture))
def model(request: pytest.FixtureRequest) -> Locator:
    """With random weights."""
    return poked(fresh(spec_for(request.param)))


@pytest.fixture(scope="module")
def triangulation() -> Locator:
    return poked(fresh(spec_for()))


def rows_of(layout: Layout, n: int = 200) -> Samples:
    return samples(n, layout.scenario, layout.network)


def alike(one: MixturePositions, other: MixturePositions, share: float = 0.97) -> None:
    """The same posteriors, but for rows where another of two equal hypotheses was kept: mean within a part of the
    spread, and covariance."""
    spread_m = np.maximum(one.rms_m(), 1.0)
    off = np.hypot(*(one.en_m - other.en_m).T) / spread_m
    ratio = other.rms_m() / spread_m
    assert np.mean((off < 0.05) & (np.abs(ratio - 1) < 0.05)) >= share


def test_the_mixed_rows_are_mixed() -> None:
    times = rows_of(MIXED).toa_present.sum(1)
    assert np.bincount(times, minlength=4).min() >= 5


@pytest.mark.parametrize("layout", list(LAYOUTS.values()), ids=list(LAYOUTS))
def test_mixtures_are_normalised_with_covariances(model: Locator, layout: Layout) -> None:
    inputs = model.prepare(layout, rows_of(layout))
    with torch.no_grad():
        found = model(inputs)
    torch.testing.assert_close(found.log_weight_BC.exp().sum(1), torch.ones(len(inputs)))
    assert (found.scale_tril_m_BC3[..., [0, 2]] > 0).all()
    assert (found.freedom_BC > 2).all()
    positions = predict(model, layout, rows_of(layout))
    assert np.isfinite(positions.covariance_m2).all()
    np.testing.assert_allclose(positions.en_m, found.en_m_B2.double().numpy(), rtol=1e-3, atol=5.0)
    at = target_m(samples(200, layout.scenario, layout.network), layout.network)
    np.testing.assert_allclose(
        positions.log_density(at.double().numpy()), log_density(found, at).numpy(), rtol=1e-3, atol=1e-2
    )


@pytest.mark.parametrize("layout", [HOME, MIXED], ids=["home", "mixed"])
def test_answers_do_not_depend_on_the_other_rows(model: Locator, layout: Layout) -> None:
    batch = rows_of(layout)
    order = np.random.default_rng(0).permutation(len(batch))[:77]
    alike(predict(model, layout, batch).take(order), predict(model, layout, batch.take(order)), 1.0)


@pytest.mark.parametrize("layout", [HOME, MIXED], ids=["home", "mixed"])
def test_the_order_of_the_sites_does_not_matter(model: Locator, layout: Layout) -> None:
    order = np.array([3, 0, 6, 5, 1, 2, 4])
    network = layout.network.model_copy(update={"sites": tuple(layout.network.sites[i] for i in order)})
    batch = rows_of(layout)
    turned = replace(batch, **{name: getattr(batch, name)[:, order] for name in RECEIVER_DTYPES})
    alike(predict(model, layout, batch), predict(model, Layout(network, layout.scenario), turned))


def test_a_deaf_site_does_not_matter(model: Locator) -> None:
    """It stands within the box of the others, so that area and frame stay."""
    further = Site(name="deaf", lat=44.5, lon=7.3, altitude_m=300)
    network = NORTH_WEST_ITALY.model_copy(update={"sites": (*NORTH_WEST_ITALY.sites, further)})
    batch = rows_of(HOME, 200)
    # Deaf: its floor is so high that its silence tells nothing.
    deaf = {name: np.pad(getattr(batch, name), ((0, 0), (0, 1))) for name in RECEIVER_DTYPES}
    deaf["power_dbm"][:, -1] = 300.0
    alike(predict(model, HOME, batch), predict(model, Layout(network, DEFAULT), replace(batch, **deaf)))


def moved(network: ReceiverNetwork, east_deg: float) -> ReceiverNetwork:
    sites = tuple(site.model_copy(update={"lon": site.lon + east_deg}) for site in network.sites)
    return network.model_copy(update={"sites": sites})


def test_a_network_elsewhere_on_its_parallel_answers_the_same(model: Locator) -> None:
    batch = rows_of(HOME)
    alike(predict(model, HOME, batch), predict(model, Layout(moved(NORTH_WEST_ITALY, 100.0), DEFAULT), batch))


@pytest.mark.parametrize("layout", [HOME, MIXED], ids=["home", "mixed"])
def test_padding_does_not_matter(model: Locator, layout: Layout) -> None:
    inputs = model.prepare(layout, rows_of(layout))
    alike(predicted(model, inputs), predicted(model, inputs.narrowed(inputs.hears_BW.shape[1] + 5)), 1.0)


def test_a_hypothesis_that_stands_twice_changes_nothing(triangulation: Locator) -> None:
    """Two halves of one hypothesis are the whole."""
    inputs = triangulation.prepare(HOME, rows_of(HOME))
    inputs = inputs.take(inputs.alive_BK.sum(1) == 1)
    features = inputs.hypothesis_features_BKF.clone()
    features[:, 1] = features[:, 0]
    features[:, :2, 0] = np.log(0.5)
    twice = replace(
        inputs,
        alive_BK=torch.tensor([True, True, False]).expand_as(inputs.alive_BK),
        hypothesis_m_BK2=inputs.hypothesis_m_BK2[:, [0, 0, 2]],
        spread_m_BK3=inputs.spread_m_BK3[:, [0, 0, 2]],
        level_BKW=inputs.level_BKW[:, [0, 0, 2]],
        hypothesis_features_BKF=features,
    )
    once = replace(inputs, hypothesis_features_BKF=features)
    at = inputs.hypothesis_m_BK2[:, 0] + 20.0
    with torch.no_grad():
        found, expected = (log_density(triangulation(rows), at) for rows in (twice, once))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_gradients_are_finite_in_every_odd_row_alone_and_together(model: Locator) -> None:
    inputs = model.prepare(HOME, odd_rows())
    for rows in (inputs, *(inputs.take(slice(i, i + 1)) for i in range(len(inputs)))):
        model.zero_grad()
        loss = locator_loss(model(rows), torch.full((len(rows), 2), 1e4))
        assert torch.isfinite(loss).all()
        loss.mean().backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_rows_of_200_sites_are_as_wide_as_those_that_hear(triangulation: Locator) -> None:
    layout = Layout(random_network(200, seed=0, extent_km=1300), VALLEY)
    batch = rows_of(layout, 100)
    inputs = triangulation.prepare(layout, batch)
    assert inputs.hears_BW.shape[1] == batch.num_detections.max() < 40
    off_m = (inputs.hypothesis_m_BK2[:, 0] - target_m(samples(100, VALLEY, layout.network), layout.network)).norm(dim=1)
    good = torch.tensor(batch.gdop < 5) & torch.tensor(batch.toa_present.sum(1) >= 4)
    assert good.sum() > 40
    assert off_m[good].median() < 100
    found = predicted(triangulation, inputs)
    assert np.isfinite(found.log_density(found.en_m)).all()


def test_no_rows_are_answered_by_none(model: Locator) -> None:
    assert len(predict(model, HOME, rows_of(HOME).take(slice(0, 0)))) == 0


def test_every_parameter_is_trained(model: Locator) -> None:
    model.zero_grad()
    parts = [model.prepare(layout, rows_of(layout)) for layout in (HOME, MIXED)]
    targets = [target_m(rows_of(layout), layout.network) for layout in (HOME, MIXED)]
    locator_loss(model(LocatorInputs.concatenate(parts)), torch.cat(targets)).mean().backward()
    untrained = [name for name, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert untrained == []


def test_some_steps_of_training_lower_the_loss(model: Locator) -> None:
    learner = fresh(spec_for(Architecture(type(model).__name__.lower())))
    inputs, at = learner.prepare(HOME, rows_of(HOME, 1000)), target_m(rows_of(HOME, 1000))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = locator_loss(learner(inputs), at).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.03


def test_calibration_is_taken_off_before_anything_else(triangulation: Locator) -> None:
    """What a biased network measures, calibrated, is what an unbiased one measures."""
    batch = rows_of(HOME)
    bias_ns, gain_db = np.linspace(-300, 300, 7), np.linspace(-5, 5, 7)
    off = replace(
        batch,
        toa_ns=np.where(batch.toa_present, batch.toa_ns + bias_ns, 0.0),
        power_dbm=(batch.power_dbm + gain_db).astype(np.float32),
    )
    known = replace(SiteCalibration.of_network(NORTH_WEST_ITALY), toa_bias_ns=bias_ns, gain_offset_db=gain_db)
    alike(predict(triangulation, HOME, batch), predict(triangulation, HOME, known.apply(HOME, off)))


def test_the_parts_of_the_form_can_be_left_out() -> None:
    """For ablations: one hypothesis, one component, no alternatives."""
    for config in (
        TriangulationConfig(start=StartConfig(hypotheses=1), components=1, alternatives=False),
        TriangulationConfig(start=StartConfig(hypotheses=1), components=3),
    ):
        small = poked(fresh(LocatorSpec(config=config)))
        with torch.no_grad():
            found = small(small.prepare(MIXED, rows_of(MIXED)))
        receivers = max(rows_of(MIXED).num_detections) if config.alternatives else 0
        assert found.log_weight_BC.shape == (200, config.components + receivers)
        assert torch.isfinite(found.mean_m_BC2).all()


def test_half_timed_sites_help(triangulation: Locator) -> None:
    """Rows of sites of which some only tell levels hold both."""
    inputs = triangulation.prepare(MIXED, samples(200, VALLEY, HALF_TIMED))
    assert (inputs.hears_BW & ~inputs.timed_BW).any()
