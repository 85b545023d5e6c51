"""A client of Dagster's webserver: launch, follow, stop and resume runs, and read what Dagster knows of the assets.

The requests are the files in ``graphql/``; other programs may use them unchanged::

    from triangulation_pipeline.client import Webserver

    webserver = Webserver("http://localhost:3000")
    run = webserver.launch({"ops": {"trained_model": {"config": {"epochs": 5}}}})
    for epoch in webserver.events(run.run_id).epochs:
        print(epoch["epoch"], epoch["val_rmse_m"])
"""

import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeVar

import requests
from requests.auth import HTTPBasicAuth

from triangulation_pipeline.address import by_proxy, parse_address
from triangulation_pipeline.defs.run_config import config_fault
from triangulation_pipeline.errors import PipelineError
from triangulation_pipeline.validation import SHOWN_CHARACTERS, brief, printable, uuid_text

URL_VARIABLE = "TRIANGULATION_WEBSERVER_URL"
DEFAULT_URL = "http://localhost:3000"

# A launch waits for the code server, which may be busy. This is for the whole answer, however slowly it comes.
TIMEOUT_S = 60
# A server that is not Dagster's may send anything; a thousand events are a megabyte or two.
MOST_ANSWER_BYTES = 32 * 2**20
MOST_PAGES = 1000
# What an observation of an epoch has at least, and a limit that none of its numbers reaches.
EPOCH_LABELS = frozenset({"epoch", "val_rmse_m", "val_loss"})
LARGEST_NUMBER = 1e30
STARTING_POLL_S = 0.5
JOB = "train_locator"
USUAL_LOCATION = "triangulation_pipeline"
FINISHED = frozenset({"SUCCESS", "FAILURE", "CANCELED"})
PARENT_RUN_TAG = "dagster/parent_run_id"
ROOT_RUN_TAG = "dagster/root_run_id"


T = TypeVar("T")


class WebserverError(PipelineError):
    """The webserver cannot be reached, or refuses what it was asked."""


class RunNotFound(WebserverError):
    """Dagster has no run with that id."""


