"""What is known of the sites of a network, and is taken off measurements before anything else sees them."""

from dataclasses import dataclass, replace
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.network import CLOCK_SIGMA_NS, ReceiverNetwork
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.refraction import slowing
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.site_clocks import estimate_clocks
from triangulation_pipeline.physics.site_gains import estimate_gains

Float = NDArray[np.float64]

AnyMeasurements = TypeVar("AnyMeasurements", bound=Measurements)


@dataclass(frozen=True)
class SiteCalibration:
    """What is known of r sites, each number with its standard error, and the measurements that it rests on.

    Only differences of clock biases are observable: the biases of the sites with arrival times have the sum 0, and so
    have the drifts, but for sites that have few rows. Sites that no transmission joins, as on two islands, are groups,
    each with the sum 0: nothing is known of a bias against those of another group. A number that nothing is known of
    has an infinite standard error. ``from_ns`` and ``to_ns`` are the times of the first and the last measurement, None
    if there are none.

    Drift and outliers tell how a receiver is, and are not taken off: a clock that GPS disciplines does not drift for
    long, and any other one cannot be foretold.
    """

    toa_bias_ns: Float  # (r,) how late the arrival times are
    toa_bias_sigma_ns: Float  # (r,)
    toa_sigma_factor: Float  # (r,) the standard deviation of arrival times, in units of what the receiver says of it
    toa_sigma_factor_sigma: Float  # (r,)
    drift_ns_per_s: Float  # (r,) how the bias grows
    drift_sigma_ns_per_s: Float  # (r,)
    outlier_share: Float  # (r,) of arrival times, 0 to 1, that neither noise nor a delayed path explains
    outlier_share_sigma: Float  # (r,)
    gain_offset_db: Float  # (r,) how much too high the levels are
    gain_offset_sigma_db: Float  # (r,)
    group: NDArray[np.int64]  # (r,) sites whose biases can be compared have the same number
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
        none = np.zeros(len(network.sites), np.int64)
        return cls(zero, zero, zero + 1, zero, zero, zero, zero, zero, gain_db, zero, none, none)

    @classmethod
    def prior(cls, network: ReceiverNetwork) -> Self:
        """What is expected of sites that nobody has calibrated.

        A clock bias is 0 with a standard error by the clock: that of the preset ``uncalibrated``, and in quadrature
        that of a time stamp (``CLOCK_SIGMA_NS``), because a counter that is bound to UTC from outside is bound no
        better. A gain that the network file does not tell is 0 with the standard error of that preset.

        Parameters
        ----------
        network : ReceiverNetwork
            The sites.

        Returns
        -------
        SiteCalibration
        """
        wide = PRESETS[Preset.uncalibrated]
        told = np.array([site.gain_offset_db is not None for site in network.sites])
        unknown = np.full(len(network.sites), np.inf)
        return replace(
            cls.of_network(network),
            toa_bias_sigma_ns=_uncalibrated_bias_sigma_ns(network),
            toa_sigma_factor_sigma=unknown,
            drift_sigma_ns_per_s=unknown,
            outlier_share_sigma=unknown,
            gain_offset_sigma_db=np.where(told, 0.0, wide.gain_offset_sigma_db),
        )

    def conditions(self, layout: Layout) -> Layout:
        """The layout with gains as uncertain as they are here. A level of a single link then counts for less.

        Parameters
        ----------
        layout : Layout
            The network, and the conditions of calibrated sites.

        Returns
        -------
        Layout
            ``gain_offset_sigma_db`` of its scenario is the rms of the standard errors, if that is more. A gain that
            nothing is known of counts as in the preset ``uncalibrated``.
        """
        unknown_db = PRESETS[Preset.uncalibrated].gain_offset_sigma_db
        rms_db = float(np.sqrt(np.mean(np.minimum(self.gain_offset_sigma_db, unknown_db) ** 2)))
        sigma_db = max(layout.scenario.gain_offset_sigma_db, rms_db)
        return Layout(layout.network, layout.scenario.model_copy(update={"gain_offset_sigma_db": sigma_db}))

    def age_s(self, time_ns: int) -> float | None:
        """How old the calibration is.

        Parameters
        ----------
        time_ns : int
            A time, nanoseconds of UTC since 1970.

        Returns
        -------
        float or None
            Seconds from its last measurement to that time; None if it rests on none.
        """
        return None if self.to_ns is None else (time_ns - self.to_ns) / 1e9

    def apply(self, layout: Layout, measurements: AnyMeasurements) -> AnyMeasurements:
        """Measurements less what is known of the sites and of the air.

        Biases are taken off the arrival times, which become those of vacuum (``refraction.slowing``). ``toa_sigma_ns``
        is multiplied by the factor of its site, and the standard error of the bias is added in quadrature; if a bias is
        unknown (an infinite standard error), that of ``prior``. Of a row whose sites are of several groups, only the
        arrival times of the largest one are kept. Gains are taken off the levels, and off the noise floor that stands
        for the level of a receiver which detected nothing.

        Parameters
        ----------
        layout : Layout
            The network of the sites, and the scenario that holds there.
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
        timed, known = measurements.toa_present, np.isfinite(self.toa_bias_sigma_ns)
        numbers = range(self.group.max(initial=0) + 1)
        of_group = np.stack([(timed & known)[:, self.group == number].sum(1) for number in numbers])
        timed = timed & (~known | (of_group.argmax(0)[:, None] == self.group))
        bias_sigma_ns = np.where(known, self.toa_bias_sigma_ns, _uncalibrated_bias_sigma_ns(layout.network))
        sigma_ns = np.hypot(measurements.toa_sigma_ns * self.toa_sigma_factor, bias_sigma_ns)
        in_air = 1 + slowing(layout, measurements.tx_altitude_m)[:, None]
        return replace(
            measurements,
            toa_present=timed,
            toa_ns=np.where(timed, (measurements.toa_ns - self.toa_bias_ns) / in_air, 0.0),
            toa_sigma_ns=np.where(timed, sigma_ns, 0.0).astype(np.float32),
            power_dbm=(measurements.power_dbm - self.gain_offset_db).astype(np.float32),
        )


def calibrated(layout: Layout, measurements: AnyMeasurements) -> AnyMeasurements:
    """Rows of a layout as every estimator gets them: of its own sites, less what its network file says of them.

    Parameters
    ----------
    layout : Layout
        The network that measured them.
    measurements : Measurements
        n rows, perhaps with further columns that stand for no site of the layout.

    Returns
    -------
    Measurements
        Of the same type.
    """
    network = layout.network
    return SiteCalibration.of_network(network).apply(layout, measurements.of_sites(len(network.sites)))


def estimate_calibration(
    layout: Layout,
    measurements: Measurements,
    latitude: Float,
    longitude: Float,
    tx_power_dbm: NDArray[np.floating] | None = None,
) -> SiteCalibration:
    """What is known of the sites, from measurements of transmitters at known places.

    Biases are the maximum likelihood with delayed paths, of the biases and of the time of emission of each row; their
    standard errors follow from the Fisher information. Errors of more than three standard deviations on the early side
    have a bounded influence, and every hundredth path at least is taken as delayed, so that outliers move little.

    The factor of a site's standard deviations is the maximum of its posterior, by the errors of its arrival times from
    the time of emission that the other receivers tell; before any row is seen, its logarithm is normal around 0. The
    outlier share counts those errors that a uniform density explains better. Drifts are estimated like biases, together
    with them.

    Gains are the generalised least squares of the levels, by the noise of common and link shadowing. Without the power
    of the transmitters they are relative to a level of each row that is unknown, and have the sum 0. Only links that
    are strong by place and power are used, in rows with ``min_detections`` of these: which links are seen then hardly
    depends on their noise. What that truncation leaves is counted in the standard errors.

    Parameters
    ----------
    layout : Layout
        The network, and the noise and propagation there.
    measurements : Measurements
        n rows of that network, not calibrated.
    latitude, longitude : ndarray, shape (n,)
        True places of the transmitters, WGS-84 degrees.
    tx_power_dbm : ndarray, shape (n,), optional
        Power of the transmitters, if it is known.

    Returns
    -------
    SiteCalibration
        Biases have the sum 0 over the sites of a group that have a tenth of its most rows or more. A number that no row
        tells of is 0 (a factor 1), and its standard error infinite.

    Raises
    ------
    ValueError
        If there are no rows, or if they are of another number of sites.
    """
    _check_sites(len(layout.network.sites), measurements)
    if not len(measurements):
        raise ValueError("a calibration needs transmissions of known position, there are none")
    frame, altitude_m = layout.network.frame, measurements.tx_altitude_m
    distance_m, _ = Geometry(layout.network, altitude_m).ranges_m(frame.en_m(latitude, longitude, altitude_m))
    gain_db, gain_sigma_db = estimate_gains(layout, measurements, distance_m, tx_power_dbm)
    flight_ns = distance_m / SPEED_OF_LIGHT_M_PER_NS * (1 + slowing(layout, altitude_m)[:, None])
    return SiteCalibration(
        **vars(estimate_clocks(measurements, flight_ns, layout.scenario.excess_delay)),
        gain_offset_db=gain_db,
        gain_offset_sigma_db=gain_sigma_db,
        rows=measurements.signal_present.sum(0),
        from_ns=int(measurements.time_ns.min()),
        to_ns=int(measurements.time_ns.max()),
    )


def _uncalibrated_bias_sigma_ns(network: ReceiverNetwork) -> Float:
    """(r,) standard error of a bias of which nothing is known but the clock."""
    stamp_ns = np.array([CLOCK_SIGMA_NS.get(site.timing, 0.0) for site in network.sites])
    return np.hypot(PRESETS[Preset.uncalibrated].site_bias_sigma_ns, stamp_ns)


def _check_sites(sites: int, measurements: Measurements) -> None:
    if measurements.num_sites != sites:
        raise ValueError(f"the calibration is of {sites} sites, the measurements are of {measurements.num_sites}")
