"""Ports for the servers of tests."""

import secrets
import socket
from contextlib import suppress

# Below those that a system hands out: 32768 and above on Linux, 49152 and above elsewhere.
_FIRST, _COUNT = 12_000, 18_000


def free_port() -> int:
    """A port that nothing listens on, and that nobody gets who asks the system for any: it is still free when a server
    that was stopped starts again."""
    while True:
        port = _FIRST + secrets.randbelow(_COUNT)
        with suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port
