"""A real PostgreSQL server for tests and benchmarks, started from the binaries on this machine."""

import os
import pwd
import secrets
import shutil
import signal
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

from triangulation_pipeline_tests.ports import free_port

NO_BINARIES = "no PostgreSQL server binaries on the PATH or in /usr/lib/postgresql; install the package postgresql"
NO_TIMESCALEDB = (
    "no PostgreSQL with the extension timescaledb; install one, or have root run .ci/install-timescaledb, or name an "
    "administrator's URL of a server that has it in TRIANGULATION_TEST_TIMESCALE_URL"
)
# What an administrator gives the role of the pipeline, and nothing else.
ROLE = "pipeline"


@dataclass(frozen=True)
class Binaries:
    """The folder of ``postgres`` and ``initdb``, as it is called below ``root``: another root is another system's,
    whose programs run by chroot, which only root may do."""

    folder: Path
    root: Path = Path("/")

    @property
    def exist(self) -> bool:
        """Whether both programs are there."""
        return all((self.inside(self.folder) / name).exists() for name in ("postgres", "initdb"))

    @property
    def have_timescaledb(self) -> bool:
        """Whether the extension is there, where Debian's packages or an installation of its own would have it."""
        version = self.folder.parent
        shared = (Path("/usr/share/postgresql") / version.name, version / "share", version / "share" / "postgresql")
        return any((self.inside(folder) / "extension" / "timescaledb.control").exists() for folder in shared)

    def inside(self, path: Path) -> Path:
        """What the programs call ``path``, as this process calls it."""
        return self.root / path.relative_to("/")


def find_binaries() -> Binaries | None:
    """The newest PostgreSQL of this machine; None where there is none."""
    return next(iter(_installed()), None)


def find_timescaledb() -> Binaries | None:
    """A PostgreSQL with the extension timescaledb, of this machine or by ``.ci/install-timescaledb``; None for none."""
    found = _installed()
    if os.geteuid() == 0:
        found += _installed(
            Path(os.environ.get("TRIANGULATION_TIMESCALEDB_ROOT") or "/var/lib/triangulation-timescaledb")
        )
    return next((binaries for binaries in found if binaries.have_timescaledb), None)


def _installed(root: Path = Path("/")) -> list[Binaries]:
    on_path = shutil.which("postgres") if root == Path("/") else None
    folders = [Path(on_path).resolve().parent] if on_path else []
    debian = root / "usr/lib/postgresql"
    folders += sorted(
        (Path("/") / folder.relative_to(root) for folder in debian.glob("*/bin")),
        key=lambda folder: -float(folder.parent.name),
    )
    return [binaries for binaries in (Binaries(folder, root) for folder in folders) if binaries.exist]


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

    def create_database(
        self,
        template: str = "template0",
        *,
        grant: str = "CONNECT",
        schema: bool = True,
        timescaledb: bool = False,
        encoding: str = "UTF8",
    ) -> URL:
        """A new database, as the role of the pipeline reaches it; the role has the rights in ``grant`` alone, and the
        ``schema`` of the tables, unless the template brings it."""
        name = f"test_{secrets.token_hex(6)}"
        database = sql.Identifier(name)
        with self.administrator() as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} ENCODING {}").format(
                    database, sql.Identifier(template), encoding
                )
            )
            connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
            connection.execute(
                sql.SQL("GRANT {} ON DATABASE {} TO {}").format(sql.SQL(grant), database, sql.Identifier(ROLE))
            )
        with self.administrator(name) as connection:
            if timescaledb:
                connection.execute("CREATE EXTENSION timescaledb")
            if schema:
                connection.execute(f"CREATE SCHEMA IF NOT EXISTS triangulation AUTHORIZATION {ROLE}")
        return self.admin.set(drivername="postgresql", database=name, username=ROLE, password=self.role_password)

    def drop_database(self, url: URL) -> None:
        """Drops a database, whoever is connected."""
        with self.administrator() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(str(url.database))))


@dataclass
class OwnServer(Server):
    """A server of this process, which can stop and start it."""

    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        deadline = time.monotonic() + 30
        while True:
            # After SIGKILL it does not start while processes of the one before end.
            if self.process is None or self.process.poll() is not None:
                with self.log.open("ab") as output:
                    self.process = subprocess.Popen(self.command, stdout=output, stderr=output, cwd="/")
            try:
                with self.administrator():
                    return
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL did not start:\n{self.log.read_text()}") from None
                time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends all sessions and the server (SIGQUIT: without a checkpoint; SIGKILL: as a crash would)."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(30)


@contextmanager
def temporary_server(binaries: Binaries | None = None, *, timescaledb: bool = False) -> Iterator[OwnServer]:
    """A server of its own, with the role of the pipeline; it and its data are gone at the end.

    It listens on 127.0.0.1 and in a folder of its own, and asks everybody for a password. As PostgreSQL refuses to run
    as root, root starts it as another user. Raises FileNotFoundError where there are no binaries.
    """
    binaries = binaries or (find_timescaledb() if timescaledb else find_binaries())
    if binaries is None:
        raise FileNotFoundError(NO_TIMESCALEDB if timescaledb else NO_BINARIES)
    user = unprivileged_user(binaries.root) if os.geteuid() == 0 else None
    # To the root "/" chroot changes nothing but the user.
    run = [] if user is None else ["chroot", f"--userspec={user.pw_uid}:{user.pw_gid}", "--groups=", str(binaries.root)]
    folder = Path(tempfile.mkdtemp(prefix="triangulation-pg-", dir=binaries.inside(Path(tempfile.gettempdir()))))
    inside = Path("/") / folder.relative_to(binaries.root)
    password = secrets.token_hex(8)
    try:
        folder.chmod(0o755)
        (folder / "password").write_text(password)
        for path in (folder, folder / "password"):
            if user is not None:
                os.chown(path, user.pw_uid, user.pw_gid)
        initdb: list[str | Path] = [
            *run,
            binaries.folder / "initdb",
            "-D",
            inside / "data",
            "--no-sync",
            "-U",
            "administrator",
        ]
        made = subprocess.run(
            [*initdb, "--encoding=UTF8", "--locale=C", "--auth=scram-sha-256", f"--pwfile={inside / 'password'}"],
            cwd="/",
            capture_output=True,
            text=True,
        )
        if made.returncode:
            raise RuntimeError(f"initdb failed:\n{made.stderr}")
        port = free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": inside,
            "fsync": "off",
            "max_connections": 50,
        }
        if timescaledb:
            settings |= {"shared_preload_libraries": "timescaledb", "timescaledb.telemetry_level": "off"}
        postgres = [*run, str(binaries.folder / "postgres"), "-D", str(inside / "data")]
        server = OwnServer(
            admin=URL.create("postgresql", "administrator", password, "127.0.0.1", port, "postgres"),
            role_password=secrets.token_hex(8),
            command=[*postgres, *(f"--{name}={value}" for name, value in settings.items())],
            log=folder / "log",
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


def unprivileged_user(root: Path = Path("/")) -> pwd.struct_passwd:
    """Whom root runs a server as; of another system only ``nobody`` is known by its number."""
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    return known["postgres"] if "postgres" in known and root == Path("/") else known["nobody"]
