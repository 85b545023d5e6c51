"""Messages on wrong values, for all packages: one sentence with the place, the value (cut short) and what is right."""

import re
import unicodedata
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

SHOWN_CHARACTERS = 60
"""A message shows at most this many characters of a value."""


def shown(value: object) -> str:
    """A value for a message: printable, on one line, cut after ``SHOWN_CHARACTERS``; for a container only its kind."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        return f"a list of {len(value)}"
    if isinstance(value, str | bytes) and len(value) > SHOWN_CHARACTERS:
        return f"{printable(repr(value[:SHOWN_CHARACTERS]))}... ({len(value):,} characters)"
    text = printable(repr(value))
    return text if len(text) <= 2 * SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def printable(text: str) -> str:
    """The text with control and format characters (line breaks, terminal escapes, text direction) as escape codes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def brief(text: str, characters: int = 300) -> str:
    """A text of another program for a message: on one line, printable, and cut if it is long."""
    line = printable(" ".join(text[: 10 * characters].split()))
    return line if len(line) <= characters else f"{line[:characters]}..."


def one_sentence(error: ValidationError) -> str:
    """The findings of pydantic on one line: field, value and what would be right."""
    parts = []
    for item in error.errors(include_url=False):
        where = ".".join(printable(str(part))[:SHOWN_CHARACTERS] for part in item["loc"])
        is_unknown = item["type"] == "extra_forbidden"
        message = "this key is not known" if is_unknown else item["msg"].removeprefix("Value error, ")
        got = "" if item["type"] in {"missing", "value_error"} else f" (got {shown(item['input'])})"
        parts.append(f"{where}: {message}{got}" if where else message)
    return " ".join("; ".join(_first(parts)).split())


def _first(parts: list[str], limit: int = 5) -> list[str]:
    return parts if len(parts) <= limit else [*parts[:limit], f"and {len(parts) - limit:,} more"]


def uuid_text(field: str, value: Any) -> str:
    """The canonical (dashed, lower-case) text of a UUID. Raises ValueError with the field's name if it is not one."""
    try:
        return str(uuid.UUID(value))
    except (ValueError, AttributeError, TypeError):
        # Part of an id, the most frequent mistake, is shown; anything else may be a secret.
        is_part = isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F-]{0,36}", value)
        got = repr(value) if is_part else "something else"
        raise ValueError(f"{field} must be a UUID of 36 characters, got {got}") from None


def expanded(path: str | Path) -> Path:
    """The path with ``~`` and ``~user`` replaced by the folder. Raises ValueError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{shown(str(path))}: there is no user of that name") from None


def without_controls(value: str) -> str:
    """The text itself. Raises ValueError if it has a character that controls a terminal, a log or the direction of
    text: line breaks, escape codes, U+202E. Joiners are allowed, because some scripts need them."""
    for position, character in enumerate(value, 1):
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and character not in "\u200c\u200d":
            raise ValueError(f"must not hold control characters, has {printable(character)} in place {position}")
    return value


def refuse_booleans(values: Any) -> Any:
    """The settings themselves, before pydantic reads ``true`` as 1. Raises ValueError if one is true or false, because
    no setting of this project is."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            if any(isinstance(item, bool) for item in (value if isinstance(value, list | tuple) else [value])):
                raise ValueError(
                    f"{printable(str(name))[:SHOWN_CHARACTERS]}: must be a number or a text, not true or false"
                )
    return values
