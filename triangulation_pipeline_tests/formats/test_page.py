"""The page on measurement files."""

from pathlib import Path

import numpy as np
import pytest

from triangulation_pipeline.formats.columns import ALIASES, FIELDS, read_mapping
from triangulation_pipeline.formats.measurement_file import read_measurements
from triangulation_pipeline.network_file import read_network
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline_tests.conftest import ROOT
from triangulation_pipeline_tests.test_documentation import blocks, comments, printed

PAGE = "docs/measurements.md"


def test_the_examples_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network = next(block for block in blocks("docs/tutorial.md", "yaml") if "network.yaml" in block.content)
    Path("network.yaml").write_text(network.content)
    long, wide = blocks(PAGE, "csv")
    Path("measurements.csv").write_text(long.content)
    (code,) = blocks(PAGE, "python")
    assert printed(code.content, {}) == comments(code.content)

    layout = Layout(read_network("network.yaml"), Scenario())
    mapping, own, by_place, by_key = blocks(PAGE, "yaml")
    Path("mapping.yaml").write_text(mapping.content)
    assert set(read_mapping("mapping.yaml").sources) < set(FIELDS)
    Path("sigma.yaml").write_text("toa_sigma_ns: {constant: 50}")
    Path("wide.csv").write_text(wide.content)
    (one,) = read_measurements("measurements.csv", layout)
    (other,) = read_measurements("wide.csv", layout, read_mapping("sigma.yaml"))
    assert not len(other.refused)
    for row in (0, 1):
        timed = other.measurements.toa_present[row]
        assert (one.measurements.toa_ns[row, timed] == other.measurements.toa_ns[row, timed]).all()
        assert (one.measurements.time_ns == other.measurements.time_ns).all()
    Path("own.yaml").write_text(own.content)
    lines = [
        "id;station;utc;level",
        "1;City;2025-11-26T10:00:00.123456789Z;-91",
        "1;Pass;2025-11-26T10:00:00.1236Z;-92",
    ]
    Path("own.csv").write_text("\n".join(lines) + "\n")
    (found,) = read_measurements("own.csv", layout, read_mapping("own.yaml"))
    assert np.ptp(found.measurements.toa_ns[found.measurements.toa_present]) == 143_211
    assert not len(found.refused)
    for nested in (by_place, by_key):
        cell, _, column = nested.content.partition("\n")[0].removeprefix("# ").partition(" in the column ")
        Path("nested.yaml").write_text(nested.content + "toa_sigma_ns: {constant: 50}")
        Path("nested.jsonl").write_text(f'{{"id": "a1", "time": "2025-11-26T10:00:00Z", "{column}": {cell}}}\n')
        (found,) = read_measurements("nested.jsonl", layout, read_mapping("nested.yaml"))
        assert found.measurements.signal_present.sum() == 2
        assert not len(found.refused)


def test_the_page_has_every_name() -> None:
    text = (ROOT / PAGE).read_text()
    for name in FIELDS:
        assert f"| `{name}`" in text or f"`, `{name}` |" in text, name
    for alias in {name for name in ALIASES if name not in {"gatewayid", "deduplicationid", "lorasnr"}}:
        assert f"`{alias}`" in text, alias
