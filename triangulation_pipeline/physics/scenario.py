"""What is simulated besides the network: transmitters, propagation, noise, detection, timing; and the presets."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator


class Features(StrEnum):
    """What a receiver reports: signal strength alone, or arrival times too (GPS-timed sites)."""

    rss = "rss"
    rss_tdoa = "rss_tdoa"


class PathLossModel(StrEnum):
    """Median path loss; see ``propagation``."""

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
    """How often a path is delayed, and by how much: exponentially distributed, with that mean."""

    probability: float
    mean_ns: float


class Scenario(BaseModel):
    """Every parameter of the measurement model; the defaults are the ``default`` preset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: Features = Field(
        Features.rss_tdoa,
        description="What the receivers report: rss (signal strength only) or rss_tdoa (arrival times as well).",
    )
    frequency_mhz: float = Field(145.0, ge=30, le=3000, description="Carrier frequency, MHz, 30 to 3000.")
    tx_power_w: tuple[float, ...] = Field(
        (5.0, 25.0, 50.0),
        min_length=1,
        max_length=16,
        description="Transmit power of each class of transmitters, W, 0.001 to 10000.",
    )
    tx_power_share: tuple[float, ...] = Field(
        (0.2, 0.5, 0.3),
        min_length=1,
        max_length=16,
        description="Share of the transmitters in each power class. The shares must sum to 1.",
    )
    tx_antenna_gain_dbi: float = Field(
        2.0, ge=-20, le=30, description="Antenna gain of the transmitter, dBi, -20 to 30."
    )
    rx_antenna_gain_dbi: float = Field(2.0, ge=-20, le=30, description="Antenna gain of the receivers, dBi, -20 to 30.")
    tx_height_m: float = Field(
        2.0, ge=0.5, le=300, description="Height of the transmitter's antenna above the ground, m, 0.5 to 300."
    )
    tx_altitude_m: float | None = Field(
        None,
        ge=-500,
        le=20_000,
        description="Altitude of the transmitter above the WGS-84 ellipsoid, m, -500 to 20000. If it is left out, the "
        "ground lies on the ellipsoid, and the altitude is tx_height_m.",
    )
    rx_height_m: float = Field(
        10.0, ge=1, le=300, description="Height of the receivers' antennas above the ground, m, 1 to 300."
    )
    area_margin_km: float = Field(
        20.0,
        ge=0,
        le=200,
        description="Transmitters stand in the box around the receivers, widened by this on all sides, km, 0 to 200.",
    )
    noise_bandwidth_khz: float = Field(
        12.5, ge=0.1, le=20_000, description="Bandwidth of the receivers' noise, kHz, 0.1 to 20000."
    )
    signal_bandwidth_khz: float = Field(
        8.0,
        ge=0.1,
        le=20_000,
        description="Bandwidth that the signal occupies, kHz, 0.1 to 20000 and at most the noise bandwidth.",
    )
    burst_s: float = Field(1.0, ge=0.001, le=60, description="Length of a transmission, s, 0.001 to 60.")
    path_loss: PathLossModel = Field(
        PathLossModel.log_distance,
        description="Model of the median path loss: free_space, plane_earth, egli, hata or log_distance.",
    )
    path_loss_exponent: float = Field(
        3.5, ge=2, le=6, description="Path-loss exponent of the log_distance model beyond 1 km, 2 to 6."
    )
    knife_edge_probability: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the links with one obstacle (knife edge) in the middle of the path, 0 to 1.",
    )
    knife_edge_height_m: float = Field(
        50.0, ge=1, le=2000, description="Mean height of that obstacle above the line of sight, m, 1 to 2000."
    )
    shadowing_common_db: float = Field(
        4.0,
        ge=0,
        le=20,
        description="Standard deviation of the shadowing common to all links of a transmission, dB, 0 to 20.",
    )
    shadowing_link_db: float = Field(
        6.0, ge=0.5, le=20, description="Standard deviation of the shadowing of each single link, dB, 0.5 to 20."
    )
    man_made_noise: Environment = Field(
        Environment.rural, description="Man-made noise after ITU-R P.372: city, residential, rural or quiet_rural."
    )
    gain_offset_sigma_db: float = Field(
        2.0, ge=0, le=20, description="Standard deviation of the sites' unknown gain offsets, dB, 0 to 20."
    )
    detection_threshold_db: float = Field(
        6.0, ge=-20, le=40, description="SNR at which half of the signals are detected, dB, -20 to 40."
    )
    detection_width_db: float = Field(
        1.5, ge=0.01, le=10, description="Width of the transition from undetected to detected, dB, 0.01 to 10."
    )
    min_detections: int = Field(
        3, ge=1, le=64, description="Transmissions that fewer receivers detect are left out, 1 to 64."
    )
    tx_frequency_error_ppm: float = Field(
        1.0, ge=0, le=100, description="Standard deviation of the transmitters' frequency error, ppm, 0 to 100."
    )
    rx_frequency_error_ppm: float = Field(
        0.1, ge=0, le=100, description="Standard deviation of the receivers' frequency error, ppm, 0 to 100."
    )
    clock_sigma_ns: float = Field(
        50.0, ge=1, le=100_000, description="Standard deviation of the receivers' time stamps, ns, 1 to 100000."
    )
    site_bias_sigma_ns: float = Field(
        30.0, ge=0, le=100_000, description="Standard deviation of the sites' fixed clock bias, ns, 0 to 100000."
    )
    nlos_probability: float = Field(
        0.10, ge=0, le=0.9, description="Share of the links without line of sight, whose signal arrives late, 0 to 0.9."
    )
    nlos_mean_ns: float = Field(
        500.0, ge=1, le=100_000, description="Mean excess delay of those links, ns, 1 to 100000."
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
    def common_level_variance_db2(self) -> float:
        """Variance of a transmission's unknown level: the power class and the common shadowing, dB squared."""
        power_dbm, share = np.array(self.tx_power_dbm), np.array(self.tx_power_share)
        mean = share @ power_dbm
        return float(share @ (power_dbm - mean) ** 2 + self.shadowing_common_db**2)

    @property
    def excess_delay(self) -> ExcessDelay:
        """The delay of links without line of sight."""
        return ExcessDelay(self.nlos_probability, self.nlos_mean_ns)


class Preset(StrEnum):
    """The named scenarios."""

    default = "default"
    valley = "valley"
    line_of_sight = "line_of_sight"
    rss = "rss"


PRESETS: dict[Preset, Scenario] = {
    Preset.default: Scenario(),
    Preset.valley: Scenario(path_loss_exponent=4.5),
    Preset.line_of_sight: Scenario(nlos_probability=0.0),
    Preset.rss: Scenario(features=Features.rss),
}
