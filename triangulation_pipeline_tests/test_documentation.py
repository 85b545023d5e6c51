"""The pages: every block of commands or code is run by a test, every link leads somewhere, every name exists."""

import ast
import io
import os
import re
import shlex
import subprocess
import tokenize
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from sqlalchemy import Engine, text

from triangulation_pipeline.calibration_file import read_calibration
from triangulation_pipeline.cli import COMMANDS, load_command
from triangulation_pipeline.defs.automation.settings import AutomationSettings
from triangulation_pipeline.defs.config import check_run_config
from triangulation_pipeline.evaluation.estimators import BASELINES
from triangulation_pipeline.formats.simulated import simulated_recording
from triangulation_pipeline.network_file import read_network
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.storage.engine import open_database, reading
from triangulation_pipeline.storage.settings import Settings
from triangulation_pipeline_tests.conftest import ROOT
from triangulation_pipeline_tests.test_cli import COMMAND

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("docker/**/*.md"))
)
README_LINES = 150


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    content: str

    def __str__(self) -> str:
        return f"{self.page}, {self.language}: {self.content.partition(chr(10))[0]}"


def blocks(page: str, language: str | None = None) -> list[Block]:
    found = re.findall(r"(?ms)^( *)```([^\n`]*)\n(.*?)^\1```$", (ROOT / page).read_text())
    everything = [Block(page, name, re.sub(rf"(?m)^{indent}", "", content)) for indent, name, content in found]
    return [block for block in everything if language in (None, block.language)]


HERE = "test_documentation.py"
# Who runs a block, by its page, its language and how it begins: a test (file::name), or the reason why none does.
RUN_BY = {
    ("README.md", "bash", "git clone"): "reason: downloads and installs; test_cli.py runs `triangulation run`",
    ("README.md", "bash", "triangulation"): f"{HERE}::test_the_tutorial",
    ("README.md", "python", "import pandas"): "storage/test_load_model.py::test_the_lines_of_the_readme",
    ("README.md", "python", "import triangulation"): f"{HERE}::test_the_python_examples_print_what_they_say",
    ("CONTRIBUTING.md", "bash", "make install"): "reason: installs, then runs all tests; .ci/run does so",
    ("docs/tutorial.md", "bash", "make install"): "reason: downloads and installs; .ci/run does so",
    ("docs/tutorial.md", "bash", "triangulation"): f"{HERE}::test_the_tutorial",
    ("docs/tutorial.md", "yaml", ""): f"{HERE}::test_the_tutorial",
    ("docs/training.md", "bash", "triangulation"): f"{HERE}::test_the_tutorial",
    ("docs/training.md", "yaml", ""): f"{HERE}::test_the_tutorial",
    ("docs/training.md", "python", ""): f"{HERE}::test_the_tutorial",
    ("docs/measurements.md", "csv", ""): "formats/test_page.py::test_the_examples_of_the_page",
    ("docs/measurements.md", "yaml", ""): "formats/test_page.py::test_the_examples_of_the_page",
    ("docs/measurements.md", "python", ""): "formats/test_page.py::test_the_examples_of_the_page",
    ("docs/locating.md", "bash", "triangulation calibrate known"): (
        "test_locards.py::test_the_commands_of_the_page_locate_aircraft"
    ),
    (
        "docs/locating.md",
        "bash",
        "triangulation calibrate measurements",
    ): "test_cli_locate.py::test_the_commands_of_the_page",
    ("docs/locating.md", "bash", "awk"): "test_locards.py::test_the_commands_of_the_page_locate_aircraft",
    ("docs/locating.md", "yaml", ""): "test_locards.py::test_the_commands_of_the_page_locate_aircraft",
    ("docs/locating.md", "bash", "python -m benchmarks"): "reason: takes minutes; benchmarks are run by hand",
    ("docs/locating.md", "python", ""): "test_cli_locate.py::test_the_commands_of_the_page",
    ("docs/physics.md", "python", ""): f"{HERE}::test_the_python_examples_print_what_they_say",
    (
        "docs/model.md",
        "bash",
        "python -m triangulation_pipeline",
    ): "training/test_universal.py::test_one_command_makes_them",
    ("docs/model.md", "bash", "python -m benchmarks"): "reason: takes minutes; benchmarks are run by hand",
    ("docs/operations.md", "bash", "export PATH"): "reason: the aliases of a person's shell",
    ("docs/operations.md", "bash", "triangulation plan"): "test_cli_plan.py::test_files_to_keep_and_to_send",
    ("docs/operations.md", "bash", "triangulation launch"): "test_stack.py::test_training_is_resumed_where_it_was",
    ("docs/operations.md", "bash", "export TRIANGULATION_DATABASE_URL"): (
        "storage/test_settings.py::test_postgresql_is_taken_as_psycopg_and_its_password_not_shown"
    ),
    ("docs/operations.md", "bash", "export TRIANGULATION_OBJECT_STORE"): (
        "storage/test_settings.py::test_a_bucket_is_a_place_for_objects"
    ),
    ("docs/operations.md", "sql", "CREATE DATABASE"): "test_docker.py::test_a_database_is_prepared_as_printed",
    ("docs/operations.md", "bash", "make docker-up"): "reason: needs Docker; docker/smoke-test runs it",
    ("docs/operations.md", "bash", "docker buildx"): "reason: needs Docker and a registry of images",
    ("docs/operations.md", "sql", "REVOKE ALL"): (
        "test_docker.py::test_wider_rights_of_an_older_database_are_taken_away_as_printed"
    ),
    ("docs/operations.md", "bash", "mkdir"): "test_docker.py::test_a_backup_can_be_read_by_its_owner_alone",
    ("docs/operations.md", "bash", "compose down"): "reason: needs Docker and its volumes",
    ("docs/operations.md", "sql", "-- the jobs"): f"{HERE}::test_the_queries_of_the_operator",
    ("docs/operations.md", "nginx", ""): "ui/test_proxy.py::test_the_rules_of_the_proxy",
    ("docs/sql.md", "sql", ""): "storage/test_sql_reference.py::test_the_examples_answer_their_titles",
    ("docs/graphql/README.md", "bash", ""): "test_stack.py::test_the_documented_requests",
    ("docker/kubernetes/README.md", "bash", ""): "reason: needs a cluster; test_kubernetes.py checks the names in it",
    ("docker/kubernetes/README.md", "json", ""): "test_kubernetes.py::test_the_tag_of_the_readme_takes_a_run_to_a_gpu",
}


