"""Take the picture of the page of examples/web.py that docs/web.md shows. Needs Chromium.

uv run python docs/web_screenshot.py [FILE]
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def main(file: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AI_GATEWAY_")}
    command = [sys.executable, str(ROOT / "examples" / "web.py"), "--port", "0"]
    web = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert web.stderr is not None
        [url] = next(found for line in web.stderr if (found := re.findall(r"^Open (http://\S+)", line)))
        photograph(url, file)
    finally:
        web.terminate()
        web.communicate()


def photograph(url: str, file: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 900, "height": 720}, color_scheme="light")
        page.goto(url)
        page.get_by_role("checkbox").check()
        say, allow = page.get_by_role("textbox", name="Message"), page.get_by_role("button", name="Allow")
        say.fill("How is the weather in New York and Los Angeles?")
        say.press("Enter")
        for left in (2, 1):
            expect(allow).to_have_count(left)
            allow.first.click()
        expect(page.locator(".text").last).to_contain_text("Los Angeles:")
        say.fill("And how many people live in Tokyo?")
        say.press("Enter")
        expect(allow).to_have_count(1)
        say.focus()
        page.screenshot(path=file)
        browser.close()


if __name__ == "__main__":
    if BROWSER is None:
        sys.exit("there is no Chromium")
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "web.png")
