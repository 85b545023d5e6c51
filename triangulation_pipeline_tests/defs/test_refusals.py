"""Bad input and damage: one sentence, in the first step where possible, and nothing half-written."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableRepository
from sqlalchemy import text, update

from triangulation_pipeline.jobs.record import read_metrics
from triangulation_pipeline.jobs.states import get_job, list_jobs
from triangulation_pipeline.model.checkpoint import read_checkpoint
from triangulation_pipeline.samples import Split
from triangulation_pipeline.storage.datasets import get_dataset, list_datasets, read_samples
from triangulation_pipeline.storage.registry import get_model_of_job
from triangulation_pipeline.storage.tables import synthetic_datasets
from triangulation_pipeline.training.verify import fault
from triangulation_pipeline_tests.conftest import use_s3
from triangulation_pipeline_tests.defs.conftest import Run, execute, settings
from triangulation_pipeline_tests.storage.model_rows import list_models


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ({"trained_model": {"epochs": 0}}, "trained_model: epochs: Input should be greater than or equal to 1 (got 0)"),
        (
            {"trained_model": {"epochs": 3, "warmup_epochs": 3}},
            "trained_model: warmup_epochs (3) must be fewer than epochs (3)",
        ),
        (
            {"trained_model": {"learning_rate": True}},
            "trained_model: learning_rate: must be a number or a text, not true or false",
        ),
        (
            {"synthetic_dataset": {"scenario": {"shadowing_common_db": False}}},
            "synthetic_dataset: scenario: shadowing_common_db: must be a number or a text, not true or false",
        ),
        (
            {"synthetic_dataset": {"scenario": {"tx_power_w": [True], "tx_power_share": [1.0]}}},
            "synthetic_dataset: scenario: tx_power_w: must be a number or a text, not true or false",
        ),
        (
            {"model_evaluation": {"max_rmse_m": True}},
            "model_evaluation: max_rmse_m: must be a number or a text, not true or false",
        ),
        ({"trained_model": {"accelerator": "gpu"}}, "trained_model: accelerator: gpu was asked for"),
        ({"synthetic_dataset": {"num_samples": 999}}, "synthetic_dataset: num_samples: Input should be greater than"),
        (
            {"synthetic_dataset": {"scenario": {"path_loss": "hata"}}},
            "synthetic_dataset: path_loss hata holds for frequency_mhz from 150 to 1500, got 145",
        ),
        (
            {"synthetic_dataset": {"scenario": {"signal_bandwidth_khz": 25.0}}},
            "signal_bandwidth_khz (25) must not exceed noise_bandwidth_khz (12.5)",
        ),
        (
            {"synthetic_dataset": {"dataset_id": "00000000-0000-4000-8000-000000000000", "seed": 99}},
            "synthetic_dataset: dataset_id takes a dataset as it is: leave out num_samples, seed",
        ),
        (
            {"synthetic_dataset": {"dataset_id": "seven"}},
            "the id of a dataset must be a UUID of 36 characters, got something else",
        ),
        ({"receiver_network": {"network_file": "/no/such.yaml"}}, "network file /no/such.yaml does not exist"),
        ({"registered_model": {"model_name": "../up"}}, "registered_model: model_name: String should match pattern"),
        ({"registered_model": {"model_name": "up\n"}}, "registered_model: model_name: String should match pattern"),
        (
            {"trained_model": {"job_name": "night\x1b[2J"}},
            r"trained_model: job_name: must not hold control characters, has \x1b in place 6",
        ),
        (
            {"trained_model": {"description": "one\ntwo"}},
            r"trained_model: description: must not hold control characters, has \n in place 4",
        ),
        ({"model_evaluation": {"max_rmse_m": -1.0}}, "model_evaluation: max_rmse_m: Input should be greater than 0"),
    ],
)
def test_bad_settings_end_the_run_in_its_first_step(home: Path, steps: dict[str, Any], sentence: str) -> None:
    import torch

    if "gpu" in sentence and torch.cuda.is_available():
        pytest.skip("this machine has a GPU, so asking for one is no mistake")
    run = execute(settings(**steps))
    assert not run.result.success
    assert run.failed_step() == "receiver_network"
    assert sentence in run.failure()
    assert not (home / ".dagster" / "triangulation.db").exists(), "nothing was opened for it"
    assert list_datasets(run.engine) == []
    assert list_jobs(run.engine) == []


def by_reference(made: Run) -> dict[str, Any]:
    """Run config that takes the dataset another run made."""
    config = settings()
    config["ops"]["synthetic_dataset"]["config"] = {"dataset_id": made.metadata("synthetic_dataset")["dataset_id"]}
    return config


@pytest.mark.parametrize(
    ("step", "config"),
    [
        ("trained_model", {"epochz": 3}),
        ("trained_model", {"epochs": "many"}),
        ("trained_model", {"lr_scheduler": "steps"}),
        ("synthetic_dataset", {"preset": "mountains"}),
        ("synthetic_dataset", {"scenario": {"path_loss_expo": 3.0}}),
    ],
)
def test_wrong_names_types_and_choices_are_refused_at_launch(home: Path, step: str, config: dict[str, Any]) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError):
        execute(settings(**{step: config}))
    assert not (home / ".dagster" / "triangulation.db").exists()


def test_unknown_dataset(home: Path) -> None:
    config = settings()
    config["ops"]["synthetic_dataset"]["config"] = {"dataset_id": "00000000-0000-4000-8000-000000000000"}
    run = execute(config)
    assert "there is no dataset 00000000-0000-4000-8000-000000000000" in run.failure()
    assert list_jobs(run.engine) == []


def test_a_stored_name_forges_no_line_of_a_log(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a dataset that was written by other hands, or before names were looked at."""
    made = execute(settings(), ["receiver_network", "synthetic_dataset"])
    with made.engine.begin() as connection:
        connection.execute(update(synthetic_datasets).values(name="a\n2026-01-01 CRITICAL - forged\x1b[2J"))
    capfd.readouterr()
    config = by_reference(made) | {"loggers": {"console": {"config": {"log_level": "INFO"}}}}
    again = execute(config, ["receiver_network", "synthetic_dataset"], made.instance)
    assert again.result.success
    logged = capfd.readouterr().err
    assert r"synthetic_dataset: a\n2026-01-01 CRITICAL - forged\x1b[2J, " in logged
    assert "\n2026-01-01" not in logged
    assert "\x1b[2J" not in logged


