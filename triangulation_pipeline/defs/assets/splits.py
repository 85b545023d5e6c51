"""Training, validation and test split, by the hash of each sample's id."""

import dagster as dg
import numpy as np

from triangulation_pipeline.defs.io_managers import DatasetReference, SplitReference, StoredSplit
from triangulation_pipeline.defs.resources import Storage, preflight, refusals
from triangulation_pipeline.samples import Split
from triangulation_pipeline.storage.datasets import get_dataset


def _reference(
    context: dg.AssetExecutionContext, storage: Storage, dataset: DatasetReference, split: Split
) -> dg.MaterializeResult[SplitReference]:
    preflight(context, storage)
    with refusals():
        record = get_dataset(storage.engine, dataset.dataset_id)
    count = {Split.train: record.train_count, Split.val: record.val_count, Split.test: record.test_count}[split]
    return dg.MaterializeResult(
        value=SplitReference(dataset_id=record.id, split=split, count=count),
        metadata={
            "dagster/row_count": count,
            "share": count / record.num_samples,
            "dataset_id": record.id,
        },
        data_version=dg.DataVersion(f"{record.sha256}-{split.name}"),
    )


@dg.asset(io_manager_key="splits", kinds={"sqlalchemy"})
def training_split(
    context: dg.AssetExecutionContext, storage: Storage, synthetic_dataset: DatasetReference
) -> dg.MaterializeResult[SplitReference]:
    """70 % of the samples: those the model learns from."""
    return _reference(context, storage, synthetic_dataset, Split.train)


@dg.asset(io_manager_key="splits", kinds={"sqlalchemy"})
def validation_split(
    context: dg.AssetExecutionContext, storage: Storage, synthetic_dataset: DatasetReference
) -> dg.MaterializeResult[SplitReference]:
    """15 % of the samples: they stop the training; a third of them is kept back to calibrate the covariances."""
    return _reference(context, storage, synthetic_dataset, Split.val)


@dg.asset(io_manager_key="splits", kinds={"sqlalchemy"})
def test_split(
    context: dg.AssetExecutionContext, storage: Storage, synthetic_dataset: DatasetReference
) -> dg.MaterializeResult[SplitReference]:
    """15 % of the samples: seen by nothing but the evaluation."""
    return _reference(context, storage, synthetic_dataset, Split.test)


@dg.asset_check(
    asset=training_split,
    additional_ins={"validation_split": dg.AssetIn(), "test_split": dg.AssetIn()},
    blocking=True,
)
def splits_disjoint_and_complete(
    training_split: StoredSplit, validation_split: StoredSplit, test_split: StoredSplit
) -> dg.AssetCheckResult:
    """No sample is in two splits, and together they are the dataset: every index from 0 on, once."""
    batches = [split.batch for split in (training_split, validation_split, test_split)]
    ids = np.concatenate([batch.sample_id for batch in batches])
    indices = np.concatenate([batch.sample_index for batch in batches])
    repeated = len(ids) - len(np.unique(ids, axis=0))
    complete = np.array_equal(np.sort(indices), np.arange(len(indices)))
    return dg.AssetCheckResult(
        passed=repeated == 0 and complete,
        description=f"{len(ids):,} samples, {repeated} of them in more than one place; "
        f"indices {'are' if complete else 'are not'} 0 to {len(indices) - 1:,} without a gap",
        metadata={"samples": len(ids), "repeated": repeated},
    )
