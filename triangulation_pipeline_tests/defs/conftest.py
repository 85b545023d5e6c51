"""One small run of the whole graph that many tests look at, and the means to make others."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableRepository
from sqlalchemy import Engine

from triangulation_pipeline.definitions import defs
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.evaluation import reference
from triangulation_pipeline.physics import plan
from triangulation_pipeline_tests.conftest import make_home

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def settings(**steps: dict[str, Any]) -> dict[str, Any]:
    """Run config of a run that takes seconds, and what differs from it by step."""
    small: dict[str, dict[str, Any]] = {
        "synthetic_dataset": {"num_samples": 3000},
        "trained_model": {"epochs": 4, "warmup_epochs": 1, "accelerator": "cpu", "checkpoint_every": 2},
    }
    merged = {step: small.get(step, {}) | steps.get(step, {}) for step in {*small, *steps}}
    return QUIET | {"ops": {step: {"config": config} for step, config in merged.items()}}


@dataclass(frozen=True)
class Run:
    """A run and the places it left things in."""

    result: dg.ExecuteInProcessResult
    instance: dg.DagsterInstance
    storage: Storage

    @property
    def run_id(self) -> str:
        return self.result.run_id

    @property
    def engine(self) -> Engine:
        return self.storage.engine

    def metadata(self, asset: str) -> dict[str, Any]:
        """Metadata of this run's materialisation of an asset."""
        (found,) = (m for m in self.result.get_asset_materialization_events() if m.asset_key == dg.AssetKey(asset))
        return {
            name: [record.data for record in value.records] if isinstance(value, dg.TableMetadataValue) else value.value
            for name, value in found.materialization.metadata.items()
        }

    def failure(self) -> str:
        """The sentence of the step that failed."""
        (event,) = (e for e in self.result.all_events if e.is_step_failure)
        data = event.step_failure_data
        assert data.user_failure_data is not None, data.error
        return str(data.user_failure_data.description)

    def failed_step(self) -> str:
        (event,) = (e for e in self.result.all_events if e.is_step_failure)
        return str(event.step_key)


def execute(
    config: dict[str, Any],
    selection: list[str] | None = None,
    instance: dg.DagsterInstance | None = None,
    run_id: str | None = None,
    location: dg.Definitions = defs,
) -> Run:
    """Runs the shipped job in the environment's home."""
    instance = instance or dg.DagsterInstance.get()
    job = location.resolve_job_def("train_locator")
    result = job.execute_in_process(
        instance=instance,
        run_config=config,
        asset_selection=None if selection is None else [dg.AssetKey(name) for name in selection],
        raise_on_error=False,
        run_id=run_id,
    )
    return Run(result, instance, Storage())


def reexecute(run: Run) -> None:
    """As `Re-execute from failure` in the UI, with the same settings; it succeeds."""
    job = ReconstructableRepository.for_module("triangulation_pipeline.definitions", "defs")
    with dg.execute_job(
        job.get_reconstructable_job("train_locator"),
        run.instance,
        run_config=settings(),
        reexecution_options=dg.ReexecutionOptions.from_failure(run.run_id, run.instance),
    ) as again:
        assert again.success


@pytest.fixture(scope="module", autouse=True)
def short_reference() -> Iterator[None]:
    """The exact posterior on 60 rows of an evaluation, and a plan by few draws: a tenth of a second each instead of one
    or two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "DRAWS", 32)
        patch.setattr(plan, "SEARCHED_PLACES", 4)
        patch.setattr(reference, "REFERENCE_LINKS", 7 * 60)
        yield


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The whole graph, once a module."""
    with pytest.MonkeyPatch.context() as patch:
        folder: Path = make_home(tmp_path_factory.mktemp("whole") / "home")
        patch.setenv("DAGSTER_HOME", str(folder))
        patch.setenv("TRIANGULATION_DATABASE_URL", f"sqlite:///{folder}/elsewhere/some.db")
        patch.setenv("TRIANGULATION_OBJECT_STORE", str(folder / "elsewhere" / "objects"))
        run = execute(settings())
        assert run.result.success
        yield run
        run.storage.close()
        run.instance.dispose()
