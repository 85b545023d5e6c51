"""The code location of Dagster: it gathers the definitions, and does nothing else."""

import dagster as dg

from triangulation_pipeline.defs.assets.model_evaluation import checkpoint_is_sound, model_evaluation
from triangulation_pipeline.defs.assets.network_plan import network_plan
from triangulation_pipeline.defs.assets.receiver_network import receiver_network
from triangulation_pipeline.defs.assets.registered_model import registered_model
from triangulation_pipeline.defs.assets.splits import (
    splits_disjoint_and_complete,
    test_split,
    training_split,
    validation_split,
)
from triangulation_pipeline.defs.assets.synthetic_dataset import synthetic_dataset
from triangulation_pipeline.defs.assets.trained_model import trained_model
from triangulation_pipeline.defs.automation.conditions import evaluate_and_register
from triangulation_pipeline.defs.automation.runs import warn_of_wrong_run_config
from triangulation_pipeline.defs.automation.schedule import make_periodic_retraining
from triangulation_pipeline.defs.automation.sensors import network_file_changed, new_dataset
from triangulation_pipeline.defs.automation.settings import read_automation_settings
from triangulation_pipeline.defs.io_managers import CheckpointIOManager, ReferenceIOManager, SplitIOManager
from triangulation_pipeline.defs.jobs import train_locator
from triangulation_pipeline.defs.reconcile import job_reconciler
from triangulation_pipeline.defs.resources import Storage

storage = Storage()

defs = dg.Definitions(
    assets=[
        receiver_network,
        network_plan,
        synthetic_dataset,
        training_split,
        validation_split,
        test_split,
        trained_model,
        model_evaluation,
        registered_model,
    ],
    asset_checks=[splits_disjoint_and_complete, checkpoint_is_sound],
    jobs=[train_locator],
    sensors=[job_reconciler, new_dataset, network_file_changed, evaluate_and_register],
    schedules=[make_periodic_retraining(read_automation_settings())],
    resources={
        "storage": storage,
        "references": ReferenceIOManager(storage=storage),
        "splits": SplitIOManager(storage=storage),
        "checkpoints": CheckpointIOManager(storage=storage),
    },
    # One process per run: steps start thirty times faster, and nothing is left running when a worker is killed.
    executor=dg.in_process_executor,
)


def train_locator_job() -> dg.JobDefinition:
    """The job, by a function that Dagster can find again: it re-executes no job without one."""
    return defs.resolve_job_def(train_locator.name)


warn_of_wrong_run_config(train_locator_job)
