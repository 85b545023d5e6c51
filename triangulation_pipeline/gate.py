"""A gate before Dagster's webserver, which has no login of its own. The gate lets in programs and the webserver's own
pages. It keeps out requests that a foreign web page sends through the browser of a visitor.

A request must satisfy four rules:

- ``Host`` is this machine (localhost, 127.0.0.1, [::1]; any port) or a name in ``TRIANGULATION_WEBSERVER_HOSTS``. A
  page whose own name was made to point here (DNS rebinding) sends that name.
- ``Origin``, if there is one, is that same host and port. Browsers send it with every POST and WebSocket.
- ``Sec-Fetch-Site``, if there is one, does not name another site, also no sister sub-domain. Only a plain link that a
  person follows to a page is let through.
- GraphQL is not asked by GET, which would carry no ``Origin``: a mutation could be the address of a picture.

Programs (the command line, curl) send neither ``Origin`` nor ``Sec-Fetch-Site``, and are let in. The gate distinguishes
pages, not people.
"""

import os
import re

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from triangulation_pipeline.validation import shown

HOSTS_VARIABLE = "TRIANGULATION_WEBSERVER_HOSTS"
THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "[::1]"})

_HOST = r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\]"
_PLACE = re.compile(rf"({_HOST})(?::([0-9]{{1,5}}))?")
_ORIGIN = re.compile(rf"(https?)://({_HOST})(?::([0-9]{{1,5}}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def read_hosts() -> frozenset[str]:
    """The host names that the webserver answers to: those of this machine, and of ``TRIANGULATION_WEBSERVER_HOSTS``.

    Raises ValueError if that is not a list of host names. The message does not show the value.
    """
    listed = [host.strip().lower() for host in os.environ.get(HOSTS_VARIABLE, "").split(",")]
    for number, host in enumerate(listed, 1):
        if host and not re.fullmatch(_HOST, host):
            raise ValueError(
                f"{HOSTS_VARIABLE} must be host names with commas between them and without scheme, port or path, as in "
                f"triangulation.example.org,webserver; number {number} of {len(listed)} is none"
            )
    return THIS_MACHINE | {host for host in listed if host}


def gated(app: ASGIApp, hosts: frozenset[str]) -> ASGIApp:
    """The application behind the gate. A refused request never reaches it; the answer is 403 or 405 with a sentence."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        refusal = None if scope["type"] == "lifespan" else refused(scope, hosts)
        if refusal is None:
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
        else:
            status, sentence = refusal
            response = PlainTextResponse(f"{sentence}\n", status, {"X-Content-Type-Options": "nosniff"})
            await response(scope, receive, send)

    return answer


def refused(scope: Scope, hosts: frozenset[str]) -> tuple[int, str] | None:
    """Why a request or a WebSocket is refused, as an HTTP status and a sentence; None if it is let in."""
    headers = Headers(scope=scope)
    named = [host.lower() for host in headers.getlist("host")]
    place = _PLACE.fullmatch(named[0]) if len(named) == 1 else None
    if place is None or place[1] not in hosts:
        return 403, (
            f"This webserver does not answer to the host {shown(', '.join(named))}. If it is the webserver's own, name "
            f"it in {HOSTS_VARIABLE}, without the port."
        )
    if not all(_is_of(origin.lower(), place) for origin in headers.getlist("origin")):
        return 403, "This webserver does not answer to pages of another origin."
    method = scope.get("method", "GET")
    if any(site.lower() not in {"same-origin", "none"} for site in headers.getlist("sec-fetch-site")) and not (
        scope["type"] == "http"
        and method == "GET"
        and headers.getlist("sec-fetch-mode") == ["navigate"]
        and headers.getlist("sec-fetch-dest") == ["document"]
    ):
        return 403, "This webserver does not answer to pages of another site."
    if scope["type"] == "http" and method != "POST" and scope["path"].endswith("/graphql") and scope["query_string"]:
        return 405, "GraphQL is asked by POST here."
    return None


def _is_of(origin: str, place: re.Match[str]) -> bool:
    """Whether an origin has this host and port. The scheme may differ, as a proxy may end TLS."""
    parts = _ORIGIN.fullmatch(origin)
    if parts is None:
        return False
    default = _DEFAULT_PORTS[parts[1]]
    return (parts[2], parts[3] or default) == (place[1], place[2] or default)
