"""Mapping files, and which column holds which field."""

from pathlib import Path

import pytest

from triangulation_pipeline.formats.columns import (
    ALIASES,
    FIELDS,
    PLAIN,
    UNITS,
    Silence,
    form_of,
    parse_mapping,
    read_mapping,
)

MAPPING = """
receiver: station name
toa_ns: {column: fine time, unit: s}
toa_sigma_ns: {constant: 50}
rssi_dbm: {column: power, missing: [-200, 100, off]}
silence: unknown
"""


def test_a_mapping_file(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(MAPPING)
    found = read_mapping(tmp_path / "m.yaml")
    assert found.silence is Silence.unknown
    assert set(found.sources) == {"receiver", "toa_ns", "toa_sigma_ns", "rssi_dbm"}
    assert found.sources["receiver"].column == "station name"
    assert (found.sources["toa_ns"].column, found.sources["toa_ns"].unit) == ("fine time", "s")
    assert found.sources["toa_sigma_ns"].constant == 50
    assert found.sources["rssi_dbm"].missing == (-200, 100, "off")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "it must have a line for each field, as in 'receiver: station', it is None"),
        ("- a", "it must have a line for each field"),
        ("rssi: power", "unknown field 'rssi'; meant rssi_dbm?"),
        ("sillence: unknown", "unknown field 'sillence'; meant silence?"),
        ("silence: never", "silence must be one of heard_nothing, unknown, got 'never'"),
        ("reception: x", "unknown field 'reception'; meant receptions?"),
        ("what: ever", "unknown field 'what'; known are transmission_id, time"),
        ("toa_ns: {colum: x}", "toa_ns: colum: this key is not known"),
        ("toa_ns: {unit: s}", "toa_ns: must have a column or a constant, and not both"),
        ("toa_ns: 5", "toa_ns: must be the name of a column, or a mapping, got 5"),
        ("rssi_dbm: {column: x, constant: 5}", "rssi_dbm: must have a column or a constant, and not both"),
        ("rssi_dbm: {column: x, unit: dBW}", "rssi_dbm: the unit does not exist for this field, got 'dBW'"),
        ("toa_ns: {column: x, unit: ps}", "toa_ns: the unit must be one of ns, us, ms, s, got 'ps'"),
        ("toa_ns: {constant: 5}", "toa_ns: it cannot be a constant, because it differs between rows; name a column"),
        ("receiver: {constant: 5}", "receiver: it cannot be a constant"),
        ("rssi_dbm: {constant: loud}", "rssi_dbm: constant: Input should be a valid number"),
        ("rssi_dbm: {column: true}", "rssi_dbm: column: must be a number or a text, not true or false"),
        ("rssi_dbm: {constant: 5, missing: 3}", "rssi_dbm: a constant has no missing values"),
        ("rssi_dbm: {column: x", "not valid YAML: line"),
    ],
)
def test_a_wrong_mapping_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"^mapping file [^\n]{1,400}$") as caught:
        read_mapping(tmp_path / "m.yaml")
    assert sentence in str(caught.value)


def test_a_mapping_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mapping file .*none\.yaml does not exist"):
        read_mapping(tmp_path / "none.yaml")


def test_every_name_leads_to_a_field() -> None:
    assert set(ALIASES.values()) <= set(FIELDS)
    assert all(alias == alias.casefold() and alias not in FIELDS for alias in ALIASES)
    assert set(UNITS) <= set(FIELDS)


def test_the_own_name_of_a_field_goes_before_others_and_a_mapping_before_both() -> None:
    names = ["id", "transmission_id", "gateway", "rssi_dbm", "power", "time"]
    assert form_of(names, PLAIN.sources).columns == {
        "transmission_id": "transmission_id",
        "receiver": "gateway",
        "rssi_dbm": "rssi_dbm",
        "time": "time",
    }
    mapping = parse_mapping({"receiver": "id", "rssi_dbm": {"constant": -90}}).sources
    assert form_of(names, mapping).columns == {
        "transmission_id": "transmission_id",
        "receiver": "id",
        "time": "time",
    }


def test_points_in_names_make_no_wide_form_by_themselves() -> None:
    names = ["id", "receiver", "rx.rssi", "v1.0", "rssi", "time"]
    assert form_of(names, {}).of_receiver == {}
    assert form_of(["id", "time", "a.b.rssi", "a.c"], {}).of_receiver == {"a.b": {"rssi_dbm": "a.b.rssi"}, "a": {}}
