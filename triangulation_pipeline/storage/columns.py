"""Column types with the same meaning on SQLite and PostgreSQL, and checks of what is written into them."""

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import JSON, REAL, Boolean, DateTime, Dialect, Double, LargeBinary, String, Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeDecorator, TypeEngine

from triangulation_pipeline.validation import shown

UuidText = String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
Json = JSON().with_variant(postgresql.JSONB(), "postgresql")

_ELEMENT_TYPES: dict[str, type[TypeEngine[Any]]] = {"|b1": Boolean, "<f4": REAL, "<f8": Double}


class UtcDateTime(TypeDecorator[datetime]):
    """A moment, timezone-aware in Python: TIMESTAMPTZ on PostgreSQL, ISO 8601 text that ends in Z elsewhere.

    The text has a fixed width (microseconds), so that the order of texts is the order of moments.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time must have a timezone, got {value.isoformat()}")
        value = value.astimezone(UTC)
        if dialect.name == "sqlite":
            return value.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
        return value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return moment.astimezone(UTC)


class ReceiverArray(TypeDecorator[NDArray[Any]]):
    """One value per receiver: an array column on PostgreSQL, the little-endian bytes of the array elsewhere."""

    impl = LargeBinary
    cache_ok = True

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.dtype = dtype

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.ARRAY(_ELEMENT_TYPES[self.dtype]()))
        return dialect.type_descriptor(LargeBinary())

    def process_bind_param(self, value: NDArray[Any] | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        array = np.ascontiguousarray(value, self.dtype)
        return array.tolist() if dialect.name == "postgresql" else array.tobytes()

    def process_result_value(self, value: Any, dialect: Dialect) -> NDArray[Any] | None:
        if value is None:
            return None
        return np.frombuffer(value, self.dtype) if isinstance(value, bytes) else np.array(value, self.dtype)


def now() -> datetime:
    """The current time, in UTC."""
    return datetime.now(UTC)


def checked_json(field: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """``value`` as it will be read back from a JSON column (tuples become lists).

    Raises ValueError with the place inside ``field`` that JSON cannot store: NaN and infinities (missing data is null),
    keys that are not text, zero characters and surrogates (which PostgreSQL does not store), and any type that JSON
    does not have.
    """
    _check_json(field, value)
    return json.loads(json.dumps(value, allow_nan=False))


def _check_json(place: str, value: Any) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{place} must be a finite number or null, got {value}")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{place} must have text keys, got {shown(key)}")
            _check_json(place, key)
            _check_json(f"{place}.{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_json(f"{place}[{index}]", item)
    elif isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        raise ValueError(f"{place} must be text without zero characters and half characters, got {shown(value)}")
    elif not (value is None or isinstance(value, str | int | bool)):
        raise ValueError(f"{place} must be null, text, a number, a list or a dict, got {type(value).__name__}")
