"""A real PostgreSQL server for tests and benchmarks, started from the binaries on this machine."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy import URL, make_url

NO_BINARIES = "no PostgreSQL server binaries on the PATH or in /usr/lib/postgresql; install the package postgresql"
# What an administrator gives the role of the pipeline, and nothing else.
ROLE = "pipeline"


def find_binaries() -> Path | None:
    """The folder of ``postgres`` and ``initdb``, of the newest version found; None where there are none."""
    on_path = shutil.which("postgres")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: -float(folder.parent.name))
    return next((folder for folder in folders if (folder / "postgres").exists() and (folder / "initdb").exists()), None)


@dataclass
class Server:
    """A server, and how its administrator reaches it (a database's name may be changed in ``admin``)."""

    admin: URL
    role_password: str

    @contextmanager
    def administrator(self, database: str = "postgres") -> Iterator[psycopg.Connection]:
        """An administrator's connection, in autocommit."""
        url = self.admin.set(drivername="postgresql", database=database).render_as_string(hide_password=False)
        with psycopg.connect(url, autocommit=True) as connection:
            yield connection

    def ensure_role(self) -> None:
        """Makes the role of the pipeline, or gives it this session's password."""
        with self.administrator() as connection:
            known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [ROLE]).fetchone()
            verb = sql.SQL("ALTER" if known else "CREATE")
            connection.execute(
                sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(verb, sql.Identifier(ROLE), self.role_password)
            )

    def create_database(self, template: str = "template0", *, grant: str = "CONNECT, CREATE") -> URL:
        """A new database, as the role of the pipeline reaches it; the role has the rights in ``grant`` alone."""
        name = f"test_{secrets.token_hex(6)}"
        database = sql.Identifier(name)
        with self.administrator() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(database, sql.Identifier(template)))
            connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
            connection.execute(
                sql.SQL("GRANT {} ON DATABASE {} TO {}").format(sql.SQL(grant), database, sql.Identifier(ROLE))
            )
        return self.admin.set(drivername="postgresql", database=name, username=ROLE, password=self.role_password)

    def drop_database(self, url: URL) -> None:
        """Drops a database, whoever is connected."""
        with self.administrator() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(str(url.database))))


@dataclass
class OwnServer(Server):
    """A server of this process, which can stop and start it."""

    command: list[str]
    user: str | None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        log = Path(self.command[2]).with_name("log")
        with log.open("ab") as output:
            self.process = subprocess.Popen(self.command, stdout=output, stderr=output, cwd="/", **_as_user(self.user))
        deadline = time.monotonic() + 30
        while True:
            try:
                with self.administrator():
                    return
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}") from None
                time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends all sessions and the server (SIGQUIT: without a checkpoint)."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(30)


@contextmanager
def temporary_server() -> Iterator[OwnServer]:
    """A server of its own, with the role of the pipeline; it and its data are gone at the end.

    It listens on 127.0.0.1 and in a folder of its own, and asks everybody for a password. As PostgreSQL refuses to run
    as root, root starts it as another user. Raises FileNotFoundError where there are no binaries.
    """
    binaries = find_binaries()
    if binaries is None:
        raise FileNotFoundError(NO_BINARIES)
    user = _unprivileged_user() if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="triangulation-pg-"))
    password = secrets.token_hex(8)
    try:
        folder.chmod(0o755)
        (folder / "password").write_text(password)
        for path in (folder, folder / "password"):
            if user is not None:
                shutil.chown(path, user)
        data = folder / "data"
        initdb = [binaries / "initdb", "-D", data, "--no-sync", "-U", "administrator", "--encoding=UTF8", "--locale=C"]
        made = subprocess.run(
            [*initdb, "--auth=scram-sha-256", f"--pwfile={folder / 'password'}"],
            cwd="/",
            capture_output=True,
            text=True,
            **_as_user(user),
        )
        if made.returncode:
            raise RuntimeError(f"initdb failed:\n{made.stderr}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": folder,
            "fsync": "off",
            "max_connections": 50,
        }
        server = OwnServer(
            admin=URL.create("postgresql", "administrator", password, "127.0.0.1", port, "postgres"),
            role_password=secrets.token_hex(8),
            command=[str(binaries / "postgres"), "-D", str(data), *(f"--{k}={v}" for k, v in settings.items())],
            user=user,
        )
        server.start()
        try:
            server.ensure_role()
            yield server
        finally:
            server.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(folder)


def server_at(url: str) -> Server:
    """A server that runs already, by its administrator's URL."""
    return Server(admin=make_url(url), role_password=secrets.token_hex(8))


def _unprivileged_user() -> str:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def _as_user(user: str | None) -> dict:
    if user is None:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
