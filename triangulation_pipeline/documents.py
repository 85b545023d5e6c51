"""Files that people write (network files, run config), read with care.

Only small regular files are read. YAML means YAML 1.2: ``0250`` is 250, ``1:02`` and ``no`` are text. A key may be
written only once, and aliases, tags and directives are refused. No message quotes a file: the person who starts a run
sees its messages, and may have named any file of the machine.
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.nodes import ScalarNode

from triangulation_pipeline.validation import printable, shown

LARGEST_BYTES = 1_000_000
DEEPEST = 30
MOST_VALUES = 20_000
LONGEST_NAME = 200
LONGEST_INTEGER = 20  # digits and sign, more than any field takes and any database column holds
_TOO_LONG = f"whole numbers have at most {LONGEST_INTEGER} digits"


class _Constructor(SafeConstructor):
    """The core schema of YAML 1.2, except that ``1e5`` is a whole number, as people mean it."""

    def construct_float(self, node: ScalarNode) -> float:
        if re.fullmatch(r"[-+]?\d+[eE]\+?\d{1,2}", node.value) and abs(number := float(node.value)) < 1e18:
            return int(number)
        return float(super().construct_yaml_float(node))

    def construct_integer(self, node: ScalarNode) -> int:
        if len(node.value) > LONGEST_INTEGER:
            raise MarkedYAMLError(problem=_TOO_LONG, problem_mark=node.start_mark)
        return int(super().construct_yaml_int(node))


_Constructor.add_constructor("tag:yaml.org,2002:float", _Constructor.construct_float)
_Constructor.add_constructor("tag:yaml.org,2002:int", _Constructor.construct_integer)
_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def read_text(path: Path) -> str:
    """The text of a small regular file in UTF-8. Raises ValueError with one sentence that names the file."""
    place = file_name(path)
    if "\0" in str(path):
        raise ValueError(f"{place} is not the name of a file")
    try:
        # Without O_NONBLOCK, opening a pipe that nobody writes to would wait forever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            data = (file.read(LARGEST_BYTES + 1) or b"") if is_regular else b""
    except FileNotFoundError:
        raise ValueError(f"{place} does not exist") from None
    except OSError as error:
        raise ValueError(f"{place} cannot be read: {error.strerror}") from None
    if not is_regular:
        raise ValueError(f"{place} is not a regular file")
    if len(data) > LARGEST_BYTES:
        raise ValueError(f"{place} is larger than {LARGEST_BYTES / 1e6:g} MB, the most that is read")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} cannot be read: byte {error.start + 1:,} is not UTF-8 text") from None


def file_name(path: Path) -> str:
    """A path for a message: printable, and without its beginning if it is long."""
    text = printable(str(path))
    return text if len(text) <= LONGEST_NAME else f"...{text[-LONGEST_NAME:]}"


def parse_yaml(text: str) -> Any:
    """The one document of a YAML 1.2 text: mappings, lists, texts, numbers, true, false, null. None if it is empty.

    Raises ValueError with one sentence that names the line and quotes nothing of the text.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        _check(yaml.parse(text))
        document = yaml.load(text)
        _check_names(document)
        return document
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        # Only those words of the library that cannot contain a piece of the text.
        problem = str(error.problem or "")
        raise ValueError(f"not valid YAML: {line}{problem if _is_safe(problem) else 'this cannot be read'}") from None
    except (YAMLError, ValueError) as error:
        if isinstance(error, _Refused):
            raise
        raise ValueError("not valid YAML: it has characters or numbers that YAML does not allow") from None


def parse_json(text: str) -> Any:
    """A JSON document. Raises ValueError with one sentence that names the line and quotes nothing of the text."""
    try:
        return json.loads(text, object_pairs_hook=_once, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_name(text: object) -> bool:
    """Whether a key looks like the name of a field. Only then does a message show it."""
    return isinstance(text, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_ -]{0,40}", text) is not None


class _Refused(ValueError):
    """The text is YAML, but uses something that is not allowed here."""


def _check(events: Iterator[Event]) -> None:
    """Raises _Refused for what no description needs: it is a mistake or an attack."""
    lines_of_keys: list[dict[str, int] | None] = []  # of each open mapping; None for a list
    awaits_key: list[bool] = []
    values = 0
    for event in events:
        line = event.start_mark.line + 1
        if isinstance(event, DocumentStartEvent):
            if event.version is not None or event.tags:
                raise _Refused(f"line {line}: directives (%) are not allowed")
            continue
        if isinstance(event, AliasEvent):
            raise _Refused(f"line {line}: aliases (*) are not allowed; write the value itself")
        if isinstance(event, MappingEndEvent | SequenceEndEvent):
            lines_of_keys.pop()
            awaits_key.pop()
        elif isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent):
            values += 1
            if values > MOST_VALUES:
                raise _Refused(f"line {line}: the file has more than {MOST_VALUES:,} values")
            if event.ctag is not None and str(event.ctag) not in {"None", "!"}:
                raise _Refused(f"line {line}: tags (!) are not allowed")
            if lines_of_keys and (keys := lines_of_keys[-1]) is not None:
                if awaits_key[-1]:
                    _check_key(event, keys, line)
                awaits_key[-1] = not awaits_key[-1]
            if not isinstance(event, ScalarEvent):
                lines_of_keys.append({} if isinstance(event, MappingStartEvent) else None)
                awaits_key.append(True)
                if len(lines_of_keys) > DEEPEST:
                    raise _Refused(f"line {line}: it is nested more than {DEEPEST} deep")


def _check_key(event: Event, keys: dict[str, int], line: int) -> None:
    if not isinstance(event, ScalarEvent):
        raise _Refused(f"line {line}: a key must be a word")
    if event.value == "<<":
        raise _Refused(f"line {line}: merge keys (<<) are not allowed; write the values themselves")
    if event.value in keys:
        name = repr(event.value) if is_name(event.value) else "a key"
        raise _Refused(f"{name} is written twice, lines {keys[event.value]} and {line}")
    keys[event.value] = line


def _check_names(value: Any) -> None:
    """Raises _Refused if a key is a number, true, false or null, as after a decimal comma in {lat: -37,829}."""
    for name, item in value.items() if isinstance(value, dict) else ():
        if not isinstance(name, str):
            raise _Refused(
                f"the name of a field must be a word, got {shown(name)}; a decimal has a point, as in -37.829"
            )
        _check_names(item)
    for item in value if isinstance(value, list) else ():
        _check_names(item)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{repr(twice) if is_name(twice) else 'a key'} is written twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:
        raise ValueError(_TOO_LONG)
    return int(digits)


def _is_safe(problem: str) -> bool:
    """Whether the words of the library are a fixed phrase, with at most single characters of the text in quotes."""
    words = re.sub(r"'(<stream end>|\\?.)'", "", problem)
    return re.fullmatch(r"[a-z][A-Za-z0-9 ,.()-]*", words) is not None
