"""Median path loss, diffraction and noise. Functions take and return NumPy arrays; losses are positive decibels."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triangulation_pipeline.physics.scenario import Environment, PathLossModel, Scenario

REFERENCE_DISTANCE_KM = 1.0
_WAVELENGTH_M_MHZ = 299.792458


def free_space_loss_db(distance_km: ArrayLike, frequency_mhz: float) -> NDArray[np.float64]:
    """Free-space loss between isotropic antennas (ITU-R P.525-4, eq. 4).

    Parameters
    ----------
    distance_km : array_like, shape (...)
        Length of the path, km.
    frequency_mhz : float
        Carrier frequency, MHz.

    Returns
    -------
    ndarray, shape (...)
        Loss, dB, positive.
    """
    return 32.45 + 20 * np.log10(frequency_mhz) + 20 * np.log10(np.asarray(distance_km, float))


def plane_earth_loss_db(
    distance_km: ArrayLike, frequency_mhz: float, tx_height_m: float, rx_height_m: float
) -> NDArray[np.float64]:
    """Two-ray loss over flat ground.

    Free space up to the break distance ``4 pi h_t h_r / wavelength``; beyond it ``40 lg d_m - 20 lg(h_t h_r)``. The two
    meet at that distance.

    Parameters
    ----------
    distance_km : array_like, shape (...)
        Length of the path, km.
    frequency_mhz : float
        Carrier frequency, MHz.
    tx_height_m, rx_height_m : float
        Heights of the antennas above the ground, metres.

    Returns
    -------
    ndarray, shape (...)
        Loss, dB, positive.
    """
    distance_km = np.asarray(distance_km, float)
    break_km = 4e-3 * np.pi * tx_height_m * rx_height_m * frequency_mhz / _WAVELENGTH_M_MHZ
    beyond = 40 * np.log10(distance_km * 1e3) - 20 * np.log10(tx_height_m * rx_height_m)
    return np.where(distance_km > break_km, beyond, free_space_loss_db(distance_km, frequency_mhz))


def egli_loss_db(
    distance_km: ArrayLike, frequency_mhz: float, tx_height_m: float, rx_height_m: float
) -> NDArray[np.float64]:
    """Egli's median loss over irregular terrain (Egli 1957), for 40 to 1000 MHz and 1 to 50 miles.

    Parameters
    ----------
    distance_km : array_like, shape (...)
        Length of the path, km.
    frequency_mhz : float
        Carrier frequency, MHz.
    tx_height_m, rx_height_m : float
        Heights of the antennas above the ground, metres.

    Returns
    -------
    ndarray, shape (...)
        Loss, dB, positive.
    """
    mobile_db = 76.3 - 10 * np.log10(rx_height_m) if rx_height_m <= 10 else 85.9 - 20 * np.log10(rx_height_m)
    return (
        20 * np.log10(frequency_mhz)
        + 40 * np.log10(np.asarray(distance_km, float))
        - 20 * np.log10(tx_height_m)
        + mobile_db
    )


def hata_loss_db(
    distance_km: ArrayLike, frequency_mhz: float, base_height_m: float, mobile_height_m: float
) -> NDArray[np.float64]:
    """Hata's urban median loss for a medium-sized city (Hata 1980), for 150 to 1500 MHz and 1 to 20 km.

    Parameters
    ----------
    distance_km : array_like, shape (...)
        Length of the path, km.
    frequency_mhz : float
        Carrier frequency, MHz.
    base_height_m : float
        Height of the base's antenna above the ground, 30 to 200 m.
    mobile_height_m : float
        Height of the mobile's antenna above the ground, 1 to 10 m.

    Returns
    -------
    ndarray, shape (...)
        Loss, dB, positive.
    """
    lg_f = np.log10(frequency_mhz)
    mobile_db = (1.1 * lg_f - 0.7) * mobile_height_m - (1.56 * lg_f - 0.8)
    lg_base = np.log10(base_height_m)
    return (
        69.55
        + 26.16 * lg_f
        - 13.82 * lg_base
        - mobile_db
        + (44.9 - 6.55 * lg_base) * np.log10(np.asarray(distance_km, float))
    )


def log_distance_loss_db(distance_km: ArrayLike, frequency_mhz: float, exponent: float) -> NDArray[np.float64]:
    """Free space up to 1 km, ``10 n lg d`` beyond (log-distance model; Rappaport 2002, section 4.9).

    Parameters
    ----------
    distance_km : array_like, shape (...)
        Length of the path, km.
    frequency_mhz : float
        Carrier frequency, MHz.
    exponent : float
        Path-loss exponent n beyond 1 km.

    Returns
    -------
    ndarray, shape (...)
        Loss, dB, positive.
    """
    distance_km = np.asarray(distance_km, float)
    beyond = 10 * (exponent - 2) * np.log10(np.maximum(distance_km, REFERENCE_DISTANCE_KM) / REFERENCE_DISTANCE_KM)
    return free_space_loss_db(distance_km, frequency_mhz) + beyond


def distance_range_km(model: PathLossModel) -> tuple[float, float]:
    """Shortest and longest distance, km, for which a model is stated."""
    return {
        PathLossModel.free_space: (0.001, np.inf),
        PathLossModel.plane_earth: (0.001, np.inf),
        PathLossModel.egli: (1.6, 80.5),
        PathLossModel.hata: (1.0, 20.0),
        PathLossModel.log_distance: (0.001, np.inf),
    }[model]


def path_loss_function(scenario: Scenario) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The median loss of a scenario as a function of distance.

    In Hata's model the higher antenna is the base. Distances outside ``distance_range_km`` are not refused; the caller
    rejects them.

    Parameters
    ----------
    scenario : Scenario
        Names the model, the frequency and the heights.

    Returns
    -------
    callable
        From distance in km, (...), to loss in dB, (...).

    Raises
    ------
    ValueError
        If the model does not hold at the scenario's frequency or heights.
    """
    model, f, h_t, h_r = scenario.path_loss, scenario.frequency_mhz, scenario.tx_height_m, scenario.rx_height_m
    if model is PathLossModel.free_space:
        return lambda d_km: free_space_loss_db(d_km, f)
    if model is PathLossModel.plane_earth:
        return lambda d_km: plane_earth_loss_db(d_km, f, h_t, h_r)
    if model is PathLossModel.egli:
        _require("frequency_mhz", f, 40, 1000, model)
        return lambda d_km: egli_loss_db(d_km, f, h_t, h_r)
    if model is PathLossModel.hata:
        _require("frequency_mhz", f, 150, 1500, model)
        base_m, mobile_m = max(h_t, h_r), min(h_t, h_r)
        _require("the higher of tx_height_m and rx_height_m", base_m, 30, 200, model)
        _require("the lower of tx_height_m and rx_height_m", mobile_m, 1, 10, model)
        return lambda d_km: hata_loss_db(d_km, f, base_m, mobile_m)
    return lambda d_km: log_distance_loss_db(d_km, f, scenario.path_loss_exponent)


