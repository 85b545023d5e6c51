"""Thousands of bad inputs: each is taken, or refused with one sentence; nothing else comes out."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triangulation_pipeline.definitions import train_locator_job
from triangulation_pipeline.defs.config import STEP_CONFIGS, check_whole_run_config
from triangulation_pipeline.defs.run_config import read_run_config
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork
from triangulation_pipeline.network_file import read_network

pytestmark = pytest.mark.faults

MANY = settings(max_examples=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])

NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64, 1e308, 5e-324, float("nan"), float("inf")]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=20), st.sampled_from(["gpu", "rss", "cosine"]))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=5,
)
FIELDS = {step: sorted(model.model_fields) for step, model in STEP_CONFIGS.items()}


@st.composite
def run_configs(draw: st.DrawFn) -> Any:
    """Run config: mostly of the right shape, with fields of the right names and values of any kind."""
    if draw(st.integers(0, 19)) == 0:
        return draw(VALUES)
    ops: dict[str, Any] = {}
    for step in draw(st.lists(st.sampled_from(sorted(FIELDS)), unique=True, max_size=3)):
        names = (
            st.sampled_from(FIELDS[step]) | st.text(max_size=12)
            if draw(st.booleans())
            else st.sampled_from(FIELDS[step])
        )
        ops[step] = {"config": draw(st.dictionaries(names, VALUES | NUMBERS, max_size=3))}
    return {"ops": ops}


def in_one_sentence(error: ValueError) -> None:
    told = str(error)
    assert told.strip()
    assert told.isprintable()
    assert len(told) < 1000
    assert "Traceback" not in told
    assert "pydantic.dev" not in told


@given(run_configs())
@MANY
def test_run_configs(tmp_path: Path, config: Any) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    try:
        check_whole_run_config(train_locator_job(), read_run_config(path))
    except ValueError as error:
        in_one_sentence(error)


@st.composite
def network_documents(draw: st.DrawFn) -> Any:
    """The default network with a few places replaced, left out or added."""
    document: Any = json.loads(NORTH_WEST_ITALY.model_dump_json(exclude_none=True))
    for _ in range(draw(st.integers(1, 3))):
        site = draw(st.sampled_from([document, *document["sites"]]))
        name = draw(st.sampled_from(sorted(site) or ["name"]) | st.text(max_size=10))
        match draw(st.integers(0, 3)):
            case 0 if name != "sites":
                site.pop(name, None)
            case 1 if name == "sites":
                document["sites"] = document["sites"][: draw(st.integers(0, 3))] or [{}]
            case _ if name != "sites":
                site[name] = draw(VALUES)
    return document


@given(network_documents() | VALUES)
@MANY
def test_network_files(tmp_path: Path, document: Any) -> None:
    path = tmp_path / "network.yaml"
    path.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    try:
        assert isinstance(read_network(path), ReceiverNetwork)
    except ValueError as error:
        in_one_sentence(error)


CELLS = st.one_of(st.text(max_size=8), st.floats().map(str), st.sampled_from(["name", "lat", "lon", "45", "7,5", '"']))


@st.composite
def tables(draw: st.DrawFn) -> str:
    """A CSV file of sites, with cells of any kind between the good ones."""
    rows = [["name", "lat", "lon"], ["a", "45", "7"], ["b", "45.2", "7.9"], ["c", "44.6", "8.3"]]
    for _ in range(draw(st.integers(0, 3))):
        row = draw(st.sampled_from(rows))
        row[draw(st.integers(0, len(row) - 1))] = draw(CELLS)
    return "\n".join(draw(st.sampled_from([",", ";", "\t"])).join(row) for row in rows)


@st.composite
def collections(draw: st.DrawFn) -> Any:
    """GeoJSON points, with values of any kind in place of some parts."""
    features: list[Any] = [
        {"type": "Feature", "properties": {"name": name}, "geometry": {"type": "Point", "coordinates": place}}
        for name, place in (("a", [7, 45]), ("b", [7.9, 45.2, 10]), ("c", [8.3, 44.6]))
    ]
    document: Any = {"type": "FeatureCollection", "name": "n", "features": features}
    for _ in range(draw(st.integers(0, 3))):
        feature = features[draw(st.integers(0, 2))]
        parts = [document, feature, feature.get("properties"), feature.get("geometry")]
        part = draw(st.sampled_from([part for part in parts if isinstance(part, dict) and part]))
        name = draw(st.sampled_from([*sorted(part), "altitude_m"]))
        if part is not document or name != "features":
            part[name] = draw(VALUES)
    return document


@given(tables() | collections())
@MANY
def test_tables_and_map_data(tmp_path: Path, content: Any) -> None:
    path = tmp_path / ("sites.csv" if isinstance(content, str) else "sites.geojson")
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8", errors="replace")
    try:
        assert isinstance(read_network(path), ReceiverNetwork)
    except ValueError as error:
        in_one_sentence(error)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode), st.sampled_from(["yaml", "csv", "json"]))
@MANY
def test_files_of_anything(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"file.{ending}"
    path.write_bytes(content)
    for read in (read_network, read_run_config):
        try:
            read(path)
        except ValueError as error:
            in_one_sentence(error)
