"""Training, validation and test split, by the hash of each sample's id."""

import dagster as dg

from triangulation_pipeline.defs.io_managers import DatasetReference, SplitReference, StoredSplit, same_dataset
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.defs.step import step
from triangulation_pipeline.samples import SPLIT_VERSION, Split, split_fault
from triangulation_pipeline.storage.datasets import get_dataset


def _reference(storage: Storage, dataset: DatasetReference, split: Split) -> dg.MaterializeResult[SplitReference]:
    record = get_dataset(storage.engine, dataset.dataset_id)
    count = {Split.train: record.train_count, Split.val: record.val_count, Split.test: record.test_count}[split]
    return dg.MaterializeResult(
        value=SplitReference(dataset_id=record.id, sha256=record.sha256, split=split),
        metadata={
            "dagster/row_count": count,
            "share": count / record.num_samples,
            "dataset_id": record.id,
        },
        data_version=dg.DataVersion(f"{record.sha256}-{split.name}"),
    )


@dg.asset(group_name="simulation", io_manager_key="splits", kinds={"table"}, code_version=f"split {SPLIT_VERSION}")
@step
def training_split(
    context: dg.AssetExecutionContext, storage: Storage, synthetic_dataset: DatasetReference
) -> dg.MaterializeResult[SplitReference]:
    """70 % of the samples: those the model learns from."""
    return _reference(storage, synthetic_dataset, Split.train)


@dg.asset(group_name="simulation", io_manager_key="splits", kinds={"table"}, code_version=f"split {SPLIT_VERSION}")
@step
def validation_split(
    context: dg.AssetExecutionContext, storage: Storage, synthetic_dataset: DatasetReference
) -> dg.MaterializeResult[SplitReference]:
    """15 % of the samples: they say which epoch of the training is the best."""
    return _reference(storage, synthetic_dataset, Split.val)


@dg.asset(group_name="simulation", io_manager_key="splits", kinds={"table"}, code_version=f"split {SPLIT_VERSION}")
@step
def test_split(
    context: dg.AssetExecutionContext, storage: Storage, synthetic_dataset: DatasetReference
) -> dg.MaterializeResult[SplitReference]:
    """15 % of the samples: seen by nothing but the evaluation."""
    return _reference(storage, synthetic_dataset, Split.test)


@dg.asset_check(
    asset=training_split,
    additional_ins={"validation_split": dg.AssetIn(), "test_split": dg.AssetIn()},
    blocking=True,
)
def splits_disjoint_and_complete(
    training_split: StoredSplit, validation_split: StoredSplit, test_split: StoredSplit
) -> dg.AssetCheckResult:
    """No sample is in two splits, and together they are the dataset: every index from 0 on, once."""
    splits = (training_split, validation_split, test_split)
    try:
        same_dataset(
            training_split=training_split.dataset_id,
            validation_split=validation_split.dataset_id,
            test_split=test_split.dataset_id,
        )
    except ValueError as error:
        found: str | None = str(error)
    else:
        found = split_fault([split.batch for split in splits])
    training_rows, validation_rows, test_rows = (len(split.batch) for split in splits)
    count = training_rows + validation_rows + test_rows
    return dg.AssetCheckResult(
        passed=found is None,
        description=found or f"{count:,} samples, each in one split, with the indices from 0 on without a gap",
        metadata={
            "rows": count,
            "training_rows": training_rows,
            "validation_rows": validation_rows,
            "test_rows": test_rows,
        },
    )
