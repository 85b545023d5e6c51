"""A small network and its measurements as text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triangulation_pipeline.formats.columns import PLAIN, ColumnMapping
from triangulation_pipeline.formats.measurement_file import read_measurements
from triangulation_pipeline.formats.recording import Recording
from triangulation_pipeline.network import ReceiverNetwork, Site, Timing
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.scenario import Scenario

NETWORK = ReceiverNetwork(
    name="n",
    sites=(
        Site(name="A", lat=45.0, lon=7.0, altitude_m=100),
        Site(name="B hill", lat=45.3, lon=7.9, timing=Timing.radarcape_gps),
        Site(name="C, c", lat=44.6, lon=8.3, noise_figure_db=8),
        Site(name="D", lat=44.9, lon=8.9, timing=Timing.none),
    ),
)
LAYOUT = Layout(NETWORK, Scenario())
TIME_NS = 1764151200123456789
Read = Callable[..., Recording]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads the text of a file as one recording."""

    def read_text(
        content: str | bytes,
        mapping: ColumnMapping = PLAIN,
        name: str = "m.csv",
        layout: Layout = LAYOUT,
        **options: Any,
    ) -> Recording:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Recording.concatenate(list(read_measurements(path, layout, mapping, **options)))

    return read_text