def mean_level_dbm(scenario: Scenario, distance_km: NDArray[np.float64]) -> NDArray[np.float64]:
    """The level that a receiver gets of a transmitter of mean power, without shadowing.

    Parameters
    ----------
    scenario : Scenario
        Powers, antennas and path loss.
    distance_km : ndarray, shape (...)
        Length of the path, km.

    Returns
    -------
    ndarray, shape (...)
        Level, dBm.

    Raises
    ------
    ValueError
        As ``path_loss_function``.
    """
    antennas_db = scenario.tx_antenna_gain_dbi + scenario.rx_antenna_gain_dbi
    return scenario.mean_tx_power_dbm + antennas_db - path_loss_function(scenario)(distance_km)


def path_loss_slope_db(scenario: Scenario, distance_km: NDArray[np.float64]) -> NDArray[np.float64]:
    """Derivative of the median loss by the natural logarithm of distance (central difference, 0.1 % wide).

    Parameters
    ----------
    scenario : Scenario
        Names the model.
    distance_km : ndarray, shape (...)
        Length of the path, km.

    Returns
    -------
    ndarray, shape (...)
        Slope, dB: ``10 n / ln 10`` for a loss that grows with the power n of distance.
    """
    loss = path_loss_function(scenario)
    return (loss(distance_km * 1.0005) - loss(distance_km / 1.0005)) / (2 * np.log(1.0005))


def knife_edge_loss_db(v: ArrayLike) -> NDArray[np.float64]:
    """Diffraction loss J(v) of a single knife edge (ITU-R P.526-15, eq. 31).

    Parameters
    ----------
    v : array_like, shape (...)
        Fresnel-Kirchhoff parameter; positive if the edge is above the line of sight.

    Returns
    -------
    ndarray, shape (...)
        Loss, dB; 0 for v of -0.78 and less.
    """
    v = np.asarray(v, float)
    x = np.maximum(v, -0.78) - 0.1
    return np.where(v > -0.78, 6.9 + 20 * np.log10(np.sqrt(x * x + 1) + x), 0.0)


def knife_edge_parameter(height_m: ArrayLike, distance_km: ArrayLike, frequency_mhz: float) -> NDArray[np.float64]:
    """Fresnel-Kirchhoff parameter v of an edge in the middle of the path (ITU-R P.526-15, eq. 26, d1 = d2 = d / 2).

    Parameters
    ----------
    height_m : array_like, shape (...)
        Height of the edge above the line of sight, metres.
    distance_km : array_like, shape (...)
        Length of the path, km.
    frequency_mhz : float
        Carrier frequency, MHz.

    Returns
    -------
    ndarray, shape (...)
        The parameter, without unit.
    """
    wavelength_m = _WAVELENGTH_M_MHZ / frequency_mhz
    return np.asarray(height_m, float) * np.sqrt(8 / (wavelength_m * np.asarray(distance_km, float) * 1e3))


def noise_floor_dbm(scenario: Scenario, noise_figure_db: ArrayLike) -> NDArray[np.float64]:
    """Noise power in the noise bandwidth: thermal, receiver and man-made noise.

    ``F = f_a + f_r - 1`` (ITU-R P.372-16, eq. 1, for a loss-free antenna system at the reference temperature) with the
    median man-made ``F_a = c - d lg f_MHz`` (table 1).

    Parameters
    ----------
    scenario : Scenario
        Frequency, noise bandwidth and environment.
    noise_figure_db : array_like, shape (...)
        Noise figure of each receiver, dB.

    Returns
    -------
    ndarray, shape (...)
        Noise power, dBm.
    """
    c, d = {
        Environment.city: (76.8, 27.7),
        Environment.residential: (72.5, 27.7),
        Environment.rural: (67.2, 27.7),
        Environment.quiet_rural: (53.6, 28.6),
    }[scenario.man_made_noise]
    external = 10 ** ((c - d * np.log10(scenario.frequency_mhz)) / 10)
    # The man-made median falls below the galactic and receiver terms at high frequencies; f_a itself is never below 1.
    factor = np.maximum(external, 1.0) + 10 ** (np.asarray(noise_figure_db, float) / 10) - 1
    return -174 + 10 * np.log10(scenario.noise_bandwidth_khz * 1e3) + 10 * np.log10(factor)


def _require(field: str, value: float, low: float, high: float, model: PathLossModel) -> None:
    if not low <= value <= high:
        raise ValueError(f"path_loss {model.value} holds for {field} from {low:g} to {high:g}, got {value:g}")
