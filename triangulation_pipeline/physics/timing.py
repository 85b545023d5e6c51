"""Arrival-time accuracy and the arrival-time equation."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triangulation_pipeline.physics.scenario import Scenario


def toa_sigma_ns(scenario: Scenario, snr_db: ArrayLike) -> NDArray[np.float64]:
    """Standard deviation of one receiver's arrival time.

    Correlation noise ``1 / (beta sqrt(2 B T SNR))`` with ``beta = pi B_s / sqrt 3`` (flat band), the clock's noise and
    what calibration leaves of the site's bias, in quadrature. By the first alone, two equal receivers give the
    deviation of the time *difference* of Stein 1981 (IEEE Trans. ASSP 29(3)).

    Parameters
    ----------
    scenario : Scenario
        Bandwidths, length of the transmission, noise of the time stamps and residual bias.
    snr_db : array_like, shape (...)
        Signal-to-noise ratio, dB.

    Returns
    -------
    ndarray, shape (...)
        Standard deviation, ns.
    """
    beta_per_s = np.pi * scenario.signal_bandwidth_khz * 1e3 / np.sqrt(3)
    time_bandwidth = 2 * scenario.noise_bandwidth_khz * 1e3 * scenario.burst_s
    correlation_ns = 1e9 / (beta_per_s * np.sqrt(time_bandwidth * 10 ** (np.asarray(snr_db, float) / 10)))
    return np.hypot(correlation_ns, np.hypot(scenario.clock_sigma_ns, scenario.site_bias_sigma_ns))
