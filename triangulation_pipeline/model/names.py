"""What a person calls a registered model: ``name``, ``name/3`` or ``name@production``."""

import re
from dataclasses import dataclass
from typing import Self

# Older versions of this package wrote name:3.
_FORM = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,254})(?:[/:]([1-9][0-9]{0,8})|(@production))?")


@dataclass(frozen=True)
class ModelName:
    """A name, which may look like an id, and which of its versions is meant.

    Without a version it is the one in production, or the newest if none is in production.
    """

    name: str
    version: int | None = None
    in_production: bool = False

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """What a person wrote, None if it names no model."""
        found = _FORM.fullmatch(text)
        if found is None:
            return None
        name, version, in_production = found.groups()
        return cls(name, None if version is None else int(version), in_production is not None)

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name}/{self.version}"
        return f"{self.name}@production" if self.in_production else self.name
