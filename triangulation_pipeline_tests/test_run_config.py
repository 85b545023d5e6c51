"""Run config as the command line reads it."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from triangulation_pipeline.definitions import train_locator_job
from triangulation_pipeline.defs.config import RunSettings, check_whole_run_config
from triangulation_pipeline.defs.run_config import config_fault, read_run_config


def read(folder: Path, text: str) -> RunSettings:
    path = folder / "run.yaml"
    path.write_text(text)
    return check_whole_run_config(train_locator_job(), read_run_config(path))


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ValueError, match=r"^[^\n]{1,400}$") as caught:
        read(folder, text)
    return str(caught.value)


def test_numbers_are_what_was_written(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        ops:
          synthetic_dataset: {config: {num_samples: 1e5, seed: 0250}}
          trained_model: {config: {epochs: 012, learning_rate: 1e-3, early_stop_delta: 1, job_name: no}}
        """,
    )
    assert found.synthetic_dataset.num_samples == 100_000
    assert found.synthetic_dataset.seed == 250
    training = found.trained_model
    assert (training.epochs, training.learning_rate, training.early_stop_delta) == (12, 0.001, 1)
    assert training.job_name == "no"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "ops: {trained_model: {config: {learning_rate: true}}}",
            "learning_rate: must be a number or a text, not true or false",
        ),
        (
            "ops: {synthetic_dataset: {config: {seed: 20:24}}}",
            'seed. Value "20:24" of type "<class \'str\'>" is not valid',
        ),
        ("ops: {trained_model: {config: {epochs: 1.5}}}", "epochs"),
        ("ops: {trained_model: {config: {epochs: 99999999999999999999999}}}", "whole numbers have at most 20 digits"),
        ("ops: {trained_model: {config: {early_stop_delta: 1e400}}}", "early_stop_delta: Input should be less than"),
        ("ops: {trained_model: {config: {epochs: 3, epochs: 4}}}", "'epochs' is written twice, lines 1 and 1"),
        ("ops: {a: {config: {}}}\nloggers: {}\nops: {}\n", "'ops' is written twice, lines 1 and 3"),
        ("ops: {trained_model: {config: {job_name: {env: HOME}}}}", "{env: 'HOME'} is not taken"),
        ("ops: {trained_model: {config: {epochs: {env: HOME}}}}", "{env: 'HOME'} is not taken"),
        ("a: &x {b: 1}\nops: *x\n", "aliases (*) are not allowed"),
        ("[" * 3000, "it is nested more than 30 deep"),
        (f"ops: {{trained_model: {{config: {{{'x' * 1000}: 1}}}}}}", "Received unexpected config entry"),
        (f"ops: {{trained_model: {{config: {{lr_scheduler: '{'x' * 50_000}'}}}}}}", "lr_scheduler"),
        ('ops: {trained_model: {config: {"a\\x1b[2J\\u202eb": 1}}}', "a\\x1b[2J\\u202eb"),
        ("".join(["ops:\n  trained_model:\n    config:\n"] + [f"      x{i}: 1\n" for i in range(1000)]), "x0"),
    ],
    ids=range(15),
)
def test_what_is_wrong_is_one_short_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    assert sentence in refusal(tmp_path, text)


NETWORK = (
    "name: n\nsites: [{name: a, lat: 45, lon: 7}, {name: b, lat: 45.2, lon: 7.9}, {name: c, lat: 44.6, lon: 8.3}]\n"
)


def test_a_network_file_beside_the_run_config_is_meant(tmp_path: Path, home: Path) -> None:
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "mine.yaml").write_text(NETWORK)
    found = read(tmp_path, "ops: {receiver_network: {config: {network_file: sites/mine.yaml}}}")
    assert found.receiver_network.network_file == str(tmp_path / "sites" / "mine.yaml")
    (home / "other.yaml").write_text(NETWORK)
    found = read(tmp_path, "ops: {receiver_network: {config: {network_file: other.yaml}}}")
    assert found.receiver_network.network_file == "other.yaml"
    told = refusal(tmp_path, "ops: {receiver_network: {config: {network_file: none.yaml}}}")
    assert told == f"receiver_network: network file {home}/none.yaml does not exist"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is not a regular file"):
        read_run_config(tmp_path / "pipe")


def test_a_file_name_that_is_too_long_is_refused_in_one_sentence(tmp_path: Path) -> None:
    told = refusal(tmp_path, f"ops: {{receiver_network: {{config: {{network_file: {'x' * 5000}}}}}}}")
    assert told.startswith("receiver_network: network file ...xxx")
    assert told.endswith("cannot be read: File name too long")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"epochz": 3}, 'Received unexpected config entry "epochz" at path root:ops:trained_model:config'),
        (
            {"job_name": {"env": "SURELY_NOT_SET"}},
            "root:ops:trained_model:config:job_name: the environment variable SURELY_NOT_SET is not set",
        ),
    ],
)
def test_a_finding_of_dagster_is_told_without_its_schema(config: dict[str, Any], told: str) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError) as refused:
        dg.validate_run_config(train_locator_job(), {"ops": {"trained_model": {"config": config}}})
    (fault,) = refused.value.errors
    assert len(fault.message) > len(told)
    assert config_fault(fault.message) == told
