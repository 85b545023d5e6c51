"""The sensors that launch a training: on a new dataset, and when the network file changes. Both are off until somebody
turns them on.

Nothing is launched twice: a run key names what a run is for, a cursor remembers what was seen, and Dagster keeps both
if its daemon restarts. No training is launched while one is queued or in progress.
"""

import json

import dagster as dg

from triangulation_pipeline.defs.automation.runs import (
    MINIMUM_INTERVAL_S,
    RUN_CONFIG_VARIABLE,
    automatic_run_config,
    job_of,
    training_under_way,
    with_dataset,
)
from triangulation_pipeline.defs.config import network_path
from triangulation_pipeline.defs.jobs import train_locator
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.defs.run_tags import REASON_TAG, network_tag, run_tags
from triangulation_pipeline.storage.datasets import list_untrained_datasets
from triangulation_pipeline.storage.registry import find_production_model
from triangulation_pipeline.validation import printable


@dg.sensor(
    job=train_locator,
    minimum_interval_seconds=MINIMUM_INTERVAL_S,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Launches a training on each dataset that was written, or expanded, after this was turned on, that no "
    "run has trained on, and that is of the network of automatic runs. These take their settings from the file "
    "TRIANGULATION_RUN_CONFIG.",
)
def new_dataset(context: dg.SensorEvaluationContext, storage: Storage) -> dg.SensorResult | dg.SkipReason:
    """Looks for a dataset that no run has trained on, and asks for a training on it."""
    # The datasets are read first. Then a dataset that a training made is only seen while its run is under way, or after
    # the run has its job.
    untrained = list_untrained_datasets(storage.engine)
    if not context.cursor:
        return dg.SensorResult(
            skip_reason=f"from now on: datasets without a training that exist are left alone ({len(untrained)})",
            cursor=json.dumps([dataset.id for dataset in untrained]),
        )
    if busy := training_under_way(context.instance):
        return dg.SkipReason(busy)
    try:
        run_config, settings = automatic_run_config(job_of(context))
        trained_on = settings.synthetic_dataset.spec(settings.network)
    except ValueError as error:
        return dg.SkipReason(str(error))
    known = set(json.loads(context.cursor)) & {dataset.id for dataset in untrained}
    new = [dataset for dataset in untrained if dataset.id not in known]
    of_network = [dataset for dataset in new if dataset.network_digest == trained_on.network_digest]
    if not of_network:
        others = ", ".join(printable(f"{dataset.name} of {dataset.network_name}") for dataset in new)
        return dg.SkipReason(
            f"new datasets are of another network than {trained_on.network_name} ({trained_on.network_digest[:8]}): "
            f"{others}"
            if new
            else "there is no new dataset"
        )
    dataset = of_network[0]
    run_config = with_dataset(run_config, dataset_id=dataset.id)
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_key=f"dataset:{dataset.id}",
                run_config=run_config,
                tags=run_tags(settings)
                | network_tag(dataset.network_name, dataset.network_digest)
                | {REASON_TAG: f"new dataset {printable(dataset.name)}"},
            )
        ],
        # Datasets that have a training by now need not be remembered: the query no longer gives them.
        cursor=json.dumps(sorted(known | {dataset.id})),
    )


@dg.sensor(
    job=train_locator,
    minimum_interval_seconds=MINIMUM_INTERVAL_S,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Launches a training when the network file that TRIANGULATION_RUN_CONFIG names (network_file of "
    "receiver_network) has changed; when first turned on, where the model in production is for another network. The "
    "first model of a new network is not promoted by itself.",
)
def network_file_changed(context: dg.SensorEvaluationContext, storage: Storage) -> dg.SensorResult | dg.SkipReason:
    """Compares the network file with the network of the last training, and asks for a training if they differ."""
    try:
        run_config, settings = automatic_run_config(job_of(context))
        name = settings.receiver_network.network_file
        if not name:
            return dg.SkipReason(
                f"{RUN_CONFIG_VARIABLE} names no network_file of receiver_network: automatic runs train on the default "
                "network, which does not change"
            )
        # The time is read before the content: a file that is replaced in between can only have a newer time.
        modified_ns = network_path(name).stat().st_mtime_ns
        network = settings.receiver_network.network()
    except ValueError as error:
        return dg.SkipReason(str(error))
    except OSError as error:
        return dg.SkipReason(f"the network file cannot be read: {error.strerror}")
    before = context.cursor
    if not before:
        production = find_production_model(storage.engine, settings.registered_model.model_name)
        before = network.digest if production is None else production.network_digest
    if before == network.digest:
        return dg.SensorResult(skip_reason=f"{network.name} ({before[:8]}) has not changed", cursor=before)
    if busy := training_under_way(context.instance):
        return dg.SkipReason(busy)
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                # With the time of the file, as a file may be changed, and changed back.
                run_key=f"network:{network.digest}:{modified_ns}",
                run_config=run_config,
                tags=run_tags(settings, network)
                | {REASON_TAG: f"network {printable(network.name)} is {network.digest[:8]}, was {before[:8]}"},
            )
        ],
        cursor=network.digest,
    )
