"""What a run of the whole graph leaves behind, seen from outside: rows, objects, metadata, checks."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
import torch
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest
from sqlalchemy import text

from triangulation_pipeline.definitions import defs
from triangulation_pipeline.defs.assets.model_evaluation import checkpoint_is_sound, pictures_of
from triangulation_pipeline.defs.io_managers import CheckpointReference, StoredCheckpoint, StoredSplit
from triangulation_pipeline.evaluation.comparison import compare
from triangulation_pipeline.evaluation.report import estimator_table, group_table, posterior_table
from triangulation_pipeline.evaluation.summary import COVERAGE_LEVELS, Subset, Summary
from triangulation_pipeline.evaluation.verdict import EVALUATION_CHECKS
from triangulation_pipeline.frame import haversine_m
from triangulation_pipeline.jobs.record import read_metrics
from triangulation_pipeline.jobs.states import get_job
from triangulation_pipeline.model.checkpoint import Checkpoint, DatasetReference, read_checkpoint, write_checkpoint
from triangulation_pipeline.model.predict import locate_samples
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.layout import Layouts
from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
from triangulation_pipeline.plots import evaluation as plots
from triangulation_pipeline.samples import Samples, Split
from triangulation_pipeline.storage.datasets import DatasetRecord, get_dataset, read_samples
from triangulation_pipeline.storage.evaluations import EvaluationRecord, get_evaluation
from triangulation_pipeline.storage.registry import get_model_by_id, get_model_of_job
from triangulation_pipeline_tests.defs.conftest import QUIET, Run, execute, settings
from triangulation_pipeline_tests.evaluation.conftest import some_comparison
from triangulation_pipeline_tests.storage.conftest import keys_of
from triangulation_pipeline_tests.storage.model_rows import list_models

SPLITS = {"training_split": Split.train, "validation_split": Split.val, "test_split": Split.test}


def test_one_row_an_epoch_and_the_job_is_completed(whole_run: Run) -> None:
    job = get_job(whole_run.engine, whole_run.run_id)
    assert (job.status, job.current_epoch, job.total_epochs, job.progress_percent) == ("completed", 4, 4, 100.0)
    with whole_run.engine.connect() as connection:
        epochs = connection.execute(
            text("SELECT epoch FROM training_metrics WHERE training_job_id = :job ORDER BY epoch"),
            {"job": whole_run.run_id},
        ).scalars()
        assert list(epochs) == [1, 2, 3, 4]


def test_table_in_the_metadata_is_the_stored_history(whole_run: Run) -> None:
    records = whole_run.metadata("trained_model")["epochs"]
    history = read_metrics(whole_run.engine, whole_run.run_id)
    assert records == history.astype(object).where(history.notna(), None).to_dict("records")


def test_live_observations_are_the_stored_history(whole_run: Run) -> None:
    found = whole_run.instance.fetch_observations(dg.AssetKey("trained_model"), limit=100).records
    live = [record.asset_observation.metadata["metrics"].value for record in found]
    history = read_metrics(whole_run.engine, whole_run.run_id)
    assert live[::-1] == history.astype(object).where(history.notna(), None).to_dict("records")


def test_an_observation_is_a_picture_first_and_nothing_that_dagster_draws(whole_run: Run) -> None:
    for record in whole_run.instance.fetch_observations(dg.AssetKey("trained_model"), limit=100).records:
        assert record.asset_observation is not None
        metadata = record.asset_observation.metadata
        assert [(name, type(value)) for name, value in metadata.items()] == [
            ("curves", dg.MarkdownMetadataValue),
            ("metrics", dg.JsonMetadataValue),
        ]
        assert str(metadata["curves"].value).startswith("![training curves](data:image/png;base64,")
        assert len(str(metadata["curves"].value)) < 50_000


def test_a_long_run_observes_a_bounded_number_of_epochs_the_first_and_the_last(
    whole_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triangulation_pipeline.defs.assets.trained_model.OBSERVED_EPOCHS", 3)
    config = settings(trained_model={"epochs": 8, "early_stop_patience": 0})
    run = execute(config, ["trained_model"], whole_run.instance)
    events = whole_run.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION)
    seen = [event.asset_observation.metadata["metrics"].value["epoch"] for event in events]
    assert seen == [1, 3, 6, 8]


def test_dagster_draws_few_numbers_from_run_to_run(whole_run: Run) -> None:
    def drawn(asset: str) -> set[str]:
        values = whole_run.metadata(asset).items()
        return {name for name, value in values if isinstance(value, int | float) and not isinstance(value, bool)}

    model = {"val_loss", "val_rmse_good_geom_m", "val_distance_p50_m", "val_coverage_95", "epoch"}
    assert drawn("trained_model") == {f"best_{name}" for name in model} | {"epochs_run"}
    best = json.loads(json.dumps(whole_run.metadata("trained_model")["best_metrics"]))
    assert whole_run.metadata("trained_model")["best_val_coverage_95"] == best["val_coverage_95"]
    headline = {
        "test_rmse_good_geom_m",
        "test_p50_good_geom_m",
        "test_p95_good_geom_m",
        "test_coverage_95_good_geom",
        "huber_gauss_newton_p95_good_geom_m",
        "crlb_rms_good_geom_m",
        "test_rmse_m",
    }
    assert drawn("model_evaluation") == headline
    assert drawn("registered_model") == headline | {"version", "epoch"}


def test_registered_model_is_the_best_epochs_file(whole_run: Run) -> None:
    model = get_model_of_job(whole_run.engine, whole_run.run_id)
    content = Path(model.pytorch_model_location).read_bytes()
    assert model.sha256 == hashlib.sha256(content).hexdigest()
    assert (model.model_name, model.version, model.is_active) == ("rf-triangulation", 1, True)

    history = read_metrics(whole_run.engine, whole_run.run_id).set_index("epoch")
    assert model.epoch == history["val_loss"].idxmin()
    assert model.metrics["val_rmse_m"] == pytest.approx(history.loc[model.epoch, "val_rmse_m"])
    assert model.metrics["val_coverage_95"] == history.loc[model.epoch, "val_coverage_95"]

    checkpoint = read_checkpoint(content)
    assert checkpoint.epoch == model.epoch
    assert checkpoint.dataset.dataset_id == model.synthetic_dataset_id


def test_objects_are_the_documented_ones(whole_run: Run) -> None:
    keys = keys_of(whole_run.storage.objects, f"checkpoints/{whole_run.run_id}/")
    names = [key.removeprefix(f"checkpoints/{whole_run.run_id}/") for key in keys]
    job = get_job(whole_run.engine, whole_run.run_id)
    assert job.state_location is not None
    state = whole_run.storage.objects.key(job.state_location).removeprefix(f"checkpoints/{whole_run.run_id}/")
    assert state.startswith("state/4-")
    assert sorted(names) == sorted(["best_model.pth", "epoch_2.pth", "epoch_4.pth", "final_model.pth", state])


def test_everything_lands_where_the_environment_says(whole_run: Run) -> None:
    home = Path(whole_run.storage.settings.object_store).parent
    assert (home / "some.db").is_file()
    assert not (home.parent / ".dagster" / "triangulation.db").exists()
    assert not (home.parent / ".dagster" / "objects").exists()


def test_evaluation_is_stored_with_its_pictures(whole_run: Run) -> None:
    with whole_run.engine.connect() as connection:
        row = connection.execute(text("SELECT * FROM model_evaluations")).mappings().one()
    metrics, pictures = json.loads(row["metrics"]), json.loads(row["visualization_paths"])
    assert row["model_id"] == get_model_of_job(whole_run.engine, whole_run.run_id).id
    assert metrics["good_geometry"]["estimators"]["huber_gauss_newton"]["rmse_m"] > 0
    assert set(pictures) == {"error_cdf", "calibration_curve", "error_map"}
    for location in pictures.values():
        assert Path(location).read_bytes().startswith(b"\x89PNG")


def test_checks_ran_and_the_blocking_ones_passed(whole_run: Run) -> None:
    passed = {e.check_name: e.passed for e in whole_run.result.get_asset_check_evaluations()}
    assert set(passed) == {
        "dataset_quality",
        "splits_disjoint_and_complete",
        "checkpoint_is_sound",
        *(check.name for check in EVALUATION_CHECKS),
        "not_worse_than_production",
    }
    assert passed["splits_disjoint_and_complete"]
    assert passed["checkpoint_is_sound"]
    model = get_model_of_job(whole_run.engine, whole_run.run_id)
    warnings = (*(check.name for check in EVALUATION_CHECKS), "not_worse_than_production")
    assert model.promoted == all(passed[name] for name in warnings)
    assert model.is_production == model.promoted


def test_every_check_has_the_numbers_it_was_decided_by(whole_run: Run) -> None:
    numbers = {e.check_name: set(e.metadata) for e in whole_run.result.get_asset_check_evaluations()}
    assert numbers == {
        "dataset_quality": {"acceptance_rate", "lowest", "good_geometry_share", "rows"},
        "splits_disjoint_and_complete": {"rows", "training_rows", "validation_rows", "test_rows"},
        "checkpoint_is_sound": {"val_rmse_m", "rows", "epoch", "sha256"},
        "accuracy": {"rmse_m", "limit_m", "rows"},
        "calibration": {*COVERAGE_LEVELS, "rows"},
        "calibration_by_arrival_times": {f"{name}_of_7_and_more" for name in COVERAGE_LEVELS},
        "near_exact_posterior": {"rmse_excess", "rmse_excess_error", "nats_below", "nats_below_error", "rows"},
        "better_than_classical": {"p95_m", "limit_m", "rows"},
        "not_worse_than_production": set(),  # there was none
    }


def test_the_lines_on_inputs_are_short_and_name_them(whole_run: Run) -> None:
    lines = [
        entry.user_message
        for entry in whole_run.instance.all_logs(whole_run.run_id)
        if " by lineage: " in entry.user_message
    ]
    assert "receiver_network by lineage: network north-west-italy" in lines
    dataset_id = whole_run.metadata("synthetic_dataset")["dataset_id"]
    assert any(line.startswith(f"synthetic_dataset by lineage: dataset_id {dataset_id}, sha256 ") for line in lines)
    assert max(map(len, lines)) < 300


def test_numbers_in_the_metadata_are_finite(whole_run: Run) -> None:
    for asset in ("synthetic_dataset", "trained_model", "model_evaluation", "registered_model"):
        for name, value in whole_run.metadata(asset).items():
            if isinstance(value, float):
                assert np.isfinite(value), f"{asset}.{name}"


def test_events_stay_small(whole_run: Run) -> None:
    for asset in ("synthetic_dataset", "trained_model", "model_evaluation"):
        for name, value in whole_run.metadata(asset).items():
            if isinstance(value, str):
                assert len(value) < 70_000, f"{asset}.{name}"  # 50 kB of picture in base64


def test_a_dataset_that_a_run_does_not_make_is_not_held_against_a_network_that_it_does_not_make(whole_run: Run) -> None:
    config = settings(
        receiver_network={"network_file": "/no/such.yaml"}, synthetic_dataset={"scenario": {"path_loss": "hata"}}
    )
    assert execute(config, ["training_split"], whole_run.instance).result.success


def data_versions(run: Run) -> dict[str, str]:
    """By asset, of what the run made."""
    found = run.result.get_asset_materialization_events()
    return {
        event.asset_key.to_user_string(): (event.materialization.tags or {})["dagster/data_version"] for event in found
    }


@pytest.fixture(scope="module")
def dataset(whole_run: Run) -> DatasetRecord:
    return get_dataset(whole_run.engine, whole_run.metadata("synthetic_dataset")["dataset_id"])


@pytest.fixture(scope="module")
def batches(whole_run: Run, dataset: DatasetRecord) -> dict[Split, Samples]:
    return {split: read_samples(whole_run.engine, dataset.id, split) for split in Split}


@pytest.fixture(scope="module")
def content(whole_run: Run) -> bytes:
    """Of the best epoch's file."""
    return Path(whole_run.metadata("trained_model")["checkpoint"]).read_bytes()


