"""The check of a dataset's quality, seen passing and failing, and a dataset that is used again."""

from collections.abc import Iterator

import dagster as dg
import pytest
from sqlalchemy import update

from triangulation_pipeline.plots import dataset, style
from triangulation_pipeline.storage.datasets import get_dataset, list_datasets
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