def test_every_block_is_run_by_a_test_or_has_a_reason() -> None:
    used = set()
    for block in [block for page in PAGES for block in blocks(page)]:
        assert block.language, f"{block}: a block must name its language"
        if block.language in {"text", "math"}:  # drawings, what a command prints, and formulas
            continue
        found = [key for key in RUN_BY if key[:2] == (block.page, block.language) and block.content.startswith(key[2])]
        assert len(found) == 1, f"{block}: {found}"
        used |= set(found)
    assert used == RUN_BY.keys()
    for runner in RUN_BY.values():
        if not runner.startswith("reason: "):
            file, _, name = runner.partition("::")
            assert f"def {name}(" in (ROOT / "triangulation_pipeline_tests" / file).read_text(), runner


def printed(code: str, names: dict[str, object]) -> list[str]:
    """The lines that a piece of code prints."""
    output = io.StringIO()
    with redirect_stdout(output):
        exec(compile(code, "<page>", "exec"), names)
    return output.getvalue().splitlines()


def comments(code: str) -> list[str]:
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return [token.string.removeprefix("# ") for token in tokens if token.type == tokenize.COMMENT]


@pytest.mark.parametrize("page", ["README.md", "docs/physics.md"])
def test_the_python_examples_print_what_they_say(page: str) -> None:
    """A comment is what the code prints."""
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        if block.content.startswith("import pandas"):  # it needs a model in production
            continue
        found, told = printed(block.content, names), comments(block.content)
        assert found, f"{block}: prints nothing"
        if told:
            assert found == told


