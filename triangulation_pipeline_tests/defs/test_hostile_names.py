"""Names are text, whatever they hold: a whole run with names that are markup somewhere, and what it leaves behind."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from triangulation_pipeline.defs.metadata import escape_markdown
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.storage.views import job_overview, model_overview, read_view
from triangulation_pipeline_tests.conftest import make_home
from triangulation_pipeline_tests.defs.conftest import Run, execute, settings
from triangulation_pipeline_tests.storage.model_rows import get_model

NETWORK = "A$B$C | <img src=x onerror=alert(1)> `x` ![i](http://x/y.png)"
JOB = "| a | b |\\|---| <script>alert(1)</script> [click](javascript:alert(1)) $x_1$ :bug:"
SITES = (
    "Ba$$in Hill",
    "A$B$C",
    r"\frac{1}{2} $\nonsense{",
    "_x | y | `z`",
    "東京タワー",
    "<b>bold</b> **bold** [l](javascript:alert(1))",
    "=cmd|' /C calc'!A0",
)
PICTURE = re.compile(r"!\[[A-Za-z, ]+\]\(data:image/png;base64,[A-Za-z0-9+/]+=*\)")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        folder = make_home(tmp_path_factory.mktemp("hostile") / "home")
        for name in ("DATABASE_URL", "OBJECT_STORE", "NETWORK_FOLDER"):
            patch.delenv(f"TRIANGULATION_{name}", raising=False)
        patch.setenv("DAGSTER_HOME", str(folder))
        described = NORTH_WEST_ITALY.model_dump(mode="json", exclude_none=True) | {"name": NETWORK}
        described["sites"] = [site | {"name": name} for site, name in zip(described["sites"], SITES, strict=True)]
        (folder / "network.yaml").write_text(json.dumps(described))
        run = execute(
            settings(
                receiver_network={"network_file": "network.yaml"}, trained_model={"job_name": JOB, "description": JOB}
            )
        )
        assert run.result.success, run.failure()
        yield run
        run.storage.close()
        run.instance.dispose()


def test_no_name_is_ever_markdown(run: Run) -> None:
    """Dagster renders Markdown: nothing but our own pictures is."""
    pictures = 0
    for event in run.result.get_asset_materialization_events():
        for name, value in event.materialization.metadata.items():
            if isinstance(value, dg.MarkdownMetadataValue):
                assert PICTURE.fullmatch(str(value.value)), f"{event.asset_key}: {name}"
                pictures += 1
    assert pictures == 10


def test_tables_keep_their_cells(run: Run) -> None:
    rows = run.metadata("receiver_network")["sites"]
    assert [(row["number"], row["name"]) for row in rows] == list(enumerate(SITES, 1))
    assert len({tuple(row) for row in rows}) == 1


def test_names_are_kept_as_they_were_written(run: Run) -> None:
    model = get_model(run.engine, "rf-triangulation")
    assert model.network_name == NETWORK
    assert run.metadata("receiver_network")["network_name"] == NETWORK
    assert run.metadata("registered_model")["network"] == f"{NETWORK} ({model.network_digest[:8]})"
    (row,) = read_view(run.engine, model_overview)
    assert row["network"] == model.network
    (job,) = read_view(run.engine, job_overview)
    assert job["job_name"] == JOB


def test_the_pictures_are_there(run: Run) -> None:
    for name in ("error_cdf", "calibration_curve", "error_map"):
        (found,) = Path(run.storage.settings.object_store).glob(f"evaluations/**/{name}.png")
        assert found.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("version 1 of rf-triangulation (4.5 %, GDOP < 5) & so on: 3 > 2, best_model.pth", None),
        ("_a_ __b__ *c* `d` ~e~ [f](g) | \\", r"\_a\_ \_\_b\_\_ \*c\* \`d\` \~e\~ \[f\](g) \| \\"),
        ("![i](http://x/y.png)", r"!\[i\](http\://x/y.png)"),
        ("<img src=x> </a> <!-- <?x", r"\<img src=x> \</a> \<!-- \<?x"),
        ("&lt; &#60; www.x.org WWW.x me@x.org", r"\&lt; \&#60; www\.x.org WWW\.x me\@x.org"),
    ],
)
def test_words_in_markdown(written: str, stored: str | None) -> None:
    """What a browser makes of it is in the tests of the UI."""
    assert escape_markdown(written) == (stored or written)
