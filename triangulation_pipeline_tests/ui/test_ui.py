"""What a person sees in Dagster's UI, in the order in which one looks at it."""

import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from sqlalchemy import update

from triangulation_pipeline.defs.config import TrainedModelConfig
from triangulation_pipeline.storage.engine import open_database
from triangulation_pipeline.storage.tables import models
from triangulation_pipeline_tests.ports import free_port
from triangulation_pipeline_tests.ui.conftest import BIN, SECONDS, Stack, open_launchpad, write_config

pytestmark = pytest.mark.ui

ASSETS = (
    "receiver_network",
    "network_plan",
    "synthetic_dataset",
    "training_split",
    "validation_split",
    "test_split",
    "trained_model",
    "model_evaluation",
    "registered_model",
)
# More than a quick machine trains while it is watched.
EPOCHS = 60

# The points that each chart of the page draws, by the chart's name.
DRAWN_POINTS = """() => {
  const charts = {};
  for (const canvas of document.querySelectorAll('canvas')) {
    let fiber = canvas[Object.keys(canvas).find(key => key.startsWith('__reactFiber'))];
    while (fiber && !fiber.memoizedProps?.data?.datasets) fiber = fiber.return;
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    if (fiber && pixels.some(value => value))
      for (const {label, data} of fiber.memoizedProps.data.datasets)
        charts[label] = data.filter(point => Number.isFinite(point.y)).length;
  }
  return charts;
}"""

# The newest epoch whose line the page shows.
NEWEST_EPOCH = f"""() => Math.max(
  0, ...[...document.body.innerText.matchAll(/epoch (\\d+)\\/{EPOCHS}:/g)].map(line => +line[1])
)"""


def test_the_graph_and_the_run_made_before(page: Page, stack: Stack, screenshot: Callable[[Page, str], None]) -> None:
    page.goto(f"/runs/{stack.seeded['job_id']}")
    expect(page.get_by_text("Success", exact=True).first).to_be_visible()
    page.goto("/runs")
    expect(page.get_by_text(stack.seeded["job_id"][:8])).to_be_visible()
    expect(page.get_by_text("train_locator")).to_be_visible()
    page.goto("/asset-groups")
    graph = page.locator("svg")
    for group in ("network", "simulation", "model"):
        expect(graph.get_by_text(group, exact=True).first).to_be_visible()
    page.keyboard.press("Alt+e")
    for asset in ASSETS:
        expect(graph.get_by_text(asset, exact=True).first).to_be_visible()
    # As little as possible beside the graph.
    page.get_by_text("Hide navigation").click()
    page.set_viewport_size({"width": 1280, "height": 720})
    page.reload()
    expect(graph.get_by_text("registered_model", exact=True).first).to_be_visible()
    jump = page.get_by_placeholder("Jump to")
    jump.locator("xpath=following::button[1]").click()
    expect(jump).to_have_count(0)
    page.set_viewport_size({"width": 1040, "height": 720})
    screenshot(page, "asset_graph")


@pytest.mark.parametrize(
    ("asset", "pictures"),
    [
        ("synthetic_dataset", ("map", "histograms")),
        ("trained_model", ("curves",)),
        ("model_evaluation", ("error_cdf", "calibration_curve", "error_map")),
        ("registered_model", ("curves",)),
    ],
)
def test_pictures_are_rendered(page: Page, asset: str, pictures: tuple[str, ...]) -> None:
    page.goto(f"/assets/{asset}")
    for name in pictures:
        row = page.locator("tr").filter(has=page.get_by_text(name, exact=True))
        row.get_by_text("[Show Markdown]").click()
        image = page.get_by_role("dialog").locator("img").last  # not an icon, which has the role too
        expect(image).to_be_visible()
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 700
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)


def test_the_launchpad_explains_the_fields(page: Page) -> None:
    launchpad = open_launchpad(page)
    launchpad.locator(".CodeMirror-line", has_text="learning_rate").click()
    description = str(TrainedModelConfig.model_fields["learning_rate"].description)
    expect(launchpad.get_by_text(description)).to_be_visible()


def test_the_launchpad_refuses_a_wrong_choice_type_or_name(page: Page) -> None:
    launchpad = open_launchpad(page)
    for wrong, refusal in (
        ({"epochs": "many"}, 'config:epochs. Value "many" of type'),
        ({"epochz": 3}, 'Received unexpected config entry "epochz"'),
        ({"lr_scheduler": "steps"}, "config:lr_scheduler not in enum type Scheduler got steps"),
    ):
        write_config(page, launchpad, {"trained_model": wrong})
        expect(launchpad.get_by_text(refusal)).to_be_visible()
        expect(launchpad.get_by_role("button", name="Materialize")).to_be_disabled()


