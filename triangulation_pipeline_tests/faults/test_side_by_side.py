"""Two processes that race for one new home."""

import json
import stat
import subprocess
from pathlib import Path

import pytest

from triangulation_pipeline_tests.test_cli import COMMAND, small_run, triangulation

pytestmark = pytest.mark.faults


def test_two_runs_side_by_side_then_what_they_left(home: Path) -> None:
    """Each trains on its own dataset, they get different versions, and every listing tells the same story."""
    configs = [small_run(home, synthetic_dataset={"seed": seed}) for seed in (1, 2)]
    processes = [
        subprocess.Popen(
            [*COMMAND, "run", "--json", "--config", config], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for config in configs
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    results = [json.loads(out) for out, _ in outputs]
    assert stat.S_IMODE((home / ".dagster").stat().st_mode) == 0o700
    assert sorted(result["version"] for result in results) == [1, 2]
    for _, err in outputs:
        assert "epoch 4/4" in err

    datasets = {row["dataset_id"]: row for row in json.loads(triangulation("datasets", "--json").stdout)}
    assert len(datasets) == 2
    models = {row["version"]: row for row in json.loads(triangulation("models", "--json").stdout)}
    for result in results:
        row = models[result["version"]]
        assert (row["job_id"], row["sha256"], row["dataset_id"]) == (
            result["job_id"],
            result["sha256"],
            result["dataset_id"],
        )
        history = json.loads(triangulation("metrics", result["job_id"], "--json").stdout)
        assert [epoch["epoch"] for epoch in history] == [1, 2, 3, 4]
        assert history[row["epoch"] - 1]["val_rmse_m"] == pytest.approx(result["metrics"]["val_rmse_m"])
    assert results[0]["dataset_id"] != results[1]["dataset_id"]
