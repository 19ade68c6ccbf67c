"""Every file of examples/, run as a user does: what it prints, and that it ends by itself."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, RunMain

FOLDER = ROOT / "examples"

# What each example prints. Lines of calls that are made at once may change places.
PRINTED = {
    "sdk_agent": r"""
        ? approve_write-0: {"tool_name":"write","tool_args":"{\"path\": \"minutes.txt\", \"content\": \"All agreed.\"}"}
        ? approve_read-0: {"tool_name":"read","tool_args":"{\"path\": \"minutes.txt\"}"}
        Wrote 11 bytes to minutes.txt; [1 lines | showing 1-1] 1 All agreed.
    """,
    "approval_rule": """
        charged Ada 50
        ? charge(customer="Ben", amount=500)
        ? charge(customer="Cleo", amount=900)
        charged Ben 500
        Ada was charged 50
        Ben was charged 500
        ToolError: this call of charge was not allowed: nobody answered within 0:00:03
    """,
    "agents_as_tools": """
        the researcher of whales is asked
        the researcher of ravens is asked
        the researcher of whales answers
        the researcher of ravens answers
        the researcher of whales is asked
        the researcher of ravens is asked
        the researcher of whales answers
        the researcher of ravens answers
        whales: a book about whales; ravens: a book about ravens
    """,
    "child_workflows": """
        the researcher of whales is asked, attempt 1
        the researcher of ravens is asked, attempt 1
        The worker is stopped, and three workflows are under way. Another worker goes on:
        the researcher of whales is asked, attempt 2
        the researcher of ravens is asked, attempt 2
        all about whales; all about ravens
    """,
    "structured_output": """
        A trip to Rome -> {"city": "Rome", "days": "a few"}
        A trip to Rome -> {"city": "Rome", "days": 14}
        14 days are too long. At most 7. -> {"city": "Rome", "days": 5}
        Trip: Rome for 5 days
    """,
    "long_conversation": """
        scripted: ['Question 1?']
        Question 1? Answer 1.
        scripted: ['Question 1?', 'Answer 1.', 'Question 2?']
        Question 2? Answer 2.
        summarizer: ['Question 1?', 'Answer 1.', 'Sum up.']
        scripted: ['Summary so far: They spoke of whales.', 'Question 2?', 'Answer 2.', 'Question 3?']
        Question 3? Answer 3.
        summarizer: ['Summary so far: They spoke of whales.', 'Question 2?', 'Answer 2.', 'Sum up.']
        scripted: ['Summary so far: They spoke of whales.', 'Question 3?', 'Answer 3.', 'Question 4?']
        Question 4? Answer 4.
    """,
    "own_model": """
        stream 1: {"word": "All is"}
        stream 2: {"word": "All is"}
        stream 2: {"word": " well."}
        stream 2: {"end": "stop", "tokens": 4}
        All is well.
    """,
}


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


RUN_ELSEWHERE = {
    "hook": "test_hooks.py",
    "mcp_tools": "test_mcp.py",
    "testing": "test_examples.py",
    "tracing": "test_telemetry.py",
    "web": "test_web.py",
}


def test_every_example_says_first_what_it_shows_and_is_run_and_listed() -> None:
    examples = {
        file.stem: file.read_text().splitlines()[0]
        for file in FOLDER.glob("*.py")
        if file.stem not in ("shared", "places_server")
    }
    assert examples.keys() == PRINTED.keys() | RUN_ELSEWHERE.keys()
    for name, test in RUN_ELSEWHERE.items():
        assert name in (Path(__file__).parent / test).read_text()
    assert [first for first in examples.values() if not first.startswith('"""Shows ')] == []
    table = (FOLDER / "README.md").read_text()
    assert [name for name in examples if f"| [{name}.py]({name}.py) |" not in table] == []


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_shows_its_point_and_ends(run_main: RunMain, name: str) -> None:
    result = run_main(script=FOLDER / f"{name}.py")
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(lines(result.stdout)) == sorted(lines(PRINTED[name]))
    assert lines(result.stdout)[-1] == lines(PRINTED[name])[-1]


def test_sub_agents_in_one_workflow_are_at_work_at_once(run_main: RunMain) -> None:
    said = lines(run_main(script=FOLDER / "agents_as_tools.py").stdout)
    assert [line.rpartition(" ")[2] for line in said[:3]] == ["asked", "asked", "answers"]


def test_an_example_needs_no_server(folder: Path, environment: dict[str, str]) -> None:
    shutil.copytree(FOLDER, folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    del environment["TEMPORAL_ADDRESS"]
    command = [sys.executable, str(folder / "examples" / "structured_output.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert lines(result.stdout) == lines(PRINTED["structured_output"])


def test_a_server_that_is_not_there_is_told_in_one_line(run_main: RunMain) -> None:
    result = run_main(script=FOLDER / "own_model.py", env={"TEMPORAL_ADDRESS": "127.0.0.1:1"})
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"Error: cannot use the Temporal server at 127\.0\.0\.1:1: .*\n", result.stderr)


def test_the_tests_of_an_agent_pass(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-n", "1", "examples/testing.py"]
    named = {name: value for name, value in environment.items() if not name.startswith("PYTEST")}
    result = subprocess.run(command, cwd=ROOT, env=named, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout
    assert "4 passed" in result.stdout