@pytest.fixture(scope="module")
def evaluation(whole_run: Run) -> EvaluationRecord:
    return get_evaluation(whole_run.engine, whole_run.metadata("model_evaluation")["evaluation_id"])


def five_digits(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def test_the_network_is_shown_whole(whole_run: Run) -> None:
    shown = whole_run.metadata("receiver_network")
    assert (shown["network_name"], shown["num_sites"]) == ("north-west-italy", 7)
    assert shown["network_digest"] == NORTH_WEST_ITALY.digest == data_versions(whole_run)["receiver_network"]
    for number, (site, row) in enumerate(zip(NORTH_WEST_ITALY.sites, shown["sites"], strict=True), 1):
        assert row == {"number": number, **site.model_dump(mode="json")}


def test_the_dataset_is_the_one_of_the_settings(whole_run: Run, dataset: DatasetRecord) -> None:
    spec = DatasetSpec(NORTH_WEST_ITALY, PRESETS[Preset.default], 3000, 0)
    assert dataset.id == spec.dataset_id
    assert dataset.name == f"default-north-west-italy-3000-{dataset.id[:8]}"
    assert dataset.config == spec.description()
    assert (dataset.network_name, dataset.network_digest) == ("north-west-italy", NORTH_WEST_ITALY.digest)
    shown = whole_run.metadata("synthetic_dataset")
    assert {name: shown[name] for name in ("dagster/row_count", "dataset_name", "sha256", "reused", "scenario")} == {
        "dagster/row_count": 3000,
        "dataset_name": dataset.name,
        "sha256": dataset.sha256,
        "reused": False,
        "scenario": PRESETS[Preset.default].model_dump(mode="json", exclude_none=True),
    }
    assert 0 < shown["samples_per_second"] < 10**6
    assert dataset.quality_metrics.items() <= shown.items()
    assert data_versions(whole_run)["synthetic_dataset"] == dataset.sha256


@pytest.mark.parametrize(("asset", "split"), SPLITS.items())
def test_each_split_is_shown_with_its_share(
    whole_run: Run, dataset: DatasetRecord, batches: dict[Split, Samples], asset: str, split: Split
) -> None:
    shown, rows = whole_run.metadata(asset), len(batches[split])
    assert shown["dagster/row_count"] == rows
    assert shown["share"] == rows / 3000 == pytest.approx(0.7 if split is Split.train else 0.15, abs=0.03)
    assert shown["dataset_id"] == dataset.id
    assert shown["reference"] == {"dataset_id": dataset.id, "sha256": dataset.sha256, "split": int(split)}
    assert data_versions(whole_run)[asset] == f"{dataset.sha256}-{split.name}"


def test_the_model_is_shown_with_its_job_and_its_files(whole_run: Run, dataset: DatasetRecord, content: bytes) -> None:
    shown, job = whole_run.metadata("trained_model"), get_job(whole_run.engine, whole_run.run_id)
    best = read_checkpoint(content)
    assert (shown["job_id"], shown["dataset_id"]) == (job.id, dataset.id)
    assert (shown["best_epoch"], shown["epochs_run"]) == (job.best_epoch, job.current_epoch) == (best.epoch, 4)
    assert shown["sha256"] == hashlib.sha256(content).hexdigest()
    assert shown["weights_digest"] == best.weights_digest == data_versions(whole_run)["trained_model"]
    assert shown["best_metrics"] == best.metrics
    for name in ("val_loss", "val_rmse_good_geom_m", "val_distance_p50_m", "val_coverage_95"):
        assert shown[f"best_{name}"] == best.metrics[name]
    assert shown["reference"] == {"job_id": job.id, "location": shown["checkpoint"], "sha256": shown["sha256"]}
    files = {name: Path(place["location"]) for name, place in shown["objects"].items()}
    assert {name: path.name for name, path in files.items()} == {
        name: f"{name}.pth" for name in ("best_model", "final_model", "epoch_2", "epoch_4")
    }
    for name, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shown["objects"][name]["sha256"]
    made = {name: read_checkpoint(path.read_bytes()) for name, path in files.items()}
    epochs = {name: checkpoint.epoch for name, checkpoint in made.items()}
    assert epochs == {"epoch_2": 2, "epoch_4": 4, "final_model": 4, "best_model": job.best_epoch}
    assert made["final_model"].weights_digest == made["epoch_4"].weights_digest
    assert best.dataset == DatasetReference(dataset_id=dataset.id, sha256=dataset.sha256)


def test_the_evaluation_is_of_the_best_epoch_on_the_test_rows(
    whole_run: Run, evaluation: EvaluationRecord, content: bytes, batches: dict[Split, Samples]
) -> None:
    checkpoint, test = read_checkpoint(content), batches[Split.test]
    assert (evaluation.training_job_id, evaluation.epoch) == (whole_run.run_id, checkpoint.epoch)
    assert evaluation.checkpoint_sha256 == hashlib.sha256(content).hexdigest()
    assert evaluation.weights_digest == checkpoint.weights_digest
    assert evaluation.synthetic_dataset_id == checkpoint.dataset.dataset_id
    metrics = evaluation.metrics
    assert metrics["max_gdop"] == checkpoint.config["max_gdop"] == 5.0
    assert metrics["max_rmse_m"] == 100.0
    assert metrics["all"]["rows"] == len(test)
    assert metrics["good_geometry"]["rows"] == int((test.gdop < 5).sum())
    spec = DatasetSpec(NORTH_WEST_ITALY, PRESETS[Preset.default], 3000, 0)
    found = locate_samples(checkpoint, spec, test)
    comparison = compare(spec, test, batches[Split.train], found, 5.0)
    again = json.loads(json.dumps(comparison.summary().document()))
    assert {name: metrics[name] for name in again} == again
    lat, lon = NORTH_WEST_ITALY.frame.geodetic(found.en_m, 2.0)
    error_m = haversine_m(lat, lon, test.tx_lat, test.tx_lon)
    statistics = metrics["all"]["estimators"]["model"]
    assert statistics["p50_m"] == pytest.approx(np.percentile(error_m, 50))
    assert statistics["rmse_m"] == pytest.approx(np.sqrt(np.mean(error_m**2)))
    folder = Path(whole_run.storage.settings.object_store) / "evaluations" / whole_run.run_id
    names = ("error_cdf", "calibration_curve", "error_map")
    assert evaluation.visualization_paths == {
        name: str(folder / evaluation.checkpoint_sha256[:12] / f"{name}.png") for name in names
    }


def test_the_evaluation_is_shown_as_it_is_stored(whole_run: Run, evaluation: EvaluationRecord) -> None:
    shown, metrics = whole_run.metadata("model_evaluation"), evaluation.metrics
    ours = ("headline", "max_rmse_m", "promoted", "promotion_reason")
    assert shown["summary"] == {name: value for name, value in metrics.items() if name not in ours}
    assert (shown["promoted"], shown["promotion_reason"]) == (metrics["promoted"], metrics["promotion_reason"])
    assert shown["reference"] == {"evaluation_id": evaluation.id}
    for subset, name in ((Subset.good_geometry, "estimators_good_geometry"), (Subset.all, "estimators_all")):
        rows = estimator_table(Summary.model_validate(metrics), subset)
        assert shown[name] == [{key: five_digits(value) for key, value in row.items()} for row in rows]
    rows = posterior_table(Summary.model_validate(metrics))
    assert shown["exact_posterior"] == [{key: five_digits(value) for key, value in row.items()} for row in rows]
    assert {row["test rows"] for row in rows} == {"all", "good geometry"}
    everything = Summary.model_validate(metrics).all
    for name in ("by_arrival_times", "by_gdop", "by_hull"):
        rows = group_table(getattr(everything, name))
        assert shown[name] == [{key: five_digits(value) for key, value in row.items()} for row in rows]
        assert sum(row["count"] for row in rows) == everything.rows
    assert shown["test_rmse_m"] == five_digits(metrics["headline"]["test_rmse_m"])
    assert shown["test_rmse_m"] == five_digits(metrics["all"]["estimators"]["model"]["rmse_m"])


def test_the_version_is_shown_as_it_is_registered(
    whole_run: Run, evaluation: EvaluationRecord, content: bytes, dataset: DatasetRecord
) -> None:
    shown, checkpoint = whole_run.metadata("registered_model"), read_checkpoint(content)
    model = get_model_by_id(whole_run.engine, shown["reference"]["model_id"])
    same = ("model_name", "version", "network", "promoted", "promotion_reason", "epoch", "sha256", "weights_digest")
    assert {name: shown[name] for name in same} == {name: getattr(model, name) for name in same}
    assert (shown["checkpoint"], shown["dataset_id"], shown["job_id"]) == (
        model.pytorch_model_location,
        model.synthetic_dataset_id,
        model.trained_by_job_id,
    )
    assert (model.trained_by_job_id, model.synthetic_dataset_id) == (whole_run.run_id, dataset.id)
    assert (model.sha256, model.weights_digest) == (hashlib.sha256(content).hexdigest(), checkpoint.weights_digest)
    assert (model.network_name, model.network_digest) == ("north-west-italy", NORTH_WEST_ITALY.digest)
    assert (model.model_architecture, model.epoch) == ("triangulation", checkpoint.epoch)
    assert model.parent_model_id is None
    assert model.hyperparameters == checkpoint.config
    assert model.metrics == {**checkpoint.metrics, **evaluation.metrics["headline"]}
    history = read_metrics(whole_run.engine, whole_run.run_id)
    columns = ["epoch", "train_loss", "val_loss", "val_rmse_m", "val_rmse_good_geom_m", "val_coverage_95"]
    rows = history[columns].to_dict("records")
    assert shown["epochs"] == [{name: five_digits(value) for name, value in row.items()} for row in rows]


def test_what_blocks_fails_as_an_error_and_the_rest_as_a_warning(whole_run: Run) -> None:
    checks = {check.check_name: check for check in whole_run.result.get_asset_check_evaluations()}
    blocking = {"splits_disjoint_and_complete", "checkpoint_is_sound"}
    assert {name for name, check in checks.items() if check.severity is dg.AssetCheckSeverity.ERROR} == blocking
    assert {name for name, check in checks.items() if check.blocking} == blocking
    values = {name: {key: value.value for key, value in check.metadata.items()} for name, check in checks.items()}
    quality = whole_run.metadata("synthetic_dataset")
    assert values["dataset_quality"] == {
        "acceptance_rate": quality["acceptance_rate"],
        "lowest": 0.5,
        "good_geometry_share": quality["good_geometry_share"],
        "rows": 3000,
    }
    rows = [whole_run.metadata(asset)["dagster/row_count"] for asset in SPLITS]
    assert list(values["splits_disjoint_and_complete"].values()) == [3000, *rows]
    trained = whole_run.metadata("trained_model")
    assert values["checkpoint_is_sound"] == {
        "val_rmse_m": trained["best_metrics"]["val_rmse_m"],
        "rows": rows[1],
        "epoch": trained["best_epoch"],
        "sha256": trained["sha256"],
    }


def sound(run: Run, content: bytes, rows: Samples) -> dg.AssetCheckResult:
    """What the check says of a file on these validation rows of the run's dataset."""
    reference = CheckpointReference(job_id="j", location="/x", sha256=hashlib.sha256(content).hexdigest())
    split = StoredSplit(run.metadata("trained_model")["dataset_id"], rows)
    result = checkpoint_is_sound(run.storage, StoredCheckpoint(reference, content), split)
    assert isinstance(result, dg.AssetCheckResult)
    assert result.severity is dg.AssetCheckSeverity.ERROR
    return result


def changed(checkpoint: Checkpoint, name: str, value: float) -> Checkpoint:
    return replace(checkpoint, weights=checkpoint.weights | {name: torch.full_like(checkpoint.weights[name], value)})


def test_weights_that_are_those_of_the_training_pass(
    whole_run: Run, content: bytes, batches: dict[Split, Samples]
) -> None:
    result, digest = sound(whole_run, content, batches[Split.val]), hashlib.sha256(content).hexdigest()
    assert result.passed
    assert result.description == (
        f"epoch {read_checkpoint(content).epoch}: digest {digest[:12]} verified, weights finite, reloaded predictions "
        "equal"
    )


def test_weights_that_are_others_fail_and_so_do_other_rows(
    whole_run: Run, content: bytes, batches: dict[Split, Samples]
) -> None:
    checkpoint, rows = read_checkpoint(content), batches[Split.val]
    name = next(iter(checkpoint.weights))
    broken = sound(whole_run, write_checkpoint(changed(checkpoint, name, float("nan"))), rows)
    assert (broken.passed, broken.description) == (False, f"weights are not finite: {name}")
    other = sound(whole_run, write_checkpoint(changed(checkpoint, name, 9.0)), rows)
    assert not other.passed
    assert str(other.description).startswith(f"val_loss of epoch {checkpoint.epoch} is recorded as ")
    strangers = sound(whole_run, content, batches[Split.test])
    assert not strangers.passed
    assert f"of epoch {checkpoint.epoch} is recorded as " in str(strangers.description)
    assert strangers.metadata["rows"].value == len(batches[Split.test])


def test_a_file_that_is_no_checkpoint_is_refused(whole_run: Run, batches: dict[Split, Samples]) -> None:
    with pytest.raises(dg.Failure, match="checkpoint"):
        sound(whole_run, b"no checkpoint", batches[Split.val])


def test_equal_runs_give_equal_weights_and_one_version(whole_run: Run) -> None:
    first = get_model_of_job(whole_run.engine, whole_run.run_id)
    assert "registered_before" not in whole_run.metadata("registered_model")
    for _ in range(2):
        again = execute(settings(), instance=whole_run.instance)
        assert again.result.success
        assert again.metadata("synthetic_dataset")["reused"] is True
        assert again.metadata("synthetic_dataset")["sha256"] == whole_run.metadata("synthetic_dataset")["sha256"]
        trained = again.metadata("trained_model")
        assert trained["weights_digest"] == whole_run.metadata("trained_model")["weights_digest"]
        assert trained["sha256"] != whole_run.metadata("trained_model")["sha256"], "the file has its epochs' seconds"
        assert data_versions(again) == data_versions(whole_run)
        registered = again.metadata("registered_model")
        assert registered["registered_before"] == "the same weights as rf-triangulation/1: no new version was made"
        (model,) = list_models(whole_run.engine)
        assert model.id == first.id
        assert get_model_of_job(whole_run.engine, whole_run.run_id) == model
        assert get_model_of_job(whole_run.engine, again.run_id) == model
        # Same data, same seed, same thread count: the same metrics.
        assert model.metrics | {"epoch_seconds": 0} == first.metrics | {"epoch_seconds": 0}
        marks = ("version", "is_active", "is_production", "production_since", "promoted")
        assert [getattr(model, name) for name in marks] == [getattr(first, name) for name in marks]
        before, now = (
            "no version of rf-triangulation was in production",
            "it is rf-triangulation/1, which was in production",
        )
        assert model.promotion_reason == first.promotion_reason.replace(before, now)
        # The row names the newest file, by the digest of its bytes.
        assert (model.sha256, model.trained_by_job_id) == (trained["sha256"], again.run_id)
        content = Path(model.pytorch_model_location).read_bytes()
        assert hashlib.sha256(content).hexdigest() == model.sha256


def stale(instance: dg.DagsterInstance, location: dg.Definitions = defs) -> dict[str, list[str]]:
    """The assets that Dagster calls out of date, and why."""
    graph = location.resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    keys = graph.materializable_asset_keys
    return {
        key.to_user_string(): [cause.reason for cause in resolver.get_stale_causes(key)]
        for key in keys
        if resolver.get_status(key) is not StaleStatus.FRESH
    }


@pytest.mark.faults
def test_equal_training_leaves_what_follows_in_sync(whole_run: Run) -> None:
    first = execute(settings(), instance=whole_run.instance)
    assert first.result.success
    assert stale(whole_run.instance) == {}
    again = execute(settings(), ["trained_model"], whole_run.instance)
    assert again.result.success
    assert stale(whole_run.instance) == {}
    # In sync it is: the evaluation of the first file is one of the second's weights.
    registered = execute(settings(), ["registered_model"], whole_run.instance)
    assert registered.result.success
    (model,) = list_models(whole_run.engine)
    assert model.trained_by_job_id == again.run_id

    other = execute(settings(trained_model={"seed": 1}), ["trained_model"], whole_run.instance)
    assert other.result.success
    assert set(stale(whole_run.instance)) == {"model_evaluation", "registered_model"}
    assert execute(settings(), ["registered_model"], whole_run.instance).failure() == (
        f"model_evaluation is of the weights of job {first.run_id}, trained_model is of job {other.run_id} and has "
        "others; materialise them in one run"
    )
    assert execute(settings(), ["model_evaluation", "registered_model"], whole_run.instance).result.success
    assert stale(whole_run.instance) == {}
    assert [(model.version, model.is_active) for model in list_models(whole_run.engine)] == [(2, True), (1, False)]


def test_existing_dataset_by_reference(whole_run: Run) -> None:
    dataset_id = whole_run.metadata("synthetic_dataset")["dataset_id"]
    run = execute(
        QUIET | {"ops": {"synthetic_dataset": {"config": {"dataset_id": dataset_id}}}},
        ["receiver_network", "synthetic_dataset"],
        whole_run.instance,
    )
    assert run.result.success
    assert run.metadata("synthetic_dataset")["dataset_id"] == dataset_id


def test_random_layouts_have_no_map(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for name in ("error_cdf", "calibration_curve"):
        draw = getattr(plots, name)
        monkeypatch.setattr(
            plots, name, lambda comparison, subset, draw=draw: drawn.append(subset) or draw(comparison, subset)
        )
    own = DatasetSpec(NORTH_WEST_ITALY, Scenario(), 60, 0)
    comparison = some_comparison()
    curves = {"error_cdf", "calibration_curve"}
    assert set(pictures_of(own, comparison)) == curves | {"error_map"}
    without_gdop = replace(comparison, gdop=np.full(60, np.nan))
    assert set(pictures_of(DatasetSpec(None, Scenario(), 60, 0, Layouts.random), without_gdop)) == curves
    assert drawn == [Subset.good_geometry] * 2 + [Subset.all] * 2
