"""A real PgBouncer for tests, started from the program on this machine."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL

from triangulation_pipeline_tests.ports import free_port
from triangulation_pipeline_tests.postgres import unprivileged_user

NO_PGBOUNCER = "no pgbouncer on the PATH or in /usr/sbin; install the package pgbouncer"


def find_pgbouncer() -> str | None:
    """The program, None where there is none."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


@contextmanager
def temporary_pgbouncer(behind: URL, **settings: str | int) -> Iterator[URL]:
    """A PgBouncer of its own, gone at the end; gives the way through it to the database ``behind``, which it logs in to
    as that URL's user. ``settings`` are those of its file's section ``[pgbouncer]``.

    As PgBouncer refuses to run as root, root starts it as another user.
    """
    program = find_pgbouncer()
    if program is None:
        raise FileNotFoundError(NO_PGBOUNCER)
    user = unprivileged_user() if os.geteuid() == 0 else None
    run = [] if user is None else ["chroot", f"--userspec={user.pw_uid}:{user.pw_gid}", "--groups=", "/"]
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="triangulation-pgbouncer-"))
    process = None
    try:
        users, file, log = folder / "users", folder / "pgbouncer.ini", folder / "log"
        users.write_text(f'"{behind.username}" "{behind.password}"\n')
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": str(users),
            **settings,
        }
        lines = ["[databases]", f"* = host={behind.host} port={behind.port}", "[pgbouncer]"]
        file.write_text("\n".join([*lines, *(f"{name} = {value}" for name, value in settings.items())]) + "\n")
        for path in (folder, users, file):
            if user is not None:
                os.chown(path, user.pw_uid, user.pw_gid)
        with log.open("wb") as output:
            process = subprocess.Popen([*run, program, str(file)], stdout=output, stderr=output, cwd="/")
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PgBouncer did not start:\n{log.read_text()}") from None
                time.sleep(0.02)
        yield behind.set(host="127.0.0.1", port=port)
    finally:
        if process is not None:
            process.terminate()
            process.wait(30)
        shutil.rmtree(folder)
