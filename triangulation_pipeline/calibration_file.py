"""The file of a calibration: YAML or JSON, with the numbers of each site by its name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pymap3d
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML

from triangulation_pipeline.calibration import SiteCalibration
from triangulation_pipeline.documents import file_name, parse_json, parse_yaml, read_text
from triangulation_pipeline.network import MOST_SITES, ReceiverNetwork, Site
from triangulation_pipeline.outputs import replaced_file
from triangulation_pipeline.validation import expanded, one_sentence, refuse_booleans, shown

# Each number, the name of its standard error, what it is if nobody knows it, and the decimals that are written.
NUMBERS = {
    "toa_bias_ns": ("toa_bias_sigma_ns", 0.0, 3),
    "toa_sigma_factor": ("toa_sigma_factor_sigma", 1.0, 4),
    "drift_ns_per_s": ("drift_sigma_ns_per_s", 0.0, 6),
    "outlier_share": ("outlier_share_sigma", 0.0, 5),
    "gain_offset_db": ("gain_offset_sigma_db", 0.0, 3),
}
# A receiver that stands so far from where it was calibrated has other cables, or another antenna.
_MOVED_M = 5.0


class _SiteNumbers(BaseModel):
    """What the file says of a site. A number that is left out, or null, is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    lat: float = Field(ge=-90, le=90)
    lon: float = Field(ge=-180, le=180)
    altitude_m: float = Field(ge=-500, le=9000)
    rows: int = Field(0, ge=0)
    group: int = Field(0, ge=0, lt=MOST_SITES)
    toa_bias_ns: float | None = Field(None, ge=-1e9, le=1e9)
    toa_bias_sigma_ns: float | None = Field(None, ge=0, le=1e9)
    toa_sigma_factor: float | None = Field(None, ge=0.01, le=1000)
    toa_sigma_factor_sigma: float | None = Field(None, ge=0)
    drift_ns_per_s: float | None = None
    drift_sigma_ns_per_s: float | None = Field(None, ge=0)
    outlier_share: float | None = Field(None, ge=0, le=1)
    outlier_share_sigma: float | None = Field(None, ge=0)
    gain_offset_db: float | None = Field(None, ge=-200, le=200)
    gain_offset_sigma_db: float | None = Field(None, ge=0)

    _no_booleans = model_validator(mode="before")(refuse_booleans)

    @model_validator(mode="after")
    def _has_both_or_none(self) -> "_SiteNumbers":
        for name, (sigma, _, _) in NUMBERS.items():
            if (getattr(self, name) is None) != (getattr(self, sigma) is None):
                raise ValueError(f"{name} and {sigma} go together: give both, or neither")
        return self


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    network: str
    from_ns: int | None = None
    to_ns: int | None = None
    sites: tuple[_SiteNumbers, ...]

    @model_validator(mode="before")
    @classmethod
    def _is_a_calibration(cls, document: Any) -> Any:
        if not isinstance(document, dict) or not isinstance(document.get("sites"), list) or "network" not in document:
            raise ValueError(
                "a calibration must have the keys 'network' and 'sites', as `triangulation calibrate` writes"
            )
        return document


def calibration_document(calibration: SiteCalibration, network: ReceiverNetwork) -> dict[str, Any]:
    """A calibration of a network, ready for JSON. What is not known is null."""
    sites = []
    for index, site in enumerate(network.sites):
        numbers: dict[str, float | None] = {}
        for name, (sigma, _, decimals) in NUMBERS.items():
            pair = (getattr(calibration, name)[index], getattr(calibration, sigma)[index])
            for key, value in zip((name, sigma), pair, strict=True):
                numbers[key] = round(float(value), decimals) if np.isfinite(pair[1]) else None
        place = {"name": site.name, "lat": site.lat, "lon": site.lon, "altitude_m": site.altitude_m}
        sites.append({**place, "rows": int(calibration.rows[index]), "group": int(calibration.group[index]), **numbers})
    return {"network": network.name, "from_ns": calibration.from_ns, "to_ns": calibration.to_ns, "sites": sites}


