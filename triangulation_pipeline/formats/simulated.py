"""Simulated recordings: what receivers that nobody has calibrated would write, for those who have no recording yet."""

from dataclasses import replace

import numpy as np

from triangulation_pipeline.calibration import SiteCalibration
from triangulation_pipeline.formats.recording import Recording, recording_of
from triangulation_pipeline.network import CLOCK_SIGMA_NS
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.simulator import simulate


def simulated_recording(
    layout: Layout, transmissions: int, known: float, seed: int
) -> tuple[Recording, SiteCalibration]:
    """Transmissions as receivers with clock biases and gains of their own would record them.

    Bias and gain of a receiver are constant over a recording. They are drawn once, with the standard deviations that
    ``SiteCalibration.prior`` expects of receivers which nobody has calibrated, but with ``site_bias_sigma_ns`` and
    ``gain_offset_sigma_db`` of the scenario. A gain that the network file tells is that one. ``toa_sigma_ns`` is what a
    receiver knows of itself: the noise of its time stamps and of its correlation, and nothing of the bias.

    Values have the digits that receivers write: whole nanoseconds, tenths of decibels.

    Parameters
    ----------
    layout : Layout
        The network, and the conditions there.
    transmissions : int
        How many there are.
    known : float
        The share of transmissions whose place is told, 0 to 1. The measurements do not depend on it.
    seed : int
        Equal arguments give equal recordings.

    Returns
    -------
    recording : Recording
        Of the network of the layout.
    truth : SiteCalibration
        The biases and gains, taken as exact, as ``estimate_calibration`` could find them: both have the sum 0.

    Raises
    ------
    ValueError
        If ``known`` is out of range, or as ``simulate``.
    """
    network, scenario = layout.network, layout.scenario
    rng = np.random.default_rng(seed)
    stamp_ns = [CLOCK_SIGMA_NS.get(site.timing, 0.0) for site in network.sites]
    bias_ns = np.hypot(scenario.site_bias_sigma_ns, stamp_ns) * rng.standard_normal(len(network.sites))
    drawn_db = np.clip(scenario.gain_offset_sigma_db * rng.standard_normal(len(network.sites)), -30, 30)
    gain_db = [
        float(drawn) if site.gain_offset_db is None else site.gain_offset_db
        for site, drawn in zip(network.sites, drawn_db, strict=True)
    ]
    # A gain acts before detection, so it belongs to the sites that are simulated.
    sites = tuple(
        site.model_copy(update={"gain_offset_db": gain}) for site, gain in zip(network.sites, gain_db, strict=True)
    )
    constant = scenario.model_copy(update={"site_bias_sigma_ns": 0.0, "gain_offset_sigma_db": 0.0})
    samples = simulate(DatasetSpec(network.model_copy(update={"sites": sites}), constant, transmissions, seed))
    rounded = {
        name: getattr(samples, name).round(decimals)
        for name, decimals in (("snr_db", 1), ("power_dbm", 1), ("frequency_offset_hz", 1), ("toa_sigma_ns", 1))
    } | {name: getattr(samples, name).round(6) for name in ("tx_lat", "tx_lon")}
    late_ns = np.where(samples.toa_present, np.rint(samples.toa_ns + bias_ns), 0.0)
    recording = recording_of(replace(samples, toa_ns=late_ns, **rounded), network, withhold=1 - known)
    width = len(str(transmissions))
    names = np.array([f"t{number:0{width}}" for number in range(1, transmissions + 1)], object)
    truth = replace(
        SiteCalibration.of_network(network),
        toa_bias_ns=bias_ns - bias_ns[network.has_timing].mean(),
        gain_offset_db=np.array(gain_db) - np.mean(gain_db),
    )
    return replace(recording, transmission_id=names), truth
