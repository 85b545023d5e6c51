"""The command line, ``triangulation``; its commands are in the files beside this one."""

from typing import Any

import click

from triangulation_pipeline.cli import listing, network, operate, run, serve, watch
from triangulation_pipeline.cli.home import INTERRUPTED
from triangulation_pipeline.cli.tables import say


class _Commands(click.Group):
    """Click itself ends with exit code 1 after Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("stopped", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="triangulation-pipeline")
def main() -> None:
    """Train, evaluate and register locators of radio transmitters for a network of receivers.

    The exit code is 0 when all went well; 1 when it did not, with the reason in one sentence; 2 for a wrong command
    line; and 130 after Ctrl-C.
    """


for command in (
    run.run,
    serve.ui,
    serve.webserver,
    operate.launch,
    operate.status,
    watch.watch,
    operate.pause,
    operate.cancel,
    operate.resume,
    listing.jobs,
    listing.metrics,
    listing.datasets,
    listing.models,
    listing.evaluations,
    operate.promote,
    operate.rollback,
    network.network,
):
    main.add_command(command)