def test_dataset_of_another_network(home: Path, tmp_path: Path) -> None:
    made = execute(settings(), ["receiver_network", "synthetic_dataset"])
    network = tmp_path / "three.yaml"
    network.write_text(
        "name: three\nsites:\n"
        "  - {name: a, lat: 45.0, lon: 7.0}\n  - {name: b, lat: 45.2, lon: 7.9}\n  - {name: c, lat: 44.6, lon: 8.3}\n"
    )
    config = by_reference(made)
    config["ops"]["receiver_network"] = {"config": {"network_file": str(network)}}
    run = execute(config)
    assert "was made for the network 'north-west-italy'" in run.failure()


def test_tampered_dataset_is_refused(home: Path) -> None:
    made = execute(settings(), ["receiver_network", "synthetic_dataset"])
    with made.engine.begin() as connection:
        connection.execute(text("UPDATE synthetic_training_samples SET tx_lat = tx_lat + 0.1 WHERE split = 'test'"))
    for same in (by_reference(made), settings()):
        run = execute(same)
        assert "was changed after it was written" in run.failure()
        assert list_jobs(run.engine) == []


@pytest.mark.parametrize("variable", ["TRIANGULATION_DATABASE_URL", "TRIANGULATION_OBJECT_STORE"])
def test_unwritable_places(home: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    (home / "file").write_text("not a folder")
    place = home / "file" / "below"
    monkeypatch.setenv(variable, f"sqlite:///{place}/t.db" if "URL" in variable else str(place))
    run = execute(settings())
    assert run.failed_step() == "receiver_network"
    assert "cannot be opened" in run.failure()


@pytest.mark.parametrize(
    ("variable", "address", "says"),
    [
        ("TRIANGULATION_DATABASE_URL", "postgresql://me:hunter2@127.0.0.1:1/db", "cannot be opened"),
        ("TRIANGULATION_DATABASE_URL", "postgresql://me:hunter@hunter2@127.0.0.1:1/db", "write %40 for @"),
        ("AWS_ENDPOINT_URL_S3", "http://me:hunter/2@127.0.0.1:1", "must be as in http://host:9000"),
    ],
)
def test_password_of_a_refused_place_is_in_no_event(
    home: Path, monkeypatch: pytest.MonkeyPatch, variable: str, address: str, says: str
) -> None:
    use_s3(monkeypatch, "")
    monkeypatch.setenv(variable, address)
    if variable.startswith("AWS"):
        monkeypatch.setenv("TRIANGULATION_OBJECT_STORE", "s3://bucket")
    run = execute(settings())
    assert run.failed_step() == "receiver_network"
    assert says in run.failure()
    for entry in run.instance.all_logs(run.run_id):
        assert "hunter" not in str(entry)


def test_damaged_checkpoint_is_neither_evaluated_nor_registered(home: Path) -> None:
    steps = ["receiver_network", "synthetic_dataset", "training_split", "validation_split", "test_split"]
    trained = execute(settings(), [*steps, "trained_model"])
    best = Path(trained.metadata("trained_model")["checkpoint"])
    best.write_bytes(best.read_bytes()[:-100])
    run = execute(settings(), ["model_evaluation", "registered_model"], trained.instance)
    assert not run.result.success
    assert "is damaged: its digest is" in run.failure()
    assert list_models(run.engine) == []


def test_training_that_cannot_save_its_state_leaves_a_failed_job_that_says_why(home: Path) -> None:
    objects = home / ".dagster" / "objects"
    objects.mkdir(parents=True)
    (objects / "checkpoints").write_text("a file where a folder has to be")
    run = execute(settings())
    job = get_job(run.engine, run.run_id)
    assert job.status == "failed"
    assert job.error_message == run.failure()
    assert "cannot be stored" in run.failure()
    assert job.current_epoch == 0
    assert list_models(run.engine) == []


@pytest.mark.faults
def test_reexecution_goes_on_where_the_training_stopped(home: Path) -> None:
    """As `Re-execute from failure` in the UI: the same job, each epoch once, the weights of never having stopped."""
    instance = dg.DagsterInstance.get()
    run_id = "6f1c2c5e-3a52-4d8a-8a0c-0d3f7a3a9b11"
    obstacle = home / ".dagster" / "objects" / "checkpoints" / run_id / "epoch_2.pth" / "a folder in the way"
    obstacle.mkdir(parents=True)
    failed = execute(settings(), instance=instance, run_id=run_id)
    job = get_job(failed.engine, run_id)
    assert (job.status, job.current_epoch) == ("failed", 1)

    obstacle.rmdir()
    obstacle.parent.rmdir()
    pipeline = ReconstructableRepository.for_module("triangulation_pipeline.definitions", "defs")
    with dg.execute_job(
        pipeline.get_reconstructable_job("train_locator"),
        instance,
        run_config=settings(),
        reexecution_options=dg.ReexecutionOptions.from_failure(run_id, instance),
    ) as again:
        assert again.success
        assert again.run_id != run_id
    job = get_job(failed.engine, run_id)
    assert (job.status, job.current_epoch) == ("completed", 4)
    assert [job.id for job in list_jobs(failed.engine)] == [run_id]
    assert list(read_metrics(failed.engine, run_id)["epoch"]) == [1, 2, 3, 4]

    whole = execute(settings(), instance=instance)
    files = [home / ".dagster" / "objects" / "checkpoints" / job_id for job_id in (run_id, whole.run_id)]
    weights = [read_checkpoint((file / "best_model.pth").read_bytes()).weights for file in files]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert get_model_of_job(whole.engine, run_id) == get_model_of_job(whole.engine, whole.run_id)


def test_early_stop_gives_back_the_best_epoch(home: Path) -> None:
    stops = {"epochs": 40, "early_stop_patience": 2, "early_stop_delta": 0.0, "learning_rate": 0.02}
    run = execute(settings(trained_model=stops | {"checkpoint_every": 1}))
    assert run.result.success
    job, model = get_job(run.engine, run.run_id), get_model_of_job(run.engine, run.run_id)
    assert job.status == "completed"
    assert job.current_epoch < 40
    history = read_metrics(run.engine, run.run_id).set_index("epoch")
    assert model.epoch == history["val_loss"].idxmin() < job.current_epoch
    checkpoint = read_checkpoint(Path(model.pytorch_model_location).read_bytes())
    assert checkpoint.epoch == model.epoch
    dataset = get_dataset(run.engine, model.synthetic_dataset_id)
    assert fault(checkpoint, dataset.spec, read_samples(run.engine, dataset.id, Split.val)) is None
    # Its weights are those that the epoch ended with, and not the last.
    folder = Path(model.pytorch_model_location).parent
    best, last = (
        read_checkpoint((folder / f"epoch_{epoch}.pth").read_bytes()).weights
        for epoch in (model.epoch, job.current_epoch)
    )
    assert all((checkpoint.weights[name] == best[name]).all() for name in best)
    assert not all((checkpoint.weights[name] == last[name]).all() for name in last)
    assert checkpoint.metrics["val_rmse_m"] == pytest.approx(history.loc[model.epoch, "val_rmse_m"])


def test_rss_is_honest(home: Path) -> None:
    run = execute(settings(synthetic_dataset={"preset": "rss"}))
    assert run.result.success
    model = get_model_of_job(run.engine, run.run_id)
    assert model.metrics["test_rmse_m"] > 20_000
    assert model.metrics["test_rmse_good_geom_m"] is None
    assert model.metrics["huber_gauss_newton_rmse_m"] is None
    assert not model.promoted
    assert "has GDOP < 5" in model.promotion_reason