@dataclass(frozen=True)
class Run:
    """A run of Dagster. ``status`` is QUEUED, STARTING, STARTED, SUCCESS, FAILURE, CANCELING or CANCELED."""

    run_id: str
    status: str
    job_name: str
    parent_run_id: str | None
    root_run_id: str | None
    start_time_s: float | None
    end_time_s: float | None
    run_config: dict[str, Any]
    is_launched: bool  # by the webserver or the daemon, as opposed to a process of `triangulation run`

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended."""
        return self.status in FINISHED


@dataclass(frozen=True)
class Events:
    """What happened in a run since the cursor of the previous call: the metrics of epochs, and the sentence of a
    failure."""

    epochs: list[dict[str, float]]
    failure: str | None
    cursor: str


@dataclass(frozen=True)
class AssetEvent:
    """A materialisation or observation of an asset. ``metadata`` has its numbers, texts, paths and JSON."""

    run_id: str
    timestamp_s: float
    metadata: dict[str, Any]


class Webserver:
    """Dagster's webserver at a URL. Without a URL it is that of ``TRIANGULATION_WEBSERVER_URL``, else port 3000 of this
    machine. Raises WebserverError if the URL is wrong; every method raises it if the webserver cannot be reached or
    refuses the request."""

    def __init__(self, url: str | None = None) -> None:
        try:
            address = parse_address(url or os.environ.get(URL_VARIABLE) or DEFAULT_URL)
        except ValueError as error:
            raise WebserverError(f"the webserver's URL must be as in {DEFAULT_URL}: it {error}") from None
        if address.scheme not in {"http", "https"} or not address.host or re.search(r"[?#]", address.rest):
            raise WebserverError(f"the webserver's URL must be as in {DEFAULT_URL}, got {str(address)!r}")
        self.url = f"{address}{address.rest}".rstrip("/")
        """Without user and password."""
        self._shown = f"{address}{printable(address.rest)[:SHOWN_CHARACTERS]}".rstrip("/")
        self._address = address
        self._session = requests.Session()
        if address.user is not None:
            # Apart from the URL, which libraries split by rules of their own and quote in what they raise.
            self._session.auth = HTTPBasicAuth(address.user.encode(), (address.password or "").encode())

    def launch(self, run_config: Mapping[str, Any], tags: Mapping[str, str] | None = None) -> Run:
        """Launches the whole graph. Dagster checks names, types and choices of the run config, but not ranges."""
        listed = [{"key": key, "value": value} for key, value in (tags or {}).items()]
        location = self._location()
        return self._ask("launch_run", _launched, runConfig=run_config, tags=listed, location=location)

    def reexecute(self, run: Run) -> Run:
        """Launches a run of what a failed run did not finish, or of everything if the run was cancelled."""
        if not run.is_launched:
            parent, root = run.run_id, run.root_run_id or run.run_id
            # Dagster writes these tags itself only if it knows the run.
            tags = [{"key": PARENT_RUN_TAG, "value": parent}, {"key": ROOT_RUN_TAG, "value": root}]
            again = {"runConfig": run.run_config, "tags": tags, "parentRunId": parent, "rootRunId": root}
            return self._ask("launch_run", _launched, **again, location=self._location())
        strategy = "FROM_FAILURE" if run.status == "FAILURE" else "ALL_STEPS"
        return self._ask("reexecute_run", _launched, runId=run.run_id, strategy=strategy)

    def terminate(self, run_id: str) -> None:
        """Cancels a run that is queued or running. It waits for a run that is starting: Dagster would call such a run
        cancelled and start it all the same."""
        while self.run(run_id).status == "STARTING":
            time.sleep(STARTING_POLL_S)
        self._ask("terminate_run", lambda found: None, runId=run_id)

    def run(self, run_id: str) -> Run:
        """The run with that id. Raises RunNotFound if there is none."""
        return self._ask("run", _run, runId=run_id)

    def reexecutions(self, run_id: str) -> list[Run]:
        """The runs that re-execute that run, the newest first."""
        wanted = {"tags": [{"key": PARENT_RUN_TAG, "value": run_id}]}
        return self._ask("runs", lambda found: [_run(run) for run in found["results"]], filter=wanted)

    def runs_named(self, beginning: str) -> list[Run]:
        """The runs whose ids begin with this text, the newest first."""
        found = self._ask("run_ids", lambda found: [uuid_text("a run's id", run_id) for run_id in found["results"]])
        return [self.run(run_id) for run_id in found if run_id.startswith(beginning)]

    def check(self) -> None:
        """Raises WebserverError if the webserver cannot be reached, or is not one of Dagster."""
        self._ask("job_locations", _locations)

    def events(self, run_id: str, after: str | None = None) -> Events:
        """What happened in a run after a cursor, or since its beginning."""
        epochs: list[dict[str, float]] = []
        failure = None
        for _ in range(MOST_PAGES):
            page = self._ask("run_events", _page, runId=run_id, after=after)
            epochs += page.epochs
            failure = failure or page.failure
            if not page.has_more:
                return Events(epochs, failure, page.cursor)
            after = page.cursor
        raise WebserverError(f"the webserver at {self._shown} has no end of events of run {run_id}")

    def materializations(self, asset: str, limit: int = 20) -> list[AssetEvent]:
        """The materialisations of an asset, the newest first, ``limit`` at most."""
        return self._ask(
            "asset_materializations",
            lambda found: [_asset_event(event) for event in found["assetMaterializations"]],
            asset=[asset],
            limit=limit,
        )

    def observations(self, asset: str, limit: int = 20) -> list[AssetEvent]:
        """The observations of an asset, the newest first, ``limit`` at most. Those of ``trained_model`` have the
        ``metrics`` of an epoch."""
        return self._ask(
            "asset_observations",
            lambda found: [_asset_event(event) for event in found["assetObservations"]],
            asset=[asset],
            limit=limit,
        )

    def _location(self) -> str:
        """The code location that has the job; if several have it, the one of the usual name. Raises WebserverError."""
        found = self._ask("job_locations", _locations)
        if USUAL_LOCATION in found:
            return USUAL_LOCATION
        if not found:
            raise WebserverError(
                f"no code location of the webserver at {self._shown} has the job {JOB}; its code server is away, "
                "cannot load the pipeline, or serves something else"
            )
        if len(found) > 1:
            raise WebserverError(
                f"{len(found)} code locations of the webserver at {self._shown} have the job {JOB}; "
                f"name the one to use {USUAL_LOCATION} in its workspace"
            )
        return found[0]

    def _ask(self, name: str, read: Callable[[Any], T], **variables: Any) -> T:
        """Sends ``graphql/{name}.graphql`` and gives what ``read`` makes of the one field of the answer. Raises
        WebserverError with one sentence, also if the answer is not Dagster's."""
        status, content = self._post({"query": query(name), "variables": variables})
        # Dagster answers faults of the code server with HTTP 500 and the reason in the body.
        try:
            answer = json.loads(content)
            if faults := answer.get("errors"):
                raise WebserverError(f"the webserver refused {name}: {brief(faults[0]['message'])}")
            found = next(iter(answer["data"].values()))
            if (refusal := _refusal(found)) is not None:
                raise (RunNotFound if found["__typename"] == "RunNotFoundError" else WebserverError)(refusal)
            return read(found)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, StopIteration, RecursionError):
            raise WebserverError(f"{self._shown} answered HTTP {status}, and not as Dagster's webserver does") from None

    def _post(self, body: Any) -> tuple[int, bytes]:
        """HTTP status and content. Raises WebserverError if no answer comes in time, or if it is too large."""
        answer: Future[tuple[int, bytes]] = Future()

        def work() -> None:
            try:
                answer.set_result(self._exchange(body))
            except Exception as error:
                answer.set_exception(error)

        # The time limit of requests is for each piece of an answer, and one that comes byte by byte would never end.
        threading.Thread(target=work, daemon=True).start()
        try:
            return answer.result(TIMEOUT_S)
        except (TimeoutError, requests.Timeout):
            raise WebserverError(f"the webserver at {self._shown} did not answer within {TIMEOUT_S} s") from None
        except requests.exceptions.SSLError:
            raise WebserverError(
                f"there is no secure connection to the webserver at {self._shown}: its certificate is not trusted, "
                "or it speaks http"
            ) from None
        except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError):
            raise WebserverError(f"the webserver at {self._shown} broke off, or sent what cannot be read") from None
        except WebserverError:
            raise
        except Exception:  # whatever a proxy's address or a foreign server makes the libraries raise
            raise WebserverError(
                f"the webserver at {self._shown} cannot be reached{by_proxy(self._address)}; start it with `make ui`, "
                f"or name another with --url or {URL_VARIABLE}"
            ) from None

    def _exchange(self, body: Any) -> tuple[int, bytes]:
        where = f"{self.url}/graphql"
        options: dict[str, Any] = {"timeout": TIMEOUT_S, "stream": True, "allow_redirects": False}
        with self._session.post(where, json=body, **options) as response:
            if response.is_redirect:
                raise WebserverError(
                    f"the webserver at {self._shown} sends its callers to another address (HTTP "
                    f"{response.status_code}); name that one with --url or {URL_VARIABLE}"
                )
            content = bytearray()
            for piece in response.iter_content(2**16):
                content += piece
                if len(content) > MOST_ANSWER_BYTES:
                    raise WebserverError(
                        f"{self._shown} answered more than {MOST_ANSWER_BYTES:,} bytes, "
                        "and not as Dagster's webserver does"
                    )
            return response.status_code, bytes(content)


