"""The check of a dataset's quality, seen passing and failing, and a dataset that is used again."""

from collections.abc import Iterator

import dagster as dg
import pytest
from sqlalchemy import update

from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.layout import Layouts
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.plots import dataset, style
from triangulation_pipeline.samples import samples_digest
from triangulation_pipeline.storage.datasets import get_dataset, list_datasets, read_samples
from triangulation_pipeline.storage.tables import synthetic_datasets
from triangulation_pipeline_tests.conftest import make_home
from triangulation_pipeline_tests.defs.conftest import Run, execute, settings

STEPS = ["receiver_network", "synthetic_dataset"]
SMALL = settings(synthetic_dataset={"num_samples": 1000})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A home with one small dataset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(make_home(tmp_path_factory.mktemp("dataset") / "home")))
        patch.delenv("TRIANGULATION_DATABASE_URL", raising=False)
        patch.delenv("TRIANGULATION_OBJECT_STORE", raising=False)
        for name in ("dataset_map", "dataset_histograms"):
            patch.setattr(dataset, name, lambda *_: None)
        patch.setattr(style, "png", lambda _: b"a picture")
        run = execute(SMALL, STEPS)
        assert run.result.success
        yield run
        run.storage.close()
        run.instance.dispose()


def test_an_equal_dataset_is_used_again_and_has_no_speed(made: Run) -> None:
    again = execute(SMALL, STEPS, made.instance)
    before, now = made.metadata("synthetic_dataset"), again.metadata("synthetic_dataset")
    assert "samples_per_second" in before
    assert before.keys() - now.keys() == {"samples_per_second"}
    assert (before["reused"], now["reused"]) == (False, True)
    assert (now["dataset_id"], now["sha256"]) == (before["dataset_id"], before["sha256"])
    assert len(list_datasets(made.engine)) == 1


@pytest.mark.parametrize(
    ("heard", "good", "passed"), [(0.5, 0.001, True), (0.499, 0.9, False), (1.0, 0.0, False), (0.1, 0.0, False)]
)
def test_a_dataset_that_few_receivers_hear_or_without_good_geometry_is_a_warning(
    made: Run, heard: float, good: float, passed: bool
) -> None:
    """The run goes on all the same."""
    metrics = get_dataset(made.engine, made.metadata("synthetic_dataset")["dataset_id"]).quality_metrics
    with made.engine.begin() as connection:
        found = metrics | {"acceptance_rate": heard, "good_geometry_share": good}
        connection.execute(update(synthetic_datasets).values(quality_metrics=found))
    run = execute(SMALL, STEPS, made.instance)
    assert run.result.success
    (check,) = run.result.get_asset_check_evaluations()
    assert (check.check_name, check.passed, check.severity) == ("dataset_quality", passed, dg.AssetCheckSeverity.WARN)
    assert not check.blocking
    assert check.description == (
        f"{heard:.1%} of the candidate transmitters are heard by enough receivers (at least 50% expected); "
        f"{good:.1%} of the samples have GDOP < 5 (some expected)"
    )
    assert {name: value.value for name, value in check.metadata.items()} == {
        "acceptance_rate": heard,
        "lowest": 0.5,
        "good_geometry_share": good,
        "rows": 1000,
    }


RANDOM = settings(synthetic_dataset={"num_samples": 1000, "layouts": "random"})
SPLITS = ["training_split", "validation_split", "test_split"]


def test_a_dataset_over_random_networks_is_stored_split_and_used_again(made: Run) -> None:
    run = execute(RANDOM, STEPS + SPLITS, made.instance)
    assert run.result.success
    assert all(check.passed for check in run.result.get_asset_check_evaluations())
    found = run.metadata("synthetic_dataset")
    assert (found["layouts"], found["networks"]) == ("random", 2)
    record = get_dataset(made.engine, found["dataset_id"])
    assert (record.network_name, record.spec.network) == ("random layouts", None)
    stored = read_samples(made.engine, record.id)
    expected = simulate(DatasetSpec(None, Scenario(), 1000, 0, Layouts.random))
    assert samples_digest([stored]) == record.sha256 == samples_digest([expected])
    assert sum(run.metadata(split)["dagster/row_count"] for split in SPLITS) == 1000
    # Whatever network the run has: the dataset is not of it.
    by_id = RANDOM | {"ops": {"synthetic_dataset": {"config": {"dataset_id": record.id}}}}
    for run_config in (RANDOM, by_id):
        again = execute(run_config, STEPS, made.instance).metadata("synthetic_dataset")
        assert (again["reused"], again["sha256"]) == (True, record.sha256)
    own = made.metadata("synthetic_dataset")
    assert (own["layouts"], own["networks"]) == ("own", 1)