def test_a_value_out_of_range_ends_the_run_in_its_first_second(page: Page, stack: Stack) -> None:
    run_id = launch(page, {"trained_model": {"epochs": 0}})
    expect(page.get_by_text("Failure", exact=True).first).to_be_visible()
    # Without scrolling: below what was not executed, and above the stack trace.
    sentence = "Failure: trained_model: epochs: Input should be greater than or equal to 1 (got 0)"
    expect(page.get_by_text(sentence).last).to_be_in_viewport()
    expect(page.get_by_text("Not executing").last).not_to_be_in_viewport()
    page.set_viewport_size({"width": 1280, "height": 1500})
    expect(page.get_by_text(f"receiver_network: {sentence.removeprefix('Failure: ')}").last).to_be_in_viewport()
    run = stack.run(run_id)
    # A second; on a machine with other things to do, a few.
    assert run["endTime"] - run["startTime"] < 5
    assert [step["stepKey"] for step in run["stepStats"] if step["status"] != "SKIPPED"] == ["receiver_network"]


def test_a_failed_check_refuses_promotion(page: Page) -> None:
    launch(
        page,
        {
            "synthetic_dataset": {"num_samples": 3000},
            "trained_model": {"epochs": 2, "accelerator": "cpu"},
            "model_evaluation": {"max_rmse_m": 1.0},
        },
    )
    expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=3 * SECONDS * 1000)
    page.goto("/assets/model_evaluation?view=checks&checkDetail=accuracy")
    expect(page.get_by_text("is above 1.0 m").first).to_be_visible()
    expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
    page.goto("/assets/registered_model")
    for key, value in (("promoted", "false"), ("promotion_reason", "is above 1.0 m")):
        row = page.locator("tr").filter(has=page.get_by_text(key, exact=True))
        expect(row.get_by_text(value)).to_be_visible()


HOSTILE = "| <img src=http://x.invalid/1.png> `a` *b* ![c](http://x.invalid/2.png) [d](http://x.invalid) www.x.invalid"


