"""The command line, ``triangulation``. Each command is in one of the files beside this one."""

from errno import ENOSPC
from importlib import import_module
from typing import Any

import click

from triangulation_pipeline.cli.tables import say
from triangulation_pipeline.errors import PipelineError
from triangulation_pipeline.validation import printable

INTERRUPTED = 130
"""The exit code after Ctrl-C."""

# The file of each command, and the first sentence of its help. The list of all commands is shown from here, so that it
# does not wait for what the commands import.
COMMANDS = {
    "run": ("run", "Run the whole graph in this process."),
    "ui": ("ui", "Start Dagster's pages and daemon."),
    "webserver": ("webserver", "Start the webserver alone."),
    "launch": ("launch", "Launch a run of the whole graph."),
    "status": ("operate", "Show the state of jobs."),
    "watch": ("watch", "Follow a job to its end."),
    "pause": ("operate", "Pause a job that trains."),
    "cancel": ("operate", "Cancel a job."),
    "resume": ("operate", "Continue a job that stopped."),
    "jobs": ("listing", "List the training jobs, the newest first."),
    "metrics": ("metrics", "List the epochs of a training job."),
    "datasets": ("listing", "List the datasets, the newest first."),
    "models": ("listing", "List the registered models by name."),
    "evaluations": ("listing", "List the evaluations, the newest first."),
    "promote": ("production", "Put a version into production."),
    "rollback": ("production", "Put the version before back into production."),
    "network": ("network", "Print a network file, or check one."),
    "plan": ("plan", "Show how well a network can locate."),
    "simulate": ("simulate", "Simulate a recording of a network."),
    "calibrate": ("calibrate", "Find clock biases and gains of the sites."),
    "locate": ("locate", "Locate the transmissions of a file."),
    "calibrations": ("listing", "List the calibrations, the newest first."),
}


def load_command(name: str) -> click.Command:
    """The command of that name, with its file imported."""
    file, _ = COMMANDS[name]
    command: click.Command = getattr(import_module(f"{__name__}.{file}"), name)
    return command


class _LazyCommands(click.Group):
    """Imports a command's file when the command is chosen, and ends every failure with one sentence."""

    def __init__(self, **options: Any) -> None:
        listed = {name: click.Command(name, help=sentence) for name, (_, sentence) in COMMANDS.items()}
        super().__init__(commands=listed, **options)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, None if listed is None else load_command(str(listed.name)), rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, PipelineError) as error:
            raise click.ClickException(printable(str(error))) from None
        except OSError as error:
            # Files say themselves that they cannot be written. A closed pipe is click's.
            if error.errno != ENOSPC:
                raise
            raise click.ClickException(f"standard output cannot be written: {error.strerror}") from None
        except KeyboardInterrupt as interrupt:
            # Click itself would end with exit code 1.
            say(str(interrupt) or "stopped", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=_LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="triangulation-pipeline")
def main() -> None:
    """Plan networks of radio receivers, locate transmitters, and train the locators.

    The exit code is 0 if all went well, 1 if it did not (the reason is printed in one sentence), 2 if the command line
    is wrong, and 130 after Ctrl-C.
    """
