"""What is known of the sites of a network, and is subtracted from measurements before anything else sees them."""

from dataclasses import dataclass, replace
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.samples import Samples

Float = NDArray[np.float64]
AnyMeasurements = TypeVar("AnyMeasurements", bound=Measurements)


@dataclass(frozen=True)
class SiteCalibration:
    """Clock bias and gain of r sites, with standard errors, and the measurements that they rest on.

    Only differences of clock biases are observable: the biases of the sites with arrival times have the sum 0.
    ``from_ns`` and ``to_ns`` are the times of the first and the last measurement, None if there are none.
    """

    toa_bias_ns: Float  # (r,)
    toa_bias_sigma_ns: Float  # (r,)
    gain_offset_db: Float  # (r,)
    gain_offset_sigma_db: Float  # (r,)
    rows: NDArray[np.int64]  # (r,) measurements of each site
    from_ns: int | None = None
    to_ns: int | None = None

    @classmethod
    def of_network(cls, network: ReceiverNetwork) -> Self:
        """What the network file says: the measured gains, and no clock bias.

        Parameters
        ----------
        network : ReceiverNetwork
            The sites.

        Returns
        -------
        SiteCalibration
            Taken as exact.
        """
        zero = np.zeros(len(network.sites))
        gain_db = np.array([site.gain_offset_db or 0.0 for site in network.sites])
        return cls(zero, zero, gain_db, zero, np.zeros(len(network.sites), np.int64))

    def apply(self, measurements: AnyMeasurements) -> AnyMeasurements:
        """Measurements less what is known of the sites.

        Biases are taken off the arrival times, and the standard errors of the biases are added to ``toa_sigma_ns`` in
        quadrature. Gains are taken off the levels, and off the noise floor that stands for the level of a receiver
        which detected nothing.

        Parameters
        ----------
        measurements : Measurements
            n rows of the same sites.

        Returns
        -------
        Measurements
            Of the same type.

        Raises
        ------
        ValueError
            If the measurements are of another number of sites.
        """
        _check_sites(len(self.rows), measurements)
        timed = measurements.toa_present
        sigma_ns = np.hypot(measurements.toa_sigma_ns, self.toa_bias_sigma_ns)
        return replace(
            measurements,
            toa_ns=np.where(timed, measurements.toa_ns - self.toa_bias_ns, 0.0),
            toa_sigma_ns=np.where(timed, sigma_ns, 0.0).astype(np.float32),
            power_dbm=(measurements.power_dbm - self.gain_offset_db).astype(np.float32),
        )


def estimate_calibration(layout: Layout, samples: Samples) -> SiteCalibration:
    """Clock biases and gains of the sites, from measurements of transmitters at known places.

    Parameters
    ----------
    layout : Layout
        The network, and the noise and propagation there.
    samples : Samples
        n rows of that network, with the truth.

    Returns
    -------
    SiteCalibration
    """
    raise NotImplementedError


def _check_sites(sites: int, measurements: Measurements) -> None:
    if measurements.num_sites != sites:
        raise ValueError(f"the calibration is of {sites} sites, the measurements are of {measurements.num_sites}")
