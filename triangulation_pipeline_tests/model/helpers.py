"""Seeded rows and locators that the tests of the model share."""

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.model.architectures import build_locator
from triangulation_pipeline.model.locator import Locator
from triangulation_pipeline.model.spec import Architecture, LocatorSpec, RegressionConfig, TriangulationConfig
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Timing
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.samples import Samples

DEFAULT, VALLEY, RSS = PRESETS[Preset.default], PRESETS[Preset.valley], PRESETS[Preset.rss]
HALF_TIMED = NORTH_WEST_ITALY.model_copy(
    update={
        "name": "half-timed",
        "sites": tuple(
            site.model_copy(update={"timing": Timing.gps if i < 3 else Timing.none})
            for i, site in enumerate(NORTH_WEST_ITALY.sites)
        ),
    }
)
HOME = Layout(NORTH_WEST_ITALY, DEFAULT)
# Rows with 0, 1, 2 and 3 arrival times.
MIXED = Layout(HALF_TIMED, VALLEY)


@cache
def samples(
    n: int, scenario: Scenario = DEFAULT, network: ReceiverNetwork = NORTH_WEST_ITALY, seed: int = 0
) -> Samples:
    return simulate(DatasetSpec(network, scenario, n, seed))


def spec_for(architecture: Architecture = Architecture.triangulation) -> LocatorSpec:
    configs = {Architecture.triangulation: TriangulationConfig(), Architecture.regression: RegressionConfig()}
    return LocatorSpec(config=configs[architecture])


def fresh(spec: LocatorSpec) -> Locator:
    """A locator that has made no step."""
    torch.manual_seed(0)
    return build_locator(spec).eval()


@torch.no_grad()
def poked(model: Locator) -> Locator:
    """The locator with random numbers in every weight, also in those that begin as zeros."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def target_m(batch: Samples, network: ReceiverNetwork = NORTH_WEST_ITALY) -> Tensor:
    """(n, 2) true east and north."""
    return torch.as_tensor(batch.tx_en_m(network.frame), dtype=torch.float32)


def odd_rows() -> Measurements:
    """Rows as they should not be: no receiver, one, no arrival time, one, two; absurd and equal times; no noise."""
    batch = samples(12)
    present, timed = batch.signal_present.copy(), batch.toa_present.copy()
    toa_ns, power_dbm, sigma_ns = batch.toa_ns.copy(), batch.power_dbm.copy(), batch.toa_sigma_ns.copy()
    present[0], timed[0] = False, False
    present[1:3, 1:], timed[1:3, 1:] = False, False
    timed[2] = False
    timed[3] = False
    timed[4, 1:], timed[5, 2:], timed[6, 3:] = False, False, False
    toa_ns[7] = np.where(timed[7], np.linspace(-1e12, 1e12, 7), 0.0)
    toa_ns[8] = np.where(timed[8] & (np.arange(7) == 3), 1e12, toa_ns[8])
    toa_ns[9] = 0.0
    sigma_ns[10] = np.where(timed[10], 1e-3, 0.0)
    power_dbm[11] = np.where(present[11], 300.0, power_dbm[11])
    return replace(
        batch,
        signal_present=present,
        toa_present=timed,
        toa_ns=np.where(timed, toa_ns, 0.0),
        power_dbm=power_dbm,
        toa_sigma_ns=np.where(timed, sigma_ns, 0).astype(np.float32),
    )
