"""A run on the terminal: a progress bar, this package's log lines, and nothing else."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from triangulation_pipeline.cli.tables import plain


@contextmanager
def only_console(stream: TextIO) -> Iterator[Console]:
    """A console on the target of the stream. Meanwhile nothing else reaches standard output and standard error.

    During a run Dagster redirects both to its compute logs, so that rich would see no terminal. Its child processes
    copy those logs to the former targets: into a progress bar, and at Ctrl-C together with their tracebacks.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with os.fdopen(os.dup(stream.fileno()), "w", encoding=stream.encoding, errors=stream.errors) as file:
        try:
            for number in kept:
                os.dup2(nowhere, number)
            yield Console(file=file)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in kept.items():
                os.dup2(copy, number)
                os.close(copy)
            os.close(nowhere)


class _ProgressHandler(logging.Handler):
    """Prints this package's log lines above the progress bar, and moves the bar with the epochs."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self.progress = progress
        self.task = progress.add_task("working", total=None)

    def emit(self, record: logging.LogRecord) -> None:
        console = self.progress.console
        # If nobody reads the output any more, as in `triangulation run | head`, the run continues.
        with suppress(OSError, SystemExit), _undivided():
            console.print(plain(record.getMessage()), soft_wrap=not console.is_terminal)
        if hasattr(record, "current_epoch") and hasattr(record, "total_epochs"):
            self.progress.update(
                self.task, description="training", completed=record.current_epoch, total=record.total_epochs
            )
        else:
            self.progress.update(self.task, description="working", completed=0, total=None)


@contextmanager
def _undivided() -> Iterator[None]:
    """Holds interrupts back until its end: rich would show a line twice if it is interrupted while writing it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for arrived in came:
            signal.raise_signal(arrived)


@contextmanager
def progress_on(console: Console) -> Iterator[None]:
    """Context manager: shows this package's log lines, and a bar that moves with the epochs."""
    logger = logging.getLogger("triangulation_pipeline")
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    # What steps print goes to the compute logs.
    bar = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
    with bar as progress:
        handler = _ProgressHandler(progress)
        level, propagate = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