@pytest.mark.stack
def test_the_tutorial(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages in their order: files are written, commands are run, and what they print has the lines of the page."""
    monkeypatch.chdir(home)
    (home / "bin").mkdir()
    program = home / "bin" / "triangulation"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home / 'bin'}:{os.environ['PATH']}")
    said = ""
    names: dict[str, object] = {}
    shortest = [block for block in blocks("README.md", "bash") if block.content.startswith("triangulation ")]
    for block in [*blocks("docs/tutorial.md"), *shortest, *blocks("docs/training.md")]:
        if block.language == "yaml":
            name = block.content.partition("\n")[0].removeprefix("# ")
            (home / name).write_text(block.content)
        elif block.language == "python":
            assert printed(block.content, names)
        elif block.language == "bash" and not block.content.startswith("make "):
            done = subprocess.run(["bash", "-euc", block.content], capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            said += done.stdout
            if "simulate" in block.content:
                said += (home / "measurements.csv").read_text()[:1000]
        elif block.language == "text":
            for line in block.content.splitlines():
                # Numbers may differ in the last digits from machine to machine.
                assert re.split(r" {2,}|[─:;,]", line)[0] in said, line
    inside = [float(share) for share in re.findall(r"([\d.]+) ?% within the regions of 95 ?%", said)]
    assert len(inside) == 4  # of what calibrates; of all, with and without the calibration; and as the README has it
    assert all(93 <= share <= 97 for share in inside[1:3])
    network = read_network(home / "network.yaml")
    assert network.name == "my-network"
    found = read_calibration(home / "calibration.yaml", network)
    _, drawn = simulated_recording(Layout(network, PRESETS[Preset.uncalibrated]), 2000, 0.1, seed=4)
    off = (found.toa_bias_ns - drawn.toa_bias_ns) / found.toa_bias_sigma_ns
    assert np.abs(off).max() < 3
    assert np.abs(drawn.toa_bias_ns).max() > 100
    for name in ("run.yaml", "scenario.yaml"):
        check_run_config(yaml.safe_load((home / name).read_text()))
    assert "my-locator/1" in said


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{tmp_path}/some.db")
    yield engine
    engine.dispose()


def test_the_queries_of_the_operator(engine: Engine) -> None:
    (block,) = (block for block in blocks("docs/operations.md", "sql") if block.content.startswith("-- the jobs"))
    statements = [statement for statement in block.content.split(";") if statement.strip()]
    assert len(statements) == 4
    with reading(engine) as connection:
        for statement in statements:
            assert connection.execute(text(statement)).all() == []


def code_of(page: str) -> list[str]:
    """The lines of a page's shell blocks, and its pieces of code within lines."""
    whole = (ROOT / page).read_text()
    lines = [line for block in blocks(page, "bash") for line in block.content.splitlines()]
    return [*lines, *re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^ *```.*?^ *```$", "", whole))]


def test_the_commands_and_their_options_exist() -> None:
    """Of `triangulation` and of make, wherever a page names them."""
    targets = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text()))
    seen = set()
    for page in PAGES:
        for code in code_of(page):
            for target in re.findall(r"^make ([a-z][\w-]*)", code):
                assert target in targets, f"{page}: {code}"
            for name, rest in re.findall(r"(?:^|/bin/|-- |code )triangulation ([a-z]+)([^#|;&]*)", code):
                assert name in COMMANDS, f"{page}: {code}"
                seen.add(name)
                command = load_command(name)
                known = {option for each in command.params for option in each.opts} | {"--help"}
                passes_on = command.context_settings.get("ignore_unknown_options", False)
                for option in re.findall(r"(?<=\s)--?[a-z][\w-]*", rest):
                    assert option in known or passes_on, f"{page}: {code}"
    assert seen >= {"run", "network", "launch", "watch", "pause", "resume", "cancel", "promote", "rollback", "models"}


def test_the_variables_exist() -> None:
    """Of the environment, wherever a page names one of ours."""
    files = [
        path
        for folder in ("triangulation_pipeline", "triangulation_pipeline_tests", "docker", ".ci")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in {".pyc", ".png", ".md"}
    ]
    known = set(re.findall(r"TRIANGULATION_\w+", "\n".join(path.read_text(errors="replace") for path in files)))
    # Settings of pydantic have their prefix apart.
    known |= {f"TRIANGULATION_{name.upper()}" for name in (*AutomationSettings.model_fields, *Settings.model_fields)}
    for page in PAGES:
        for name in re.findall(r"\bTRIANGULATION_\w+", (ROOT / page).read_text()):
            assert name in known or page == "CHANGELOG.md", f"{page}: {name}"


