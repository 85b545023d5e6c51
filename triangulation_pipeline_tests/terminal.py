"""A terminal in which a command runs, and what a person sees there."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections.abc import Sequence

import pyte

ROWS = 24
# What rich writes at the right end of a progress bar: nothing comes after it.
BAR_END = re.compile(r"\d:\d\d:\d\d(.*)$")
CTRL_C = b"\x03"


def on_a_terminal(
    command: Sequence[str], columns: int, *, interrupted_at: str | None = None, timeout_s: float = 240
) -> tuple[int, list[str]]:
    """Exit code of a command in a terminal of its own, and the lines that it leaves there; Ctrl-C is pressed as soon as
    a text is seen. Fails where anything is ever written beside a progress bar."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}

    def take_the_terminal() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment | {"TERM": "xterm-256color"},
        start_new_session=True,
        preexec_fn=take_the_terminal,
    )
    os.close(terminal)
    screen = pyte.HistoryScreen(columns, ROWS, history=10_000, ratio=1)
    stream = pyte.ByteStream(screen)
    try:
        while True:
            try:
                stream.feed(os.read(controller, 65536))
            except OSError:  # its end
                break
            for line in screen.display:
                if (end := BAR_END.search(line)) is not None:
                    assert end[1].strip() in {"", "^C"}, line  # which the terminal shows itself
            if interrupted_at is not None and any(interrupted_at in line for line in screen.display):
                os.write(controller, CTRL_C)
                interrupted_at = None
        code = process.wait(timeout_s)
    finally:
        os.close(controller)
        if process.poll() is None:
            process.kill()
            process.wait()
    above = ["".join(row[column].data for column in range(columns)) for row in screen.history.top]
    return code, [line.rstrip() for line in (*above, *screen.display)]
