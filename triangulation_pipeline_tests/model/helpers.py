"""Seeded rows and locators the tests of the model and of its training share."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from triangulation_pipeline.model.inputs import LocatorInputs, locator_inputs
from triangulation_pipeline.model.locator import Locator, build_locator
from triangulation_pipeline.model.spec import Architecture, LocatorSpec
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Timing
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.physics.solvers import fit_site_biases_ns
from triangulation_pipeline.samples import Samples

DEFAULT = PRESETS[Preset.default]
HALF_TIMED = NORTH_WEST_ITALY.model_copy(
    update={
        "name": "half-timed",
        "sites": tuple(
            site.model_copy(update={"timing": Timing.gps if i < 4 else Timing.none})
            for i, site in enumerate(NORTH_WEST_ITALY.sites)
        ),
    }
)
VALLEY = PRESETS[Preset.valley]


@cache
def samples(
    n: int, scenario: Scenario = DEFAULT, network: ReceiverNetwork = NORTH_WEST_ITALY, seed: int = 0
) -> Samples:
    return simulate(DatasetSpec(network, scenario, n, seed))


def spec_for(
    architecture: Architecture = Architecture.triangulation,
    network: ReceiverNetwork = NORTH_WEST_ITALY,
    dropout_rate: float = 0.0,
) -> LocatorSpec:
    return LocatorSpec(
        architecture=architecture,
        network=network,
        tx_height_m=DEFAULT.tx_height_m,
        area_margin_m=DEFAULT.area_margin_m,
        dropout_rate=dropout_rate,
    )


def target_m(batch: Samples, network: ReceiverNetwork = NORTH_WEST_ITALY) -> Tensor:
    """(n, 2) true east and north."""
    enu_m = network.frame.enu_m(batch.tx_lat, batch.tx_lon, np.full(len(batch), DEFAULT.tx_height_m))
    return torch.as_tensor(enu_m[:, :2], dtype=torch.float32)


@cache
def fitted(spec: LocatorSpec, scenario: Scenario = DEFAULT) -> Locator:
    """A locator that has seen training rows but no gradient. Shared: not to be changed."""
    return fresh(spec, scenario)


def fresh(spec: LocatorSpec, scenario: Scenario = DEFAULT) -> Locator:
    """The same, to be changed at will."""
    torch.manual_seed(0)
    batch = samples(4096, scenario, spec.network)
    model = build_locator(spec)
    bias_m = fit_site_biases_ns(Geometry(spec.network, spec.tx_height_m), batch) * SPEED_OF_LIGHT_M_PER_NS
    model.fit(locator_inputs(batch), target_m(batch, spec.network), torch.as_tensor(bias_m, dtype=torch.float32))
    return model.eval()


@torch.no_grad()
def poked(model: Locator) -> Locator:
    """Random numbers in every weight, also where training starts from zeros."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def exact_inputs(range_m: Tensor, power_dbm: Tensor, sigma_m: float = 15.0) -> LocatorInputs:
    """Rows heard and timed by every receiver, without noise."""
    everywhere = torch.ones_like(range_m, dtype=torch.bool)
    toa_m = range_m - range_m.median(1, keepdim=True).values
    snr_db = power_dbm + 124.0
    return LocatorInputs(everywhere, snr_db, power_dbm, everywhere, toa_m, torch.full_like(range_m, sigma_m))