def slug(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    without_blocks = re.sub(r"(?ms)^ *```.*?^ *```$", "", page.read_text())
    return {slug(title) for title in re.findall(r"(?m)^#+ (.*)$", without_blocks)}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    here = ROOT / page
    without_blocks = re.sub(r"(?ms)^ *```.*?^ *```$", "", here.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (here.parent / path).resolve() if path else here
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(file), f"{page}: {target}"


def test_the_readme_is_short_and_every_page_is_reached_from_it() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= README_LINES
    reached, waiting = set(), ["README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for target in re.findall(r"\]\(([^)#\s]+\.md)", (ROOT / page).read_text()):
            linked = ((ROOT / page).parent / target).resolve().relative_to(ROOT).as_posix()
            if linked not in reached:
                waiting.append(linked)
    assert reached >= {page for page in PAGES if page.startswith(("docs/", "docker/"))}


def test_the_page_on_physics_names_every_baseline() -> None:
    section = (ROOT / "docs" / "physics.md").read_text().partition("## The classical solvers")[2].partition("\n## ")[0]
    assert set(re.findall(r"(?m)^\| `(\w+)` \|", section)) == {each.name for each in BASELINES}


def test_the_table_of_the_page_on_physics_is_the_one_that_is_tested() -> None:
    """By ``physics/test_simulator.py``, against the simulator."""
    tested = pytest_parameters(
        "physics/test_simulator.py", "test_detections_and_bounds_are_those_of_the_reference_table"
    )
    section = (ROOT / "docs" / "physics.md").read_text().partition("## Noise and detection")[2].partition("\n## ")[0]
    rows = re.findall(r"(?m)^\| \**(\d\.\d)\**[^|]*\|(.*)\|$", section)
    assert [(float(exponent), *map(float, rest.split("|"))) for exponent, rest in rows] == tested


def pytest_parameters(file: str, name: str) -> list[tuple[float, ...]]:
    """The rows of the parametrization of a test."""
    tree = ast.parse((ROOT / "triangulation_pipeline_tests" / file).read_text())
    (test,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    (decorator,) = test.decorator_list
    assert isinstance(decorator, ast.Call)
    rows: list[tuple[float, ...]] = ast.literal_eval(decorator.args[1])
    return rows


@pytest.mark.parametrize("page", ["docs/physics.md", "docs/model.md"])
def test_the_functions_that_the_pages_name_exist(page: str) -> None:
    """As `file.function` or `Class.method`."""
    defined = set()
    for path in (ROOT / "triangulation_pipeline").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(f"{path.stem}.{node.name}")
            if isinstance(node, ast.ClassDef):
                defined |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    named = set(re.findall(r"`([A-Za-z_]+\.[a-z_0-9]+)`", (ROOT / page).read_text()))
    assert {name for name in named if not name.endswith((".py", ".yaml", ".pth", ".md"))} <= defined


def test_the_guide_names_files_that_exist() -> None:
    """In the table of what goes where, and in the tree."""
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    table = guide.partition("## Where something new goes")[2].partition("\n## ")[0]
    for file in set(re.findall(r"`([a-z_]+/[\w/]*(?:\.py)?|[a-z_]+\.py)`", table)):
        places = (ROOT / "triangulation_pipeline", ROOT / "triangulation_pipeline_tests", ROOT)
        assert any((place / file).exists() for place in places), file
    (drawn,) = blocks("CONTRIBUTING.md", "text")
    tree = set(re.findall(r"(?m)^  ([\w.]+)/? ", drawn.content))
    package = ROOT / "triangulation_pipeline"
    assert {name for name in tree if not (package / name).exists()} == set()
    named_beside = {"network_file.py", "calibration_file.py", "webserver.py", "py.typed", "graphql", "__pycache__"}
    assert {path.name for path in package.iterdir()} - tree <= named_beside


def texts_of_the_program() -> str:
    """Every text in the code, with its gaps for values, one after the other."""
    found = []
    for file in (ROOT / "triangulation_pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(getattr(part, "value", "\0")) for part in _flat(node)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def _flat(node: ast.JoinedStr) -> Iterator[ast.Constant | None]:
    for part in node.values:
        yield part if isinstance(part, ast.Constant) else None


def test_the_messages_that_the_operator_looks_up_are_the_programs() -> None:
    section = (ROOT / "docs" / "operations.md").read_text().partition("## What failures look like")[2]
    rows = re.findall(r"(?m)^\| ([^|]+) \|[^|]*\|[^|]*\|$", section.partition("\n## ")[0])
    said = texts_of_the_program()
    checked = 0
    for row in rows:
        for quoted in re.findall(r"`([^`]+)`", row):
            for piece in re.split(r"\.\.\.|: | [nm]\b", quoted):
                if len(piece.split()) > 1 and "No space left" not in piece:
                    words = piece.strip(" ,:")
                    # The first word may be a value, as in "paused at epoch".
                    assert words in said or words.partition(" ")[2] in said, quoted
                    checked += 1
    assert checked >= 15
