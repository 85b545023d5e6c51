"""Sensors and schedule with a daemon of their own, which is killed while it launches: each launches once."""

from pathlib import Path

import dagster as dg
import pytest

from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline_tests.defs.daemon import running_daemon, wait_for
from triangulation_pipeline_tests.defs.test_automation import OTHER, add_dataset, write_network, write_run_config

pytestmark = pytest.mark.stack


def launcher(run: dg.DagsterRun) -> str:
    return run.tags.get("dagster/sensor_name") or run.tags["dagster/schedule_name"]


def test_each_launches_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is launched stays queued: this is not about training.
    instance = home / "dagster.yaml"
    instance.write_text(
        instance.read_text().replace("concurrency:\n", "concurrency:\n  runs: {max_concurrent_runs: 0}\n")
    )
    write_run_config(home / "run.yaml", receiver_network={"network_file": "sites.yaml"})
    monkeypatch.setenv("TRIANGULATION_RUN_CONFIG", "run.yaml")
    monkeypatch.setenv("TRIANGULATION_RETRAIN_CRON", "* * * * *")
    monkeypatch.delenv("TRIANGULATION_RETRAIN_TIMEZONE", raising=False)
    write_network(home / "sites.yaml", NORTH_WEST_ITALY)
    storage = Storage()
    add_dataset(storage.engine)
    sensors = ("new_dataset", "network_file_changed")
    with running_daemon(home) as daemon:

        def launched(count: int) -> dg.DagsterRun:
            """The ``count``-th run; the daemon is killed the moment it exists, and started again."""
            wait_for(lambda: len(daemon.runs()) >= count, f"run {count}")
            daemon.kill()
            daemon.start()
            wait_for(lambda: daemon.runs()[-1].status is dg.DagsterRunStatus.QUEUED, f"run {count} in the queue")
            assert len(daemon.runs()) == count
            return daemon.runs()[-1]

        for name in sensors:
            daemon.turn_on("sensor", name)
        daemon.wait_for_tick(*sensors)
        assert daemon.runs() == []

        # A dataset of a new network, and the network's file: each is a reason to train, one after the other.
        write_network(home / "sites.yaml", OTHER)
        new = add_dataset(storage.engine, OTHER)
        storage.close()
        keys = {}
        for count in (1, 2):
            run = launched(count)
            keys[launcher(run)] = run.tags["dagster/run_key"]
            daemon.instance.report_run_canceled(run)
        assert set(keys) == set(sensors)
        assert keys["new_dataset"] == f"dataset:{new.id}"
        assert keys["network_file_changed"].startswith(f"network:{OTHER.digest}:")
        daemon.wait_for_tick(*sensors)
        assert len(daemon.runs()) == 2

        daemon.turn_on("schedule", "periodic_retraining")
        assert launcher(launched(3)) == "periodic_retraining"
        daemon.wait_for_tick("periodic_retraining")  # the next minute's leaves it at that, as one is queued
        assert len(daemon.runs()) == 3
