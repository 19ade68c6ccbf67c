"""`main.py` in a pseudo-terminal, and what a person sees and does there."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pyte
from processes import end

# Makes the terminal the one of the process, as a shell does: Ctrl-C and resizing come from there.
LAUNCHER = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    """A process in a terminal of its own. Standard output goes there too, unless it is piped.

    What the process writes is kept with its time, and is drawn on the screen of a terminal emulator.
    """

    def __init__(
        self, command: list[str], env: dict[str, str], size: tuple[int, int] = (80, 24), piped: bool = False
    ) -> None:
        self._size = size  # columns, lines
        self._screen = pyte.HistoryScreen(*size, history=5000)
        self._stream = pyte.ByteStream(self._screen)
        self._chunks: list[tuple[float, bytes]] = []
        self._changed = threading.Condition()
        self._open = True
        self._master, slave = pty.openpty()
        self.resize(*size)
        self.process = subprocess.Popen(
            [sys.executable, "-ISc", LAUNCHER, *command],
            env=env,
            stdin=slave,
            stdout=subprocess.PIPE if piped else slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while self._open:
            try:
                chunk = os.read(self._master, 1 << 16)
            except OSError:  # nobody has the other end any more
                chunk = b""
            with self._changed:
                self._chunks.append((time.monotonic(), chunk))
                self._stream.feed(chunk)
                self._open = bool(chunk)
                self._changed.notify_all()

    # ── What a person sees ──

    @property
    def lines(self) -> list[str]:
        """What is on the screen."""
        with self._changed:
            return [line.rstrip() for line in self._screen.display]

    @property
    def scrolled(self) -> list[str]:
        """What is on the screen, and before it what one can scroll up to."""
        with self._changed:
            columns = range(self._screen.columns)
            return ["".join(line[x].data for x in columns).rstrip() for line in self._screen.history.top] + self.lines

    def cells(self) -> list[list[Any]]:
        """The lines of the screen up to the last that is not empty, each as its characters with their looks."""
        with self._changed:
            lines = [self._screen.buffer[y] for y in range(self._screen.lines)]
            rows = [[line[x] for x in range(self._screen.columns)] for line in lines]
        while rows and not "".join(cell.data for cell in rows[-1]).strip():
            rows.pop()
        return rows

    @property
    def written(self) -> bytes:
        """Everything that was written, as it came."""
        with self._changed:
            return b"".join(chunk for _, chunk in self._chunks)

    def has_cursor(self) -> bool:
        with self._changed:
            return not self._screen.cursor.hidden

    def style_of(self, words: str) -> Any:
        """How the first of these words on the screen looks: `bold`, `italics`, `fg`, …"""
        with self._changed:
            [(y, x)] = [(y, line.index(words)) for y, line in enumerate(self._screen.display) if words in line]
            return self._screen.buffer[y][x]

    def wait_for(self, *words: str, gone: Iterable[str] = (), seconds: float = 60) -> None:
        """Wait until all of these words are on the screen, and none of the ones that are to be gone."""

        def reached() -> bool:
            text = "\n".join(self.lines)
            return all(word in text for word in words) and not any(word in text for word in gone)

        with self._changed:
            self._changed.wait_for(lambda: reached() or not self._open, seconds)
            assert reached(), "\n".join([f"waited for {words} without {gone}; the screen is:", *self._screen.display])

    def frames(self) -> Iterator[tuple[float, str]]:
        """What was on the screen at any time (`time.monotonic()`). For a terminal that was not resized."""
        screen = pyte.Screen(*self._size)
        stream = pyte.ByteStream(screen)
        for moment, chunk in self._chunks:
            stream.feed(chunk)
            yield moment, "\n".join(screen.display)

    # ── What a person does ──

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        with self._changed:
            self._screen.resize(lines, columns)
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def finish(self, seconds: float = 60) -> tuple[int, str]:
        """Wait for the end. Returns the exit status, and what came out of the pipe."""
        out, _ = self.process.communicate(timeout=seconds)
        self._reader.join(seconds)
        return self.process.returncode, (out or b"").decode()

    def close(self) -> None:
        end(self.process)
        self._reader.join(10)
        os.close(self._master)
