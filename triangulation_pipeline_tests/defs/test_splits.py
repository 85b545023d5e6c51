"""The check that guards the splits, seen passing and failing."""

import uuid
from collections.abc import Sequence

import dagster as dg
import numpy as np
import pytest

from triangulation_pipeline.definitions import defs
from triangulation_pipeline.defs.assets.splits import splits_disjoint_and_complete
from triangulation_pipeline.defs.io_managers import StoredSplit
from triangulation_pipeline_tests.storage.conftest import make_batch

DATASET, OTHER = (str(uuid.UUID(int=number)) for number in (1, 2))
WHOLE = make_batch(0, 20)
TRAINING, VALIDATION, TEST = range(14), range(14, 17), range(17, 20)


def checked(
    training: Sequence[int] = TRAINING,
    validation: Sequence[int] = VALIDATION,
    test: Sequence[int] = TEST,
    datasets: Sequence[str] = (DATASET, DATASET, DATASET),
) -> dg.AssetCheckResult:
    """What the check says of splits of these rows of these datasets."""
    splits = [
        StoredSplit(dataset_id, WHOLE.take(np.array(rows, int)))
        for dataset_id, rows in zip(datasets, (training, validation, test), strict=True)
    ]
    result = splits_disjoint_and_complete(*splits)
    assert isinstance(result, dg.AssetCheckResult)
    return result


def test_splits_of_a_whole_dataset_pass_and_are_counted() -> None:
    result = checked()
    assert result.passed
    assert result.description == "20 samples, each in one split, with the indices from 0 on without a gap"
    assert {name: value.value for name, value in result.metadata.items()} == {
        "rows": 20,
        "training_rows": 14,
        "validation_rows": 3,
        "test_rows": 3,
    }


@pytest.mark.parametrize(
    ("training", "validation", "test", "told"),
    [
        (TRAINING, [*VALIDATION, 13], TEST, "1 of 21 samples are in more than one place"),
        (TRAINING, VALIDATION, [*TEST, 0, 1], "2 of 22 samples are in more than one place"),
        (TRAINING, [*VALIDATION, 17, 18, 19], TEST, "3 of 23 samples are in more than one place"),
        ([0, *TRAINING], VALIDATION, TEST, "1 of 21 samples are in more than one place"),
        (range(1, 14), VALIDATION, TEST, "the indices of the 19 samples are not 0 to 18, each once"),
        (TRAINING, [14, 16], TEST, "the indices of the 19 samples are not 0 to 18, each once"),
        ([], VALIDATION, TEST, "the indices of the 6 samples are not 0 to 5, each once"),
    ],
)
def test_a_row_in_two_splits_or_in_none_fails(
    training: Sequence[int], validation: Sequence[int], test: Sequence[int], told: str
) -> None:
    result = checked(training, validation, test)
    assert not result.passed
    assert result.description == told
    assert result.metadata["test_rows"].value == len(test)


@pytest.mark.parametrize("stranger", [0, 1, 2], ids=["training", "validation", "test"])
def test_splits_of_two_datasets_fail_however_well_they_fit(stranger: int) -> None:
    datasets = [DATASET, DATASET, DATASET]
    datasets[stranger] = OTHER
    result = checked(datasets=datasets)
    assert not result.passed
    assert result.description == (
        f"training_split is of dataset {datasets[0]}, validation_split of dataset {datasets[1]}, test_split of dataset "
        f"{datasets[2]}; materialise them in one run"
    )


def test_it_fails_as_an_error_and_lets_nothing_go_on() -> None:
    assert checked().severity is checked(training=[]).severity is dg.AssetCheckSeverity.ERROR
    key = dg.AssetCheckKey(dg.AssetKey("training_split"), "splits_disjoint_and_complete")
    assert defs.resolve_asset_graph().get_check_spec(key).blocking
