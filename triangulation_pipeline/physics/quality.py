"""What a simulated dataset is like, in numbers."""

from collections.abc import Iterable

import numpy as np

from triangulation_pipeline.physics.constants import GOOD_GDOP
from triangulation_pipeline.physics.simulator import Chunk
from triangulation_pipeline.samples import Samples, Split


def quality_metrics(
    batch: Samples, chunks: Iterable[Chunk], max_gdop: float = GOOD_GDOP
) -> dict[str, float | int | None]:
    """What a simulated dataset is like, in numbers.

    Parameters
    ----------
    batch : Samples
        All samples of the dataset.
    chunks : iterable of Chunk
        The chunks that they came in.
    max_gdop : float
        Samples with a lower GDOP have good geometry.

    Returns
    -------
    dict
        Counts, SNR, detections, geometry and the Cramér-Rao bound, by names with units. None means that there is no
        such row.
    """

    def rounded(value: float | np.floating) -> float:
        return round(float(value), 4)

    chunks = list(chunks)
    snr_db = batch.snr_db[batch.signal_present]
    good = batch.gdop < max_gdop
    bound_m = batch.crlb_m[good]
    gdop = batch.gdop[~np.isnan(batch.gdop)]
    candidates = sum(chunk.candidates for chunk in chunks)
    split = np.bincount(batch.split, minlength=len(Split))
    return {
        "train_count": int(split[Split.train]),
        "val_count": int(split[Split.val]),
        "test_count": int(split[Split.test]),
        "candidates": candidates,
        "rejected_few_detections": sum(chunk.rejected_few_detections for chunk in chunks),
        "rejected_path_loss_range": sum(chunk.rejected_path_loss_range for chunk in chunks),
        "acceptance_rate": rounded(len(batch) / candidates),
        "mean_detections": rounded(batch.num_detections.mean()),
        "snr_p5_db": rounded(np.percentile(snr_db, 5)),
        "snr_p50_db": rounded(np.percentile(snr_db, 50)),
        "snr_p95_db": rounded(np.percentile(snr_db, 95)),
        "gdop_p50": rounded(np.median(gdop)) if len(gdop) else None,
        "good_geometry_share": rounded(good.mean()),
        "crlb_good_geom_rms_m": rounded(np.sqrt(np.mean(bound_m.astype(float) ** 2))) if len(bound_m) else None,
        "crlb_good_geom_p50_m": rounded(np.median(bound_m)) if len(bound_m) else None,
    }