def test_a_name_in_a_checks_result_is_text(page: Page, stack: Stack) -> None:
    """Dagster renders such texts as Markdown; the one that may hold a name is that on another network in production."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    engine = open_database(stack.seeded["database"])
    with engine.begin() as connection:
        hostile = {"is_production": True, "network_name": HOSTILE[:100], "network_digest": "e" * 64}
        connection.execute(update(models).where(models.c.version == 1).values(**hostile))
    launch(page, {"synthetic_dataset": {"num_samples": 3000}, "trained_model": {"epochs": 2, "accelerator": "cpu"}})
    expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=3 * SECONDS * 1000)
    with engine.begin() as connection:
        connection.execute(update(models).values(is_production=False))
    engine.dispose()
    page.goto("/assets/registered_model?view=checks&checkDetail=not_worse_than_production")
    shown = page.get_by_text(f"rf-triangulation/1 in production is for another network, {HOSTILE[:100]} (eeeeeeee)")
    expect(shown.first).to_be_visible()
    assert [url for url in asked if not url.startswith((stack.url, "data:", "blob:"))] == []


def test_curves_grow_while_it_trains_until_it_is_terminated(
    page: Page, context: BrowserContext, stack: Stack, screenshot: Callable[[Page, str], None]
) -> None:
    run_id = launch(
        page,
        {
            "synthetic_dataset": {"num_samples": 8000},
            "trained_model": {"epochs": EPOCHS, "early_stop_patience": 0, "accelerator": "cpu"},
        },
    )
    # The run's page goes on by itself.
    for epoch in (1, 3):
        page.wait_for_function(f"() => ({NEWEST_EPOCH})() >= {epoch}")
        assert stack.run(run_id)["status"] == "STARTED"

    # The model's events have the curves so far whenever the page is opened.
    model = context.new_page()
    pictures: set[str] = set()
    while len(pictures) < 2:
        model.goto("/assets/trained_model?view=events")
        expect(model.get_by_text(f"Observed in run {run_id[:8]}")).to_be_visible()
        model.locator("tr").filter(has=model.get_by_text("curves", exact=True)).get_by_text("[Show Markdown]").click()
        image = model.get_by_role("dialog").locator("img").last
        expect(image).to_be_visible()
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 700
        pictures.add(str(image.get_attribute("src")))
        assert stack.run(run_id)["status"] == "STARTED", f"there were {len(pictures)} pictures while it trained"
    screenshot(model, "live_curves")

    page.get_by_role("button", name="Terminate").click()
    page.get_by_role("dialog").get_by_role("button", name="Terminate").click()
    expect(page.get_by_text("Canceled", exact=True).first).to_be_visible()


def test_plots_are_of_few_numbers_a_point_a_run(page: Page, stack: Stack) -> None:
    """No number of an epoch is among them, which would join the epochs of all runs by one line."""
    runs = stack.query(
        '{ assetOrError(assetKey: {path: ["trained_model"]}) { ... on Asset { assetMaterializations { runId } } } }'
    )["assetOrError"]["assetMaterializations"]
    assert len(runs) > 1
    points = drawn_points(page, "trained_model", "best_val_loss")
    assert set(points.values()) == {len(runs)}
    assert {"best_val_rmse_good_geom_m", "best_val_distance_p50_m", "best_val_coverage_95"} < set(points)
    assert not {"val_loss", "val_rmse_m", "train_loss"} & set(points)


def test_a_check_draws_its_numbers(page: Page) -> None:
    page.goto("/assets/model_evaluation?view=checks&checkDetail=calibration")
    expect(page.get_by_text("Fewer than 100 rows are too few to tell").first).to_be_visible()
    for name in ("coverage_50", "coverage_95", "coverage_99", "rows"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()


def test_every_switch_is_described(page: Page) -> None:
    page.goto("/automation")
    names = ("evaluate_and_register", "job_reconciler", "network_file_changed", "new_dataset", "periodic_retraining")
    for name in names:
        row = page.get_by_text(name, exact=True).locator("xpath=ancestor::*[.//input[@type='checkbox']][1]")
        expect(row.locator("[aria-label='info']")).to_be_visible()


def test_a_paused_run_says_so(page: Page, stack: Stack) -> None:
    long = {"epochs": 3000, "early_stop_patience": 0, "accelerator": "cpu", "job_name": "to be paused"}
    run_id = launch(page, {"synthetic_dataset": {"num_samples": 3000}, "trained_model": long})
    page.wait_for_function("() => /epoch 1\\/3000:/.test(document.body.innerText)")
    pause = [BIN / "triangulation", "pause", run_id]
    subprocess.run(pause, cwd=stack.home, env=stack.environment, check=True, stdout=subprocess.DEVNULL)
    expect(page.get_by_text("Failure", exact=True).first).to_be_visible()
    expect(page.get_by_text(f"`triangulation resume {run_id}` goes on from there").first).to_be_visible()
    page.get_by_role("button", name="View tags and config").click()
    for tag in ("outcome: paused", "job_name: to be paused", "model_name: rf-triangulation"):
        expect(page.get_by_role("dialog").get_by_text(f"triangulation/{tag}")).to_be_visible()


def test_a_second_ui_of_the_same_home_is_refused(stack: Stack) -> None:
    again = [BIN / "triangulation", "ui", "-p", str(free_port())]
    refused = subprocess.run(
        again, cwd=stack.home, env=stack.environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert refused.returncode == 1
    assert re.fullmatch(
        rf"Error: Dagster's pages and daemon of {stack.home} are running already \(processes \d+, \d+, \d+\); open "
        r"those, or end them first, by Ctrl-C where they were started or by `kill`\n",
        refused.stderr,
    )


def launch(page: Page, ops: dict[str, dict[str, Any]]) -> str:
    """Materialises everything from the graph page; gives the run's id, with its page open."""
    launchpad = open_launchpad(page)
    write_config(page, launchpad, ops)
    expect(launchpad.get_by_text("No errors")).to_be_visible()
    launchpad.get_by_role("button", name="Materialize").click()
    page.wait_for_url("**/runs/*")
    return page.url.rsplit("/", 1)[-1].split("?")[0]


def drawn_points(page: Page, asset: str, awaited: str) -> dict[str, int]:
    """How many points each chart of an asset's page draws, the page opened anew, once one has some."""
    page.goto(f"/assets/{asset}")
    page.get_by_role("button", name="Plots").click()
    page.wait_for_function(f"() => ({DRAWN_POINTS})().{awaited} > 0")
    points: dict[str, int] = page.evaluate(DRAWN_POINTS)
    return points
