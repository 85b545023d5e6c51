"""Pictures of a dataset."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.plots.maps import MapWords, draw_map
from triangulation_pipeline.plots.style import BLUE, GREEN, ORANGE, blank_figure, say_empty, set_title, tidy
from triangulation_pipeline.samples import Samples


def dataset_map(network: ReceiverNetwork, batch: Samples) -> Figure:
    """The places of a dataset's transmitters, and how well each can be located at best."""
    en_m = network.frame.en_m(batch.tx_lat, batch.tx_lon, 0.0)
    return draw_map(
        network,
        en_m,
        batch.crlb_m.astype(np.float64),
        MapWords(
            headline="How well each place can be located at best",
            places="transmitters",
            meaning="Cramér-Rao bound (rms position error)",
            missing="no bound",
        ),
    )


def dataset_histograms(batch: Samples) -> Figure:
    """Distributions of the SNR of a detection, the HDOP and the number of detections of a transmission."""
    figure = blank_figure(3.3)
    snr, dilution, detections = figure.subplots(1, 3)
    figure.suptitle(f"What the receivers hear of {len(batch):,} transmissions", fontsize=11)

    snr_db = batch.snr_db[batch.signal_present]
    snr.set_xlabel("SNR of a detection, dB")
    snr.set_ylabel("share")
    if len(snr_db):
        snr.hist(snr_db, bins=40, weights=np.full(len(snr_db), 1 / len(snr_db)), color=BLUE)
        set_title(snr, f"median {np.median(snr_db):.0f} dB", 9.5)
    else:
        say_empty(figure, snr, "no detection")

    hdop = batch.hdop[np.isfinite(batch.hdop)]
    dilution.set_xlabel("HDOP")
    if len(hdop):
        last = float(max(np.quantile(hdop, 0.99), 1.5 * hdop.min()))
        bins = np.geomspace(hdop.min(), last, 41)
        dilution.hist(np.minimum(hdop, last), bins=bins, weights=np.full(len(hdop), 1 / len(hdop)), color=ORANGE)
        dilution.set_xscale("log")
        dilution.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        dilution.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        dilution.xaxis.set_minor_formatter(NullFormatter())
        set_title(dilution, f"median {np.median(hdop):.2f}, last bar: {last:.2g} and more", 9.5)
    else:
        say_empty(figure, dilution, "no transmission with\nthree arrival times")

    detections.set_xlabel("detections of a transmission")
    if len(batch):
        count = np.arange(batch.num_sites + 1)
        detections.bar(count, np.bincount(batch.num_detections, minlength=len(count)) / len(batch), color=GREEN)
        detections.xaxis.set_major_locator(MaxNLocator(integer=True))
        detections.set_xlim(max(batch.num_detections.min() - 0.6, -0.6), len(count) - 0.4)
        set_title(detections, f"mean {batch.num_detections.mean():.1f} of at most {batch.num_sites}", 9.5)
    else:
        say_empty(figure, detections, "no transmission")
    for axes in (snr, dilution, detections):
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        tidy(axes)
    return figure
