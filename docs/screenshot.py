"""Take the picture of a run in Temporal's Web UI that the README shows. Needs Chromium; not a part of the test suite.

    uv run python docs/screenshot.py

Runs the sample, serves its history with `main.py --worker` as the sample says one should, and opens the page of the run
in a headless browser.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUERY = "Compare the weather and the population of New York and Los Angeles."
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def main() -> None:
    if BROWSER is None:
        sys.exit("there is no Chromium")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")}
    command = [sys.executable, str(ROOT / "main.py")]
    run = subprocess.run([*command, "--offline", QUERY], env=environment, stderr=subprocess.PIPE, text=True, check=True)
    [page] = re.findall(r"http://\S+/workflows/\S+", run.stderr)
    server = subprocess.Popen([*command, "--offline", "--worker"], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        while "ready" not in server.stderr.readline():
            assert server.poll() is None
        answers(page)
        shoot(page, ROOT / "docs" / "web-ui.png", height=1000)
    finally:
        server.terminate()
        server.wait()


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