def query(name: str) -> str:
    """The text of ``graphql/{name}.graphql``."""
    return files("triangulation_pipeline").joinpath("graphql", f"{name}.graphql").read_text(encoding="utf-8")


def _refusal(found: Mapping[str, Any]) -> str | None:
    """Why the request was refused, None if it was not: an error of Dagster's API has a message or, for run config,
    several."""
    kind = found["__typename"]
    if kind == "RunConfigValidationInvalid":
        return brief("; ".join(config_fault(error["message"]) for error in found["errors"]))
    if kind.endswith(("Error", "Failure", "Conflict")):
        return brief(found.get("message") or kind)
    return None


def _failure(event: Mapping[str, Any]) -> str | None:
    """The sentence of an event that makes a run fail."""
    kind = event["__typename"]
    if kind == "AssetCheckEvaluationEvent":
        check = event["evaluation"]
        if check["success"] or check["severity"] != "ERROR":
            return None
        return brief(f"{check['checkName']}: {check['description']}")
    if kind == "ExecutionStepFailureEvent":
        described = (event["failureMetadata"] or {}).get("description")
        return brief(f"{event['stepKey']}: {described or _cause(event, 'failed')}")
    if kind == "RunFailureEvent":
        # No step was running: if the run was refused before its first step, Dagster's own error comes first.
        return brief(_cause(event, event["message"]).removeprefix("ValueError: "))
    return None


