"""What follows a model that was trained alone, with a daemon of its own."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from triangulation_pipeline_tests.defs.conftest import Run, execute, settings
from triangulation_pipeline_tests.defs.daemon import running_daemon, wait_for

pytestmark = pytest.mark.stack


def test_it_is_evaluated_and_registered_once(home: Path) -> None:
    with running_daemon(home) as daemon:
        daemon.turn_on("sensor", "evaluate_and_register")
        daemon.wait_for_tick("evaluate_and_register")

        def made(selection: list[str] | None, **steps: dict[str, Any]) -> Run:
            run = execute(settings(**steps), selection, daemon.instance)
            assert run.result.success
            return run

        made(None)
        daemon.wait_for_tick("evaluate_and_register")
        assert len(daemon.runs()) == 1, "a run of the whole graph has evaluated and registered"

        trained = made(["trained_model"], trained_model={"seed": 5})
        wait_for(lambda: len(daemon.runs()) == 3, "the run that evaluates and registers")
        run = daemon.runs()[-1]
        assert run.asset_selection == {dg.AssetKey("model_evaluation"), dg.AssetKey("registered_model")}
        wait_for(lambda: daemon.runs()[-1].is_finished, "its end")
        assert daemon.runs()[-1].status is dg.DagsterRunStatus.SUCCESS
        latest = daemon.instance.get_latest_materialization_event(dg.AssetKey("registered_model"))
        assert latest is not None
        assert latest.asset_materialization is not None
        metadata = latest.asset_materialization.metadata
        assert metadata["sha256"].value == trained.metadata("trained_model")["sha256"]
        assert metadata["version"].value == 2
        daemon.kill()
        daemon.start()

        # A new dataset alone leaves the models alone.
        made(["receiver_network", "synthetic_dataset", "training_split", "validation_split", "test_split"])
        daemon.wait_for_tick("evaluate_and_register")
        assert len(daemon.runs()) == 4
