"""The job that makes a model."""

import dagster as dg

train_locator = dg.define_asset_job(
    "train_locator",
    selection=dg.AssetSelection.all(),
    description="From the receiver network to a registered model.",
)
