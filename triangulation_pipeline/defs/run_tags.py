"""Tags that distinguish runs in Dagster's lists and filters, and the sentence that a failed run ends with."""

from collections.abc import Iterable, Set

import dagster as dg

from triangulation_pipeline.defs.config import RunSettings
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.validation import brief, printable

NETWORK_TAG = "triangulation/network"
MODEL_NAME_TAG = "triangulation/model_name"
JOB_NAME_TAG = "triangulation/job_name"
REASON_TAG = "triangulation/reason"
"""The reason why an automatic run was launched."""
OUTCOME_TAG = "triangulation/outcome"
"""What Dagster's status does not tell: ``failed``, ``paused`` or ``cancelled``; and ``resumed`` in a run that continues
one of those, as it inherits their tags."""
OUTCOME_REASON_TAG = "triangulation/outcome_reason"

# In characters. A longer sentence is cut, as a tag cannot show it; the events of the run have the whole of it.
LONGEST_REASON = 300
# The status of a run already shows that it was terminated.
_INTERRUPTED = {"DagsterExecutionInterruptedError", "KeyboardInterrupt"}


def run_tags(
    settings: RunSettings,
    network: ReceiverNetwork | None = None,
    selection: Set[dg.AssetKey] | None = None,
) -> dict[str, str]:
    """The tags of a run by its settings: the names of its job and of its model, if the run makes these assets
    (``selection``; None = all), and its network, if that is known."""

    def makes(asset: str) -> bool:
        return not selection or dg.AssetKey(asset) in selection

    tags = {} if network is None else network_tag(network.name, network.digest)
    if makes("registered_model"):
        tags[MODEL_NAME_TAG] = settings.registered_model.model_name
    if makes("trained_model"):
        tags[JOB_NAME_TAG] = printable(settings.trained_model.job_name)
    return tags


def network_tag(name: str, digest: str) -> dict[str, str]:
    """The tag of a run for a network."""
    return {NETWORK_TAG: f"{printable(name)} ({digest[:8]})"}


def resumed_tags(run: dg.DagsterRun) -> dict[str, str]:
    """Tags that replace the outcome that a re-execution inherits from the run before it."""
    if OUTCOME_TAG not in run.tags:
        return {}
    return {OUTCOME_TAG: "resumed", OUTCOME_REASON_TAG: f"goes on from run {run.parent_run_id}"}


def outcome_tags(outcome: str, told: str) -> dict[str, str]:
    """The tags of how a run ended: the outcome, and the sentence of the reason."""
    return {OUTCOME_TAG: outcome, OUTCOME_REASON_TAG: brief(told, LONGEST_REASON)}


def first_failure(events: Iterable[dg.DagsterEvent]) -> tuple[str, str] | None:
    """The outcome and the sentence of a run with these events: of the first step or blocking check that failed.

    None if none failed, or if the run was terminated.
    """
    for event in events:
        if event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            evaluation = event.asset_check_evaluation_data
            if not evaluation.passed and evaluation.blocking:
                return "failed", f"{evaluation.check_name}: {evaluation.description}"
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data is not None and data.user_failure_data.description:
                outcome = data.user_failure_data.metadata.get("outcome")
                told = data.user_failure_data.description
                if outcome is not None:
                    return str(outcome.value), told
                return "failed", f"{event.step_key}: {told}"
            cause = data.error
            if cause is None or cause.cls_name in _INTERRUPTED:
                return None
            while cause.cause is not None:
                cause = cause.cause
            return "failed", f"{event.step_key}: {brief(cause.message)}"
    return None


def say_outcome(context: dg.InitResourceContext) -> None:
    """Called last in a run: tells why it failed, by a tag and by a log line below those on the skipped steps."""
    run, instance = context.run, context.instance
    if run is None or instance is None or context.log is None:
        return
    kinds = {dg.DagsterEventType.ASSET_CHECK_EVALUATION, dg.DagsterEventType.STEP_FAILURE}
    events = (entry.dagster_event for entry in instance.all_logs(run.run_id, of_type=kinds))
    found = first_failure(event for event in events if event is not None)
    if found is None:
        return
    outcome, told = found
    tags = outcome_tags(outcome, told)
    # Dagster tears down a resource once for itself, and once more for the I/O managers that use it.
    known = instance.get_run_by_id(run.run_id)
    if known is not None and tags.items() <= known.tags.items():
        return
    (context.log.error if outcome == "failed" else context.log.warning)(told)
    instance.add_run_tags(run.run_id, tags)
