"""The measurement model: transmitters, propagation, noise, detection and timing; and the presets."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from triangulation_pipeline.validation import one_sentence


class Features(StrEnum):
    """What a receiver reports: signal strength alone, or also arrival times (from sites that have timing)."""

    rss = "rss"
    rss_tdoa = "rss_tdoa"


class PathLossModel(StrEnum):
    """The models of median path loss, see ``propagation``."""

    free_space = "free_space"
    plane_earth = "plane_earth"
    egli = "egli"
    hata = "hata"
    log_distance = "log_distance"


class Environment(StrEnum):
    """Man-made noise environment of ITU-R P.372."""

    city = "city"
    residential = "residential"
    rural = "rural"
    quiet_rural = "quiet_rural"


@dataclass(frozen=True)
class ExcessDelay:
    """The share of delayed paths, and the mean of their exponentially distributed delay."""

    probability: float
    mean_ns: float


class Scenario(BaseModel):
    """Every parameter of the measurement model; the defaults are the ``default`` preset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: Features = Field(
        Features.rss_tdoa,
        description="This sets what the receivers report: rss is signal strength alone; rss_tdoa adds the arrival "
        "times of the sites that measure them.",
    )
    frequency_mhz: float = Field(
        145.0,
        ge=30,
        le=3000,
        description="All transmissions have this carrier frequency, 30 to 3000 MHz. Two models of path_loss hold for "
        "a part of it only: egli from 40 to 1000 MHz, hata from 150 to 1500 MHz.",
    )
    tx_power_w: tuple[float, ...] = Field(
        (5.0, 25.0, 50.0),
        min_length=1,
        max_length=16,
        description="These are the transmit powers of the classes of transmitters, each 0.001 to 10000 W. There are 1 "
        "to 16 classes.",
    )
    tx_power_share: tuple[float, ...] = Field(
        (0.2, 0.5, 0.3),
        min_length=1,
        max_length=16,
        description="These are the shares of the transmitters in each power class, in the order of tx_power_w. They "
        "must not be negative and must sum to 1.",
    )
    tx_antenna_gain_dbi: float = Field(
        2.0,
        ge=-20,
        le=30,
        description="The antenna of the transmitter has this gain in every direction, -20 to 30 dBi.",
    )
    rx_antenna_gain_dbi: float = Field(
        2.0,
        ge=-20,
        le=30,
        description="The antennas of the receivers have this gain in every direction, -20 to 30 dBi.",
    )
    tx_height_m: float = Field(
        2.0,
        ge=0.5,
        le=300,
        description="The antenna of the transmitter is this high above the ground, 0.5 to 300 m. Used by the path_loss "
        "models plane_earth, egli and hata, and as the altitude if tx_altitude_m is left out.",
    )
    tx_altitude_m: float | None = Field(
        None,
        ge=-500,
        le=20_000,
        description="The transmitter is at this altitude above the WGS-84 ellipsoid, -500 to 20000 m. It is known to "
        "every estimator. If it is left out, the ground lies on the ellipsoid: the altitude is tx_height_m.",
    )
    rx_height_m: float = Field(
        10.0,
        ge=1,
        le=300,
        description="The antennas of the receivers are this high above the ground, 1 to 300 m. Used only with "
        "path_loss: plane_earth, egli or hata; distances follow from altitude_m of the sites.",
    )
    area_margin_km: float = Field(
        20.0,
        ge=0,
        le=200,
        description="Transmitters are placed uniformly in the box around the receivers, widened by this margin on all "
        "sides, 0 to 200 km.",
    )
    noise_bandwidth_khz: float = Field(
        12.5,
        ge=0.1,
        le=20_000,
        description="The receivers collect noise in this bandwidth, 0.1 to 20000 kHz. It sets the noise floor and, "
        "with burst_s and the SNR, the accuracy of arrival times.",
    )
    signal_bandwidth_khz: float = Field(
        8.0,
        ge=0.1,
        le=20_000,
        description="The signal occupies this bandwidth, 0.1 to 20000 kHz; it must not exceed noise_bandwidth_khz. A "
        "wider signal gives more accurate arrival times. Used only with features: rss_tdoa.",
    )
    burst_s: float = Field(
        1.0,
        ge=0.001,
        le=60,
        description="One transmission lasts this long, 0.001 to 60 s. A longer one gives more accurate arrival times. "
        "Used only with features: rss_tdoa.",
    )
    path_loss: PathLossModel = Field(
        PathLossModel.log_distance,
        description="This model gives the median path loss at a distance: free_space, plane_earth, egli, hata or "
        "log_distance.",
    )
    path_loss_exponent: float = Field(
        3.5,
        ge=2,
        le=6,
        description="Beyond 1 km, received power falls with distance to this power, 2 to 6. Used only with path_loss: "
        "log_distance.",
    )
    knife_edge_probability: float = Field(
        0.0,
        ge=0,
        le=1,
        description="This share of the links, 0 to 1, has one obstacle in the middle of its path (a knife edge), "
        "which adds diffraction loss.",
    )
    knife_edge_height_m: float = Field(
        50.0,
        ge=1,
        le=2000,
        description="The obstacles rise above the line of sight by an exponentially distributed height with this "
        "mean, 1 to 2000 m. Used only if knife_edge_probability is above 0.",
    )
    shadowing_common_db: float = Field(
        4.0,
        ge=0,
        le=20,
        description="Shadowing shifts all links of one transmission alike, by a Gaussian term with this standard "
        "deviation, 0 to 20 dB.",
    )
    shadowing_link_db: float = Field(
        6.0,
        ge=0.5,
        le=20,
        description="Shadowing also shifts each single link, by an independent Gaussian term with this standard "
        "deviation, 0.5 to 20 dB.",
    )
    man_made_noise: Environment = Field(
        Environment.rural,
        description="The receivers pick up the man-made noise of this environment in ITU-R P.372: city, residential, "
        "rural or quiet_rural.",
    )
    gain_offset_sigma_db: float = Field(
        1.0,
        ge=0,
        le=20,
        description="Calibration leaves a Gaussian error of each site's gain with this standard deviation, 0 to 20 dB. "
        "It is drawn anew for each transmission.",
    )
    detection_threshold_db: float = Field(
        6.0, ge=-20, le=40, description="A receiver detects half of the signals that have this SNR, -20 to 40 dB."
    )
    detection_width_db: float = Field(
        1.5,
        ge=0.01,
        le=10,
        description="The share of detected signals rises with SNR as a Gaussian distribution function around "
        "detection_threshold_db with this standard deviation, 0.01 to 10 dB.",
    )
    min_detections: int = Field(
        3,
        ge=1,
        le=64,
        description="Transmissions that fewer receivers detect are left out of the dataset, 1 to 64 receivers. It "
        "must not exceed the number of sites.",
    )
    tx_frequency_error_ppm: float = Field(
        1.0,
        ge=0,
        le=100,
        description="The oscillator of each transmitter has a Gaussian frequency error with this standard deviation, "
        "0 to 100 ppm.",
    )
    rx_frequency_error_ppm: float = Field(
        0.1,
        ge=0,
        le=100,
        description="The oscillator of each receiver has a Gaussian frequency error with this standard deviation, 0 to "
        "100 ppm. It is drawn anew for each transmission.",
    )
    clock_sigma_ns: float = Field(
        50.0,
        ge=1,
        le=100_000,
        description="The time stamps of the receivers have Gaussian noise with this standard deviation, 1 to 100000 "
        "ns. Used only with features: rss_tdoa.",
    )
    site_bias_sigma_ns: float = Field(
        10.0,
        ge=0,
        le=100_000,
        description="Calibration leaves a Gaussian error of each site's clock bias with this standard deviation, 0 to "
        "100000 ns. It is drawn anew for each transmission, and is a part of toa_sigma_ns. Used only with features: "
        "rss_tdoa.",
    )
    nlos_probability: float = Field(
        0.10,
        ge=0,
        le=0.9,
        description="This share of the links, 0 to 0.9, has no line of sight, so that the signal arrives late. Used "
        "only with features: rss_tdoa.",
    )
    nlos_mean_ns: float = Field(
        500.0,
        ge=1,
        le=100_000,
        description="The signal of a link without line of sight arrives late by an exponentially distributed delay "
        "with this mean, 1 to 100000 ns. Used only if nlos_probability is above 0.",
    )

    refractivity_ppm: float | None = Field(
        None,
        ge=0,
        le=500,
        description="Air at sea level slows signals down by this many parts per million (N-units), 0 to 500; higher up "
        "by less. 315 is the mean of ITU-R P.453. If it is left out, signals travel as in vacuum. Used only with "
        "features: rss_tdoa.",
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if len(self.tx_power_w) != len(self.tx_power_share):
            raise ValueError(
                f"tx_power_share must have one share for each of the {len(self.tx_power_w)} values of tx_power_w, "
                f"it has {len(self.tx_power_share)}"
            )
        if not all(0.001 <= power <= 10_000 for power in self.tx_power_w):
            raise ValueError(f"tx_power_w must lie in 0.001 to 10000, got {self.tx_power_w}")
        if min(self.tx_power_share) < 0 or abs(sum(self.tx_power_share) - 1) > 1e-6:
            raise ValueError(f"tx_power_share must be non-negative and sum to 1, got {self.tx_power_share}")
        if self.signal_bandwidth_khz > self.noise_bandwidth_khz:
            raise ValueError(
                f"signal_bandwidth_khz ({self.signal_bandwidth_khz:g}) must not exceed noise_bandwidth_khz "
                f"({self.noise_bandwidth_khz:g})"
            )
        return self

    @property
    def frequency_hz(self) -> int:
        """Carrier, Hz."""
        return round(self.frequency_mhz * 1e6)

    @property
    def transmitter_altitude_m(self) -> float:
        """Altitude of the transmitters above the ellipsoid, metres."""
        return self.tx_height_m if self.tx_altitude_m is None else self.tx_altitude_m

    @property
    def area_margin_m(self) -> float:
        """Margin of the service area, metres."""
        return self.area_margin_km * 1e3

    @property
    def tx_power_dbm(self) -> tuple[float, ...]:
        """Transmit power of each class, dBm."""
        return tuple(30 + 10 * float(np.log10(power)) for power in self.tx_power_w)

    @property
    def mean_tx_power_dbm(self) -> float:
        """Transmit power, the mean of the classes by their shares, dBm."""
        return float(np.dot(self.tx_power_share, self.tx_power_dbm))

    @property
    def link_level_sigma_db(self) -> float:
        """Standard deviation of the level of a single link: its shadowing, and the residual gain of the site, dB."""
        return float(np.hypot(self.shadowing_link_db, self.gain_offset_sigma_db))

    @property
    def common_level_variance_db2(self) -> float:
        """Variance of a transmission's unknown level: the power class and the common shadowing, dB squared."""
        apart_db = np.array(self.tx_power_dbm) - self.mean_tx_power_dbm
        return float(np.dot(self.tx_power_share, apart_db**2) + self.shadowing_common_db**2)

    @property
    def excess_delay(self) -> ExcessDelay:
        """The delay of links without line of sight."""
        return ExcessDelay(self.nlos_probability, self.nlos_mean_ns)


class Preset(StrEnum):
    """The named scenarios."""

    default = "default"
    line_of_sight = "line_of_sight"
    valley = "valley"
    urban = "urban"
    handheld = "handheld"
    wideband = "wideband"
    rss = "rss"
    uncalibrated = "uncalibrated"


# docs/physics.md has the source of each number.
PRESETS: dict[Preset, Scenario] = {
    Preset.default: Scenario(),
    Preset.line_of_sight: Scenario(nlos_probability=0.0),
    Preset.valley: Scenario(path_loss_exponent=4.5),
    Preset.urban: Scenario(
        man_made_noise=Environment.city, shadowing_link_db=9.0, nlos_probability=0.3, nlos_mean_ns=1000.0
    ),
    Preset.handheld: Scenario(tx_power_w=(5.0,), tx_power_share=(1.0,), tx_antenna_gain_dbi=-5.0, tx_height_m=1.5),
    Preset.wideband: Scenario(noise_bandwidth_khz=200.0, signal_bandwidth_khz=180.0, clock_sigma_ns=15.0),
    Preset.rss: Scenario(features=Features.rss),
    Preset.uncalibrated: Scenario(site_bias_sigma_ns=90.0, gain_offset_sigma_db=3.0),
}


def scenario_of(base: Preset | Scenario, overrides: Mapping[str, Any]) -> Scenario:
    """A preset, or another scenario, with some parameters changed.

    Parameters
    ----------
    base : Preset or Scenario
        The scenario, or the name of one.
    overrides : mapping
        Values of the parameters that differ, by their names.

    Returns
    -------
    Scenario

    Raises
    ------
    ValueError
        With one sentence, if a value is out of range or parameters contradict each other.
    """
    try:
        given = PRESETS[base] if isinstance(base, Preset) else base
        return Scenario.model_validate(given.model_dump() | dict(overrides))
    except ValidationError as error:
        raise ValueError(f"scenario: {one_sentence(error)}") from None
