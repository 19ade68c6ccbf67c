"""Take the pictures of a run that README and docs show. Needs Chromium; not a part of the test suite.

    uv run python docs/screenshot.py

`terminal.svg` is a run in a terminal, and `chat.svg` a conversation. `web-ui.png` is the page of a run in Temporal's
Web UI, in a headless browser, while `main.py --worker` serves its history.
"""

import io
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.text import Text

WIDTH = 110
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from standin import StandIn, held  # noqa: E402
from terminal import Terminal  # noqa: E402

from app import demo  # noqa: E402

QUERY = "Compare the weather and the population of New York and Los Angeles."
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MAIN = [sys.executable, str(ROOT / "main.py"), "--offline"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")}


def main() -> None:
    if BROWSER is None:
        sys.exit("there is no Chromium")
    photograph_run("How is the weather in New York and Los Angeles?", ROOT / "docs" / "terminal.svg")
    photograph_chat(ROOT / "docs" / "chat.svg")
    run = subprocess.run([*MAIN, QUERY], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, check=True)
    [page] = re.findall(r"http://\S+/workflows/\S+", run.stderr)
    server = subprocess.Popen([*MAIN, "--worker"], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        while "ready" not in server.stderr.readline():
            assert server.poll() is None
        answers(page)
        shoot(page, ROOT / "docs" / "web-ui.png", height=1000)
    finally:
        server.terminate()
        server.wait()


def photograph_run(query: str, file: Path) -> None:
    terminal = open_terminal(query)
    status, _ = terminal.finish()
    assert status == 0
    photograph(terminal, f'$ uv run python main.py "{query}"', file)


def photograph_chat(file: Path) -> None:
    asked = threading.Event()
    with StandIn().serving() as services, tempfile.TemporaryDirectory() as state:
        # The demo model, but slow enough to be steered.
        services.play(held(asked, lambda call: demo.stream(demo.demo_model(call.body))))
        key = {**services.environment, "XDG_STATE_HOME": state}
        terminal = open_terminal("--chat", "--model", "demo", without=["--offline"], env=key)
        terminal.wait_for("a message, or /help")
        terminal.type("How is the weather in New York?\r")
        terminal.wait_for("steers turn 1; Esc stops it")
        terminal.type("And the weather in Los Angeles, please.\r")
        terminal.wait_for("  steers turn 1\n")
        asked.set()
        terminal.wait_for("3 model calls", "a message, or /help")
        terminal.type("Which of the two has more people?\r")
        terminal.wait_for("2 model calls", "a message, or /help")
        photograph(terminal, "$ uv run python main.py --chat", file)
        terminal.type("/end\r")
        terminal.finish()


def open_terminal(*arguments: str, without: Sequence[str] = (), env: Mapping[str, str] | None = None) -> Terminal:
    command = [word for word in MAIN if word not in without]
    colored = {**ENVIRONMENT, "TERM": "xterm-256color", "NO_COLOR": "", **(env or {})}
    return Terminal([*command, *arguments], colored, size=(WIDTH, 40))


def photograph(terminal: Terminal, command: str, file: Path) -> None:
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text(command, style="bold"))
    for line in terminal.cells():
        text = Text()
        for style, cells in itertools.groupby(line, _style):
            text.append("".join(cell.data for cell in cells), style)
        text.rstrip()
        console.print(text)
    # Without the fonts that the picture would fetch from elsewhere: the reader's own will do.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="durable agent"), flags=re.DOTALL)
    file.write_text(svg)


def _style(cell: Any) -> Style:
    known = ("red", "green", "yellow", "cyan", "blue", "magenta")
    color = "bright_black" if cell.fg == "brightblack" else cell.fg if cell.fg in known else None
    return Style(color=color, bold=cell.bold, italic=cell.italics)


def answers(page: str) -> None:
    while True:
        try:
            with urllib.request.urlopen(page):
                return
        except OSError:
            time.sleep(0.1)


def shoot(page: str, file: Path, height: int) -> None:
    assert BROWSER is not None
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
                *(f"--user-data-dir={profile}", f"--window-size=1440,{height}", "--hide-scrollbars"),
                # The page draws what it has fetched; this is time on its own clock, not on the wall's.
                *("--virtual-time-budget=20000", f"--screenshot={file}", page),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )


if __name__ == "__main__":
    main()
