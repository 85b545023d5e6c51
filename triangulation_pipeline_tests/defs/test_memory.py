from pathlib import Path

import pytest

from triangulation_pipeline.defs import memory
from triangulation_pipeline.defs.memory import available_bytes, check_memory, needed_bytes
from triangulation_pipeline.storage.datasets import list_datasets
from triangulation_pipeline_tests.defs.conftest import execute, settings

GB = 10**9


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Path, Path]:
    """The files of a machine with 8 GB left, whose process is in the group /a/b, of either version."""
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000000 kB\nMemFree: 1 kB\nMemAvailable:    7812500 kB\n")
    (proc / "self" / "cgroup").write_text("12:cpu:/x\n4:memory:/a/b\n0::/a/b\n")
    return proc, cgroups


def group(folder: Path, limit: str, used: int, files: int, *, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    # Version 1 counts a group's own files, and by another name those of the groups below it too.
    counts = f"inactive_file {files}" if version == 2 else f"inactive_file 1\ntotal_inactive_file {files}"
    (folder / "memory.stat").write_text(f"anon 1\n{counts}\n")


def test_the_machine_says_what_is_left(machine: tuple[Path, Path]) -> None:
    assert available_bytes(*machine) == 8 * GB
    assert (available_bytes() or 0) > 10**8  # this one


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_has_less_than_the_machine(machine: tuple[Path, Path], version: int) -> None:
    proc, cgroups = machine
    mount = cgroups if version == 2 else cgroups / "memory"
    group(mount / "a" / "b", "max", 3 * GB, 0, version=version)
    assert available_bytes(proc, cgroups) == 8 * GB
    group(mount / "a", str(4 * GB), 3 * GB, GB, version=version)
    assert available_bytes(proc, cgroups) == 2 * GB
    group(mount / "a" / "b", str(GB), 2 * GB, 0, version=version)
    assert available_bytes(proc, cgroups) == 0
    # Within a container the path is the host's, and its own group is the root of what is mounted.
    (proc / "self" / "cgroup").write_text("4:memory:/docker/1234\n0::/../1234\n")
    group(mount, str(6 * GB), GB, 0, version=version)
    assert available_bytes(proc, cgroups) == 5 * GB


def test_what_a_run_needs_is_what_was_measured_with_some_room() -> None:
    """2.2 kB a sample of 7 receivers, 8.4 kB a sample of 30."""
    for num_sites, measured_bytes in ((7, 2240), (30, 8380)):
        assert measured_bytes < needed_bytes(1, num_sites) < 2 * measured_bytes
        assert needed_bytes(1000, num_sites) == 1000 * needed_bytes(1, num_sites)
    assert needed_bytes(1000, 20) > needed_bytes(1000, 19)


def test_a_large_dataset_is_refused_in_megabytes_with_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 4 * GB)
    check_memory(1_400_000, 7)
    with pytest.raises(ValueError, match="need about 14,200 MB of memory") as refused:
        check_memory(5_000_000, 7)
    assert str(refused.value) == (
        "num_samples: 5,000,000 samples of 7 sites need about 14,200 MB of memory, and 4,000 MB are left; take at most "
        "1,408,450 samples"
    )


def test_a_system_that_does_not_say_refuses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_bytes(tmp_path, tmp_path) is None
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    check_memory(5_000_000, 64)


def test_a_dataset_that_does_not_fit_is_refused_before_it_is_simulated(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = needed_bytes(3000, 7) - 1
    monkeypatch.setattr(memory, "available_bytes", lambda: left)
    run = execute(settings())
    assert run.failed_step() == "synthetic_dataset"
    assert run.failure() == (
        "num_samples: 3,000 samples of 7 sites need about 9 MB of memory, and 9 MB are left; take at most 2,999 samples"
    )
    assert list_datasets(run.engine) == []
    monkeypatch.setattr(memory, "available_bytes", lambda: left + 1)
    made = execute(settings(), ["receiver_network", "synthetic_dataset"])
    assert made.result.success
    monkeypatch.setattr(memory, "available_bytes", lambda: left)
    config = settings()
    config["ops"]["synthetic_dataset"]["config"] = {"dataset_id": made.metadata("synthetic_dataset")["dataset_id"]}
    assert "take at most 2,999 samples" in execute(config).failure()


def test_memory_that_is_refused_all_the_same_is_one_sentence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triangulation_pipeline.defs.assets import synthetic_dataset

    def simulate_chunks(spec: object) -> object:
        raise MemoryError("Unable to allocate 4.23 MiB for an array with shape (64, 8192)")

    monkeypatch.setattr(synthetic_dataset, "simulate_chunks", simulate_chunks)
    run = execute(settings())
    assert run.failure() == "the memory that this process may take does not suffice; take fewer samples or sites"
    assert list_datasets(run.engine) == []
