"""Seeded rows and locators the tests of the model and of its training share."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from triangulation_pipeline.model.architectures import build_locator
from triangulation_pipeline.model.inputs import LocatorInputs
from triangulation_pipeline.model.locator import Locator
from triangulation_pipeline.model.spec import Architecture, LocatorSpec
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Timing
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.samples import Samples
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline.training.rows import SplitTensors, fit_data

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
    settings = TrainingConfig(model_architecture=architecture, dropout_rate=dropout_rate)
    return settings.locator_spec(network, DEFAULT)


def target_m(batch: Samples, network: ReceiverNetwork = NORTH_WEST_ITALY) -> Tensor:
    """(n, 2) true east and north."""
    enu_m = network.frame.enu_m(batch.tx_lat, batch.tx_lon, np.full(len(batch), DEFAULT.tx_height_m))
    return torch.as_tensor(enu_m[:, :2], dtype=torch.float32)


@cache
def fitted(spec: LocatorSpec, scenario: Scenario = DEFAULT) -> Locator:
    """A locator that is fitted on training rows and has made no step. Tests share it: it must not be changed."""
    return fresh(spec, scenario)


def fresh(spec: LocatorSpec, scenario: Scenario = DEFAULT) -> Locator:
    """Such a locator that the test may change."""
    torch.manual_seed(0)
    batch = samples(4096, scenario, spec.network)
    model = build_locator(spec)
    model.fit(fit_data(spec, batch, SplitTensors.of(spec, batch, torch.device("cpu"))))
    return model.eval()


@torch.no_grad()
def poked(model: Locator) -> Locator:
    """The locator with random numbers in every weight, also in those that begin as zeros."""
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