def _cause(event: Mapping[str, Any], otherwise: str) -> str:
    """The message of the error that caused the other errors of an event."""
    error = event["error"]
    return otherwise if error is None else [error, *(link["error"] for link in error["errorChain"])][-1]["message"]


@dataclass(frozen=True)
class _Page:
    epochs: list[dict[str, float]]
    failure: str | None
    cursor: str
    has_more: bool


def _page(found: Mapping[str, Any]) -> _Page:
    seen = [_epoch(event) for event in found["events"] if event["__typename"] == "ObservationEvent"]
    failures = (_failure(event) for event in found["events"])
    return _Page(
        epochs=[epoch for epoch in seen if epoch.keys() >= EPOCH_LABELS],
        failure=next((failure for failure in failures if failure is not None), None),
        cursor=str(found["cursor"]),
        has_more=bool(found["hasMore"]),
    )


def _epoch(event: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an observation: its ``metrics``, or single entries in events of earlier versions. Raises
    ValueError for numbers that no training has."""
    found = _metadata(event)
    found |= found.pop("metrics", {})
    numbers = {
        label: value for label, value in found.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    for label, value in numbers.items():
        if not math.isfinite(value) or abs(value) > LARGEST_NUMBER:
            raise ValueError(f"{label} is no number of a training")
    if numbers.get("epoch", 1) < 1 or numbers.get("val_rmse_m", 1) <= 0:
        raise ValueError("an epoch is counted from 1, and an error is positive")
    return numbers


def _locations(found: Mapping[str, Any]) -> list[str]:
    names = [(node["location"]["name"], {job["name"] for job in node["jobs"]}) for node in found["nodes"]]
    return [str(location) for location, jobs in names if JOB in jobs]


def _launched(found: Mapping[str, Any]) -> Run:
    return _run(found["run"])


def _run(found: Mapping[str, Any]) -> Run:
    """The run of an answer. Raises ValueError, among others, if it is not a run."""
    status, run_config = found["status"], found["runConfig"]
    if not re.fullmatch("[A-Z_]{1,40}", status) or not isinstance(run_config, dict):
        raise ValueError("no status or run config of Dagster's")
    return Run(
        run_id=uuid_text("runId", found["runId"]),
        status=status,
        job_name=str(found["jobName"]),
        parent_run_id=_id_or_none(found["parentRunId"]),
        root_run_id=_id_or_none(found["rootRunId"]),
        start_time_s=found["startTime"],
        end_time_s=found["endTime"],
        run_config=run_config,
        is_launched=found["repositoryOrigin"] is not None,
    )


def _id_or_none(value: Any) -> str | None:
    return None if value is None else uuid_text("a run's id", value)


def _asset_event(found: Mapping[str, Any]) -> AssetEvent:
    return AssetEvent(found["runId"], float(found["timestamp"]) / 1000, _metadata(found))


def _metadata(event: Mapping[str, Any]) -> dict[str, Any]:
    """The value of each label; entries of other kinds (pictures, tables) are left out."""
    found = {}
    for entry in event["metadataEntries"]:
        label = entry["label"]
        values = {name: value for name, value in entry.items() if name not in {"__typename", "label"}}
        for name, value in values.items():
            if name == "intRepr":
                found[label] = int(value)
            elif name == "jsonString":
                found[label] = json.loads(value)
            else:
                found[label] = value
    return found
