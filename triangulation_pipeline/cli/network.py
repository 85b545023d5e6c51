"""``triangulation network``."""

import sys

import click
from ruamel.yaml import YAML

from triangulation_pipeline.network import NORTH_WEST_ITALY, random_network


@click.command()
@click.option("--random-sites", type=click.IntRange(3, 64), help="A random network of so many sites instead.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Of the random network, 0 if left out.")
def network(random_sites: int | None, seed: int | None) -> None:
    """Print a network file: the default network, to be edited, or a random one."""
    if seed is not None and random_sites is None:
        raise click.UsageError("--seed goes with --random-sites")
    described = NORTH_WEST_ITALY if random_sites is None else random_network(random_sites, seed or 0)
    document = described.model_dump(mode="json", exclude_none=True)
    YAML(pure=True).dump(document, sys.stdout)
