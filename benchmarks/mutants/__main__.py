"""Tries a sample of mutants in each room, and lists those that no test saw."""

import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.testing import run_tests
from cosmic_ray.work_item import MutationSpec, TestOutcome

from benchmarks.mutants.sample import sample

ROOT = Path(__file__).parent.parent.parent
CODE = Path("triangulation_pipeline")
TESTS = Path("triangulation_pipeline_tests")
EXPLAINED = ROOT / "benchmarks" / "mutants" / "explained.md"
SIZE, SEED = 20, 1
LEAST_SHARE = 0.85
WORKERS = 2
TIMEOUT_FACTOR, LEAST_TIMEOUT_S = 5, 60
MOST_CPU_S = 3600
PYTEST = "-m pytest -x -q -n0 -p no:cacheprovider -m 'not production and not stack and not ui'"

# The code of a room, and the tests that have to see its faults; the rooms with the longest tests are last.
ROOMS = {
    "network": (
        ["frame.py", "network.py", "network_file.py"],
        ["test_network.py", "test_network_file.py", "test_cli_network.py", "physics/test_geometry.py"],
    ),
    "samples": (["samples.py"], ["test_samples.py", "physics/test_simulator.py", "test_versions.py"]),
    "physics": (["physics"], ["physics", "test_versions.py"]),
    "training": (
        ["training", "model/checkpoint.py"],
        ["training", "model/test_checkpoint.py", "test_versions.py"],
    ),
    "evaluation": (["positions", "evaluation", "plots"], ["test_positions.py", "evaluation", "plots"]),
    "storage": (["storage"], ["storage"]),
    "jobs": (["jobs"], ["jobs", "defs/test_trained_model.py", "defs/test_life_cycle.py"]),
    "defs": (["defs"], ["test_run_config.py", "defs"]),
}
# Whole runs take their time and come last; the tests of a daemon and of processes elsewhere are left out.
SLOW = ("test_refusals.py", "test_run_tags.py", "test_life_cycle.py", "test_whole_run.py")
LEFT_OUT = ("test_idioms.py", "test_run_elsewhere.py")


@dataclass(frozen=True)
class Outcome:
    """What came of a mutant."""

    place: str
    change: str
    ended: str  # killed, survived or timed out


def _files(folder: Path, names: Sequence[str]) -> list[Path]:
    """The modules of these names and in folders of these names, without the steps of the database's schema."""
    found = [file for name in names for file in (sorted((folder / name).rglob("*.py")) or [folder / name])]
    return [file for file in found if "migrations" not in file.parts and not file.name.startswith("__")]


def _tests(room: str, module: Path | None = None) -> str:
    """The command that runs a room's tests, those that bear the module's name first."""
    own = f"test_{module.name}" if module else ""
    files = [file for file in _files(TESTS, ROOMS[room][1]) if file.match("test_*") and file.name not in LEFT_OUT]
    files.sort(key=lambda file: (file.name != own, file.name in SLOW))
    return " ".join([sys.executable, PYTEST, *map(str, files)])


def _begin(folder: Path, tree: Path) -> None:
    """Gives a worker a copy of the tree, in which it stays."""
    own = shutil.copytree(tree, folder / f"tree-{os.getpid()}")
    temporary = folder / f"tmp-{os.getpid()}"
    temporary.mkdir()
    os.chdir(own)
    os.environ |= {"PYTHONPATH": str(own), "TMPDIR": str(temporary), "DAGSTER_HOME": str(own), "OMP_NUM_THREADS": "1"}
    # Tests that Ctrl-C leaves behind end as well, even those of an endless loop.
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU_S, MOST_CPU_S))


def _baseline(room: str) -> float:
    """How long the tests of a room take when nothing is wrong; they have to pass."""
    began = time.monotonic()
    outcome, output = run_tests(_tests(room), timeout=None)
    if outcome is not TestOutcome.SURVIVED:
        raise click.ClickException(f"{room}: the tests fail without any mutant\n{output}")
    return time.monotonic() - began


def _try(room: str, mutation: MutationSpec, baseline_s: float) -> Outcome:
    timeout_s = max(TIMEOUT_FACTOR * baseline_s, LEAST_TIMEOUT_S)
    result = mutate_and_test([mutation], _tests(room, mutation.module_path), timeout_s)
    if result.diff is None or result.test_outcome is TestOutcome.INCOMPETENT:
        raise click.ClickException(f"{mutation}\n{result.output}")
    changed = [line for line in result.diff.split("\n") if not line.startswith(("---", "+++"))]
    was, becomes = (" ".join(line[1:].strip() for line in changed if line.startswith(sign)) for sign in "-+")
    return Outcome(
        place=f"{mutation.module_path}:{mutation.start_pos[0]}",
        change=f"- `{mutation.module_path.relative_to(CODE)}`: `{was}` becomes `{becomes}`",
        ended="timed out" if result.output == "timeout" else result.test_outcome.value,
    )


def _outcomes(rooms: Sequence[str], size: int, seed: int, folder: Path) -> Iterator[tuple[str, list[Outcome]]]:
    tree = shutil.copytree(ROOT, folder / "tree", ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info"))
    os.chdir(tree)
    samples = {room: sample(_files(CODE, ROOMS[room][0]), size, seed) for room in rooms}
    with ProcessPoolExecutor(WORKERS, initializer=_begin, initargs=(folder, tree)) as workers:
        try:
            baselines = {room: workers.submit(_baseline, room) for room in reversed(rooms)}
            tried = {
                room: [workers.submit(_try, room, mutation, baselines[room].result()) for mutation in samples[room]]
                for room in rooms
            }
            for room in rooms:
                yield room, [mutant.result() for mutant in tried[room]]
        finally:
            workers.shutdown(cancel_futures=True)


@click.command()
@click.argument("rooms", nargs=-1, type=click.Choice(list(ROOMS)))
@click.option("--size", default=SIZE, show_default=True, help="How many mutants a room.")
@click.option("--seed", default=SEED, show_default=True, help="Another one draws other mutants.")
def main(rooms: tuple[str, ...], size: int, seed: int) -> None:
    """Tries the mutants of these rooms, or of all; fails where a share is too small, or a mutant neither killed nor
    explained in benchmarks/mutants/explained.md."""
    explained = EXPLAINED.read_text()
    passed = True
    folder = Path(tempfile.gettempdir(), f"mutants-{os.getpid()}")
    folder.mkdir()
    try:
        for room, outcomes in _outcomes(rooms or list(ROOMS), size, seed, folder):
            alive = [outcome for outcome in outcomes if outcome.ended != "killed"]
            unexplained = [outcome for outcome in alive if outcome.change not in explained]
            endless = [outcome for outcome in alive if outcome.ended == "timed out" and outcome not in unexplained]
            killed = len(outcomes) - len(alive) + len(endless)
            passed &= killed >= LEAST_SHARE * len(outcomes) and not unexplained
            click.echo(f"{room}: {killed} of {len(outcomes)} killed, {killed / len(outcomes):.0%}")
            for outcome in alive:
                said = "not explained" if outcome in unexplained else "explained"
                click.echo(f"  {outcome.place}: {outcome.ended}, {said}\n  {outcome.change}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
