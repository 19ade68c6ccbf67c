"""The bridge, copied into another project, and not a line of it changed: alone, and with every option."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from app import command_line

BRIDGE = ["durable.py", "activities.py", "plugin.py", "bridge"]


def copy(folder: Path, *names: str) -> None:
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    for file in (ROOT / "tests" / "copied").glob("*.py"):
        shutil.copy(file, folder)


def run(folder: Path, environment: dict[str, str], *arguments: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={name: value for name, value in environment.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


QUOTED = "quote: {'price': 165, 'last_day': '2026-05-01'}; "


def test_another_agent_runs_with_the_bridge_alone(tmp_path: Path, environment: dict[str, str]) -> None:
    copy(tmp_path, *BRIDGE)
    said = run(tmp_path, environment, "travel.py", environment["TEMPORAL_ADDRESS"])
    assert said == [f"{QUOTED}charge: ToolError: charge failed: the line went dead"]
    assert (tmp_path / "done.txt").read_text().splitlines() == ["charged 165"]


@pytest.mark.parametrize(
    ("answer", "booked"),
    [("yes", "booked"), ("no", "ToolError: a person did not allow this call of book: no reason given")],
)
def test_another_agent_runs_with_every_option(
    tmp_path: Path, environment: dict[str, str], answer: str, booked: str
) -> None:
    copy(tmp_path, *BRIDGE, "options")
    question, said = run(tmp_path, environment, "travel_with_options.py", environment["TEMPORAL_ADDRESS"], answer)
    assert question == "book(price=165)"
    assert said.startswith(f"{QUOTED}book: {booked}; charge: ToolError: charge failed: ")
    done = (tmp_path / "done.txt").read_text().splitlines()
    assert done[:-1] == (["booked for 165"] if answer == "yes" else []) + ["charged 165"] * 4


# ── Arrows ───────────────────────────────────────────────────────────────────────────────────────────────


def imports(*names: str) -> set[str]:
    """The first part of every module that these files, or the files of these folders, import."""
    found: set[str] = set()
    for name in names:
        for file in [ROOT / name] if name.endswith(".py") else (ROOT / name).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    found.update(alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    found.add((node.module or "").partition(".")[0])
    return found


SAMPLE = {"main", "open_meteo", "workflow", "tools", "durable", "activities", "plugin", "bridge", "options", "app"}


@pytest.mark.parametrize(
    ("room", "needs"),
    [
        (["bridge"], {"bridge"}),
        (["activities.py"], {"bridge"}),
        (["durable.py"], {"activities", "bridge"}),
        (["plugin.py"], {"activities", "bridge"}),
        (["options"], {"activities", "bridge", "durable", "options"}),
        (["tools.py"], {"open_meteo"}),
        (["open_meteo.py"], {"options"}),
        (["workflow.py"], {"bridge", "durable", "options", "tools"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_no_arrow_leads_from_the_bridge_to_the_app(room: list[str], needs: set[str]) -> None:
    assert imports(*room) & SAMPLE == needs


def test_the_tools_know_nothing_of_temporal() -> None:
    assert "temporalio" not in imports("tools.py", "open_meteo.py", "options/http.py")


def test_the_bridge_names_no_tool_city_model_or_task_queue() -> None:
    files = [ROOT / name for name in BRIDGE if name.endswith(".py")] + [*(ROOT / "bridge").glob("*.py")]
    text = "".join(file.read_text() for file in files).lower()
    for name in ("get_population", "tokyo", "new york", command_line.DEFAULT_MODEL, f'"{command_line.TASK_QUEUE}"'):
        assert name not in text
