"""Addresses of servers: they are split by one rule, and shown without user and password."""

import os
import re
from dataclasses import dataclass, field
from urllib.parse import unquote
from urllib.request import proxy_bypass

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_HOST_AND_PORT = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[\w.-]*))(?::(?P<port>[0-9]{1,5})?)?")


@dataclass(frozen=True)
class Address:
    """The parts of ``scheme://user:password@host:port/rest``. As text it shows scheme, host and port alone. ``rest``
    begins with its ``/``, ``?`` or ``#``; the %-codes of user and password are decoded."""

    scheme: str
    user: str | None = field(repr=False)
    password: str | None = field(repr=False)
    host: str
    port: int | None
    rest: str = field(repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port is None else f":{self.port}")


def parse_address(text: str) -> Address:
    """The parts of an address. Raises ValueError with what the address must be, to be put after its name. No part of
    the address is in the message.

    User and password are what comes before the last ``@``. If they contain one of ``@ / # ?``, or a ``%`` without a
    code, the address is refused: libraries disagree on it, and some take the end of a password for the host.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        raise ValueError("must be as in scheme://host:port")
    secret, at, rest = rest.rpartition("@")
    if re.search(r"[@/#?]|%(?![0-9A-Fa-f]{2})", secret):
        raise ValueError(
            "must have the special characters of user and password as codes: "
            "write %40 for @, %2F for /, %23 for #, %3F for ? and %25 for %"
        )
    end = re.search(r"[/?#]|\Z", rest)
    assert end is not None
    server, rest = rest[: end.start()], rest[end.start() :]
    if "," in server:
        raise ValueError("must name one host, not several")
    found = _HOST_AND_PORT.fullmatch(server)
    if found is None or int(found["port"] or 0) > 65535:
        raise ValueError("has a host or a port that cannot be read")
    user, colon, password = secret.partition(":")
    return Address(
        scheme=scheme.lower(),
        user=unquote(user) if at else None,
        password=unquote(password) if colon else None,
        host=found["ipv6"] or found["name"],
        port=int(found["port"]) if found["port"] else None,
        rest=rest,
    )


def by_proxy(address: Address) -> str:
    """The end of a message on a server that cannot be reached: the variable that names a proxy for it, or ''."""
    names = (f"{address.scheme}_proxy", f"{address.scheme}_proxy".upper(), "all_proxy", "ALL_PROXY")
    name = next((name for name in names if os.environ.get(name)), None)
    if name is None or proxy_bypass(address.host):
        return ""
    proxy = os.environ[name]
    try:
        parse_address(proxy if "://" in proxy else f"http://{proxy}")
    except ValueError as error:
        return f" (by the proxy of {name}, whose address {error})"
    return f" (by the proxy of {name})"
