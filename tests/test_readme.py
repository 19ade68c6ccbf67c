"""What README.md and CONTRIBUTING.md claim: their links, their file map, their code and their commands."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, RunMain

import offline

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
README = DOCUMENTS[0].read_text()
TEXT = "\n".join(document.read_text() for document in DOCUMENTS)

# Commands that take minutes, or a service, or a browser, and what stands in for them here: see the tests below.
ELSEWHERE = {
    "uv run pytest",  # this
    "uv run benchmarks/run.py",
    "uv run python tests/soak.py --kills 60 --seed 7 --minutes 25",
    "uv run python tests/marathon.py --calls 2000",
    "uv run python tests/record_history.py ID NAME",
    "uv run python docs/screenshot.py",
    "uv run python main.py --worker",  # test_crashes.py, test_terminal.py
}


def commands() -> set[str]:
    """All `uv run` commands of code blocks and of code in the text, without what is assigned before or said after."""
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", "").splitlines()]
    lines += re.findall(r"^\$ (.*)", TEXT, re.MULTILINE)  # in a block that also shows what comes of them
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))
    found = {match[0].partition("  #")[0].strip() for line in lines if (match := re.search(r"uv run .*", line))}
    return {command for command in found if "ID" not in command.split() or command in ELSEWHERE}


def test_every_link_inside_the_repository_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link.partition("#")[0]).exists()] == []


def test_the_file_map_has_every_file() -> None:
    mapped = re.findall(r"^\| \[(\w+\.py)\]", README, re.MULTILINE)
    assert sorted(mapped) == sorted(path.name for path in ROOT.glob("*.py"))


def test_the_code_in_it_is_code_that_runs() -> None:
    sources = "\n".join(
        path.read_text() for folder in ("tests", "tests/copied") for path in (ROOT / folder).glob("*.py")
    )
    lines = [line.strip() for line in sources.splitlines()]
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        wanted = [line.strip() for line in block.strip().splitlines()]
        starts = (i for i, line in enumerate(lines) if line == wanted[0])
        assert any(lines[i : i + len(wanted)] == wanted for i in starts), block


def test_every_run_of_main_answers(run_main: RunMain) -> None:
    # Those that need a worker beside them are in test_crashes.py.
    queries = {command for command in commands() - ELSEWHERE if command.startswith("uv run python main.py")}
    queries = {command for command in queries if "--no-worker" not in command}
    assert queries
    for command in sorted(queries):
        arguments = shlex.split(command)[4:]
        if arguments[0] == "--id" and len(arguments) == 2:  # of a run that is there already
            run_main("--offline", "Weather in Tokyo?", *arguments)
        result = run_main("--offline", *arguments)
        assert (result.returncode, bool(result.stdout)) == (0, True), command


def test_every_other_command_is_known() -> None:
    others = ("uv run python main.py", "uv run temporal ")
    rest = {command for command in commands() if not command.startswith(others)}
    assert rest - ELSEWHERE == set()
    for command in rest - {"uv run pytest"}:
        [script] = [word for word in shlex.split(command) if word.endswith(".py")]
        assert (ROOT / script).is_file(), command


def test_the_commands_of_temporal_are_commands_and_options_that_it_has() -> None:
    found = {command for command in commands() if command.startswith("uv run temporal ")}
    assert found
    for command in found:
        words = shlex.split(command)[3:]
        options = [word for word in words if word.startswith("--")]
        path = words[: words.index(options[0])] if options else words
        names = path[: path.index("create") + 1] if "create" in path else path  # what follows is a name
        result = subprocess.run(
            [str(offline.find_temporal()), *names, "--help"], capture_output=True, text=True, check=True, timeout=60
        )
        assert [option for option in options if option not in result.stdout] == [], command


@pytest.mark.parametrize("script", ["tests/soak.py", "benchmarks/run.py"])
def test_a_long_command_has_the_options_that_are_named(script: str) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    named = {option for command in commands() if script in command for option in re.findall(r" (--[\w-]+)", command)}
    assert [option for option in named if option not in result.stdout] == []


def test_the_marathon_runs() -> None:
    command = [sys.executable, str(ROOT / "tests" / "marathon.py"), "--calls", "12"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "answer 'done' after 12 model calls" in result.stdout


def test_a_history_is_recorded_as_it_says(run_main: RunMain, environment: dict[str, str], tmp_path: Path) -> None:
    run_main("--offline", "Weather in Tokyo?", "--id", "to-be-recorded")
    shutil.copy(ROOT / "tests" / "record_history.py", tmp_path)
    (tmp_path / "histories").mkdir()
    command = [sys.executable, str(tmp_path / "record_history.py"), "to-be-recorded", "name"]
    subprocess.run(command, env=environment, check=True, timeout=60)
    assert "tool_call_activity" in (tmp_path / "histories" / "name.json").read_text()
