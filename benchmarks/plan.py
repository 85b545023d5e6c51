"""How long it takes to plan a network, with each site left out and the best place for one more."""

from benchmarks.generation import seconds
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, random_network
from triangulation_pipeline.physics.plan import best_further_site, plan_network
from triangulation_pipeline.physics.scenario import PRESETS, Preset


def _plan(network: ReceiverNetwork) -> object:
    return best_further_site(plan_network(network, PRESETS[Preset.valley]))


def measure() -> dict[str, str]:
    """Name and value of each number, ready to print."""
    return {
        "plan of 7 sites, s": f"{seconds(lambda: _plan(NORTH_WEST_ITALY)):.1f}",
        "plan of 60 sites, s": f"{seconds(lambda: _plan(random_network(60, 1))):.1f}",
    }
