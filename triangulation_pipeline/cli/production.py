"""``triangulation promote | rollback``: which version of a model is in production."""

import click

from triangulation_pipeline.cli.home import open_engine
from triangulation_pipeline.cli.tables import say
from triangulation_pipeline.model.names import ModelName
from triangulation_pipeline.storage.registry import Promotion, promote_model, rollback_model
from triangulation_pipeline.validation import shown


@click.command()
@click.argument("model")
@click.argument("version", type=click.IntRange(min=1), required=False, metavar="")
def promote(model: str, version: int | None) -> None:
    """Put a version into production.

    MODEL, as in my-locator/3, replaces the version that is in production, even if that one is for another network. A
    version that did not pass its checks is refused.
    """
    # Reasons that older versions of this package stored say: promote my-locator 3.
    named = ModelName.parse(model) if version is None else ModelName(model, version)
    if named is None or named.version is None:
        raise click.UsageError(f"promote takes a name and a version, as in my-locator/3, got {shown(model)}")
    say(_promoted(promote_model(open_engine(), named.name, named.version)))


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
    told = f"{model.reference} is in production"
    if replaced is None or replaced.network_digest == model.network_digest:
        return told
    return f"{told}, for {model.network}; it replaces {replaced.reference}, for {replaced.network}"
