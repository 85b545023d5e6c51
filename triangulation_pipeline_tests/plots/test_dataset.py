import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from triangulation_pipeline.plots.dataset import dataset_histograms
from triangulation_pipeline.samples import Samples
from triangulation_pipeline_tests.plots.pictures import drawn


def bars(axes: Axes) -> dict[float, float]:
    """The height of each bar that has one, by its middle."""
    found = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return {round(bar.get_x() + bar.get_width() / 2, 6): bar.get_height() for bar in found if bar.get_height()}


def test_dataset_histograms(default_batch: Samples, rss_batch: Samples) -> None:
    figure = dataset_histograms(default_batch)
    assert f"{len(default_batch):,} transmissions" in drawn(figure)
    assert "three arrival times" in drawn(dataset_histograms(rss_batch))
    snr, dilution, detections = figure.axes
    snr_db = default_batch.snr_db[default_batch.signal_present]
    heights, edges = np.histogram(snr_db, 40)
    middles = (edges[1:] + edges[:-1]) / 2
    some = heights > 0
    assert list(bars(snr)) == pytest.approx(list(middles[some]), abs=1e-3)
    assert list(bars(snr).values()) == pytest.approx(list(heights[some] / len(snr_db)))
    assert snr.get_title() == f"median {np.median(snr_db):.0f} dB"

    hdop = default_batch.hdop[np.isfinite(default_batch.hdop)]
    assert sum(bars(dilution).values()) == pytest.approx(1)
    last = max(np.quantile(hdop, 0.99), 1.5 * hdop.min())
    assert dilution.get_title() == f"median {np.median(hdop):.2f}, last bar: {last:.2g} and more"
    assert dilution.get_xscale() == "log"
    # Whatever is above is in the last bar.
    width = np.log(last / hdop.min()) / 40
    in_last = np.mean(np.log(hdop / hdop.min()) >= 39 * width)
    assert bars(dilution)[max(bars(dilution))] == pytest.approx(in_last, abs=2 / len(hdop))

    counts = default_batch.signal_present.sum(1)
    assert bars(detections) == pytest.approx({n: np.mean(counts == n) for n in range(8) if (counts == n).any()})
    assert detections.get_title() == f"mean {counts.mean():.1f} of at most 7"
    # A receiver detects also what it cannot time.
    heard = rss_batch.signal_present.sum(1).mean()
    assert dataset_histograms(rss_batch).axes[2].get_title() == f"mean {heard:.1f} of at most 7"
