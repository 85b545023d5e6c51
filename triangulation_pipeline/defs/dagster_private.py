"""All that this package uses of Dagster's private modules, as Dagster does not export these.

So a new version of Dagster is checked against this file, and against ``ui.py`` and ``webserver.py``, which exchange
parts of Dagster's programs.
"""

import dagster as dg

# The program `dagster dev`.
from dagster._cli import dev

# A terminated run raises it within a step. It is a BaseException, so that `except Exception` does not catch it. The job
# is marked as cancelled where it is caught.
from dagster._core.errors import DagsterExecutionInterruptedError

# The states of runs that have not ended. A list of our own would miss a state that a later version adds.
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

# Whether a schedule accepts a cron string. Dagster's own message on a wrong one names no variable.
from dagster._utils.schedules import is_valid_cron_string

__all__ = [
    "NOT_FINISHED_STATUSES",
    "DagsterExecutionInterruptedError",
    "begin_retries_here",
    "dev",
    "is_valid_cron_string",
]


def begin_retries_here(instance: dg.DagsterInstance) -> None:
    """Makes the daemon retry runs that fail from now on. On a new instance it would do so by itself, but with a warning
    that means nothing to a person who starts it for the first time."""
    # A fifth of a second, which runs need not wait.
    from dagster._daemon.auto_run_reexecution import event_log_consumer as consumer

    keys = {consumer._create_cursor_key(event_type) for event_type in consumer.DAGSTER_EVENT_TYPES}
    missing = keys - instance.daemon_cursor_storage.get_cursor_values(keys).keys()
    if missing:
        last = str(instance.event_log_storage.get_maximum_record_id() or 0)
        instance.daemon_cursor_storage.set_cursor_values(dict.fromkeys(missing, last))
