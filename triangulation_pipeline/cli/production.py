"""``triangulation promote | rollback``: which version of a model is in production."""

import click

from triangulation_pipeline.cli.home import open_engine
from triangulation_pipeline.cli.tables import say
from triangulation_pipeline.storage.registry import Promotion, promote_model, rollback_model


@click.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1))
def promote(name: str, version: int) -> None:
    """Put a version into production.

    VERSION of the model NAME replaces the version that is in production, even if that one is for another network. A
    version that did not pass its checks is refused.
    """
    say(_promoted(promote_model(open_engine(), name, version)))


@click.command()
@click.argument("name")
def rollback(name: str) -> None:
    """Put the version before back into production.

    It is the version of the model NAME that was in production before the present one.
    """
    say(_promoted(rollback_model(open_engine(), name)))


def _promoted(done: Promotion) -> str:
    """The version that is in production now; if the version before was for another network, both networks."""
    model, replaced = done.model, done.replaced
    told = f"{model.model_name} version {model.version} is in production"
    if replaced is None or replaced.network_digest == model.network_digest:
        return told
    return f"{told}, for {model.network}; it replaces version {replaced.version}, for {replaced.network}"