def write_calibration(calibration: SiteCalibration, network: ReceiverNetwork, path: str | Path) -> None:
    """Writes a calibration as JSON, if the file's name ends in ``.json``, or as YAML.

    Parameters
    ----------
    calibration : SiteCalibration
        What is known of the sites.
    network : ReceiverNetwork
        The sites, in the order of the calibration.
    path : str or Path
        The file. One that exists is replaced, at once.

    Raises
    ------
    ValueError
        If the file cannot be written.
    """
    document, path = calibration_document(calibration, network), expanded(path)
    with replaced_file(path) as file:
        if path.suffix.lower() == ".json":
            file.write(json.dumps(document, indent=2, allow_nan=False).encode() + b"\n")
        else:
            YAML(pure=True).dump(document, file)


def read_calibration(path: str | Path, network: ReceiverNetwork) -> SiteCalibration:
    """Reads a calibration of a network. The order of its sites does not matter.

    A site of the network that the file does not know has no known bias: it counts as one that nobody calibrated. Its
    gain is that of the network file.

    Parameters
    ----------
    path : str or Path
        The file; ``~`` is replaced by the home folder.
    network : ReceiverNetwork
        The sites.

    Returns
    -------
    SiteCalibration

    Raises
    ------
    ValueError
        With one sentence that names the file, the site and what would be right: also if the file knows a site that the
        network does not have, or one that stood elsewhere when it was calibrated.
    """
    try:
        path = expanded(path)
        text = read_text(path)
    except ValueError as error:
        raise ValueError(f"calibration {error}") from None
    try:
        parsed = parse_json(text) if path.suffix.lower() == ".json" else parse_yaml(text)
        return calibration_of(parsed, network)
    except ValueError as error:
        raise ValueError(f"calibration {file_name(path)}: {error}") from None


def calibration_of(document: Any, network: ReceiverNetwork) -> SiteCalibration:
    """A calibration out of a document as ``calibration_document`` makes it, for the sites of a network.

    Raises ValueError with one sentence, as ``read_calibration`` does.
    """
    try:
        return _calibration(_Document.model_validate(document), network)
    except ValidationError as error:
        raise ValueError(one_sentence(error)) from None


def _calibration(document: _Document, network: ReceiverNetwork) -> SiteCalibration:
    index = {site.name: number for number, site in enumerate(network.sites)}
    r = len(index)
    given_db = np.array([site.gain_offset_db or 0.0 for site in network.sites])
    columns = {name: np.full(r, default) for name, (_, default, _) in NUMBERS.items()} | {"gain_offset_db": given_db}
    columns |= {sigma: np.full(r, np.inf) for sigma, _, _ in NUMBERS.values()}
    rows, group = np.zeros(r, np.int64), np.zeros(r, np.int64)
    seen: set[str] = set()
    for site in document.sites:
        if site.name in seen:
            raise ValueError(f"the site {shown(site.name)} is written twice")
        seen.add(site.name)
        if site.name not in index:
            raise ValueError(
                f"the network {shown(network.name)} has no site {shown(site.name)}: it is the calibration of another "
                f"one ({shown(document.network)})"
            )
        at = index[site.name]
        if (moved_m := _apart_m(site, network.sites[at])) > _MOVED_M:
            raise ValueError(
                f"the site {shown(site.name)} stands {moved_m:,.0f} m from where it was calibrated; calibrate again"
            )
        rows[at], group[at] = site.rows, site.group
        for name, (sigma, _, _) in NUMBERS.items():
            if getattr(site, sigma) is not None:
                columns[name][at], columns[sigma][at] = getattr(site, name), getattr(site, sigma)
    return SiteCalibration(**columns, group=group, rows=rows, from_ns=document.from_ns, to_ns=document.to_ns)


def _apart_m(before: _SiteNumbers, now: Site) -> float:
    """The distance between two places of a site, metres."""
    here = np.array([[now.lat, now.lon, now.altitude_m], [before.lat, before.lon, before.altitude_m]])
    return float(np.linalg.norm(np.subtract(*np.stack(pymap3d.geodetic2ecef(*here.T), axis=-1))))
