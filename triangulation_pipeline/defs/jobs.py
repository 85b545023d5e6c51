"""The job that makes a model."""

import dagster as dg

# One run at a time on an instance trains or registers (so that production is compared with one challenger at a time);
# the pool's limit is set when the daemon is started (Makefile, docker/compose.yaml).
TRAINING_POOL = "training"

train_locator = dg.define_asset_job(
    "train_locator",
    selection=dg.AssetSelection.all(),
    description="From the receiver network to a registered model.",
)


def trains(run: dg.DagsterRun) -> bool:
    """Whether a run trains a model. Materialised from the asset graph, it is of Dagster's own job and says what it
    makes."""
    if run.asset_selection is None:
        return run.job_name == train_locator.name
    return dg.AssetKey("trained_model") in run.asset_selection
