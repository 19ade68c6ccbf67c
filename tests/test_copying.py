"""The two files of the bridge, copied into another project, and not a line of them changed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import main

COPIED = ["durable.py", "activities.py"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for file in (*(ROOT / name for name in COPIED), *(ROOT / "tests" / "copied").glob("*.py")):
        shutil.copy(file, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("answer", "booked"),
    [("yes", "booked"), ("no", "ToolError: a person did not allow this call of book: no reason given")],
)
def test_another_agent_runs_with_the_two_files(
    project: Path, environment: dict[str, str], answer: str, booked: str
) -> None:
    result = subprocess.run(
        [sys.executable, "travel.py", environment["TEMPORAL_ADDRESS"], answer],
        cwd=project,
        env={name: value for name, value in environment.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    question, said = result.stdout.splitlines()
    assert question == "book(price=165)"
    assert said == (
        "quote: {'price': 165, 'last_day': '2026-05-01'}; "
        f"book: {booked}; charge: ToolError: charge failed: the line went dead"
    )
    done = (project / "done.txt").read_text().splitlines()
    assert done == ["booked for 165"] * (answer == "yes") + ["charged 165"]


def test_the_two_files_name_no_tool_city_model_or_task_queue() -> None:
    text = "".join((ROOT / name).read_text() for name in COPIED).lower()
    for name in ("get_weather", "get_population", "tokyo", "new york", main.DEFAULT_MODEL, main.TASK_QUEUE):
        assert name not in text


def test_they_import_nothing_of_the_sample_but_each_other() -> None:
    modules = {path.stem for path in ROOT.glob("*.py")}
    for name in COPIED:
        imported = re.findall(r"^(?:from|import) (\w+)", (ROOT / name).read_text(), re.MULTILINE)
        assert set(imported) & modules <= {"activities"}
