"""The command line, in processes of its own: output, exit status, and what is left behind."""

import asyncio
import functools
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import uuid
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import ROOT, RunMain, StartMain, StartServer
from processes import line_with
from standin import StandIn, hang, status, text
from standin import tools as calls
from temporalio.client import Client

from app import command_line, devserver
from app.demo import NOTICE
from workflow import AgentWorkflow
from workflow_types import AgentRequest

TOKYO = "Tokyo: 18.4 °C, partly cloudy, wind 12.1 km/h.\n"
NO_KEY = {"AI_GATEWAY_API_KEY": ""}


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


# ── Answers ──────────────────────────────────────────────────────────────────────────────────────────────


def test_it_answers_without_a_key_and_says_that_it_is_a_demo(run_main: RunMain, tmp_path: Path) -> None:
    result = run_main("What is the weather in Tokyo?", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, TOKYO)
    assert result.stderr.startswith(f"{NOTICE}\n")
    assert list(tmp_path.iterdir()) == []


def test_the_default_question_is_about_two_cities(run_main: RunMain) -> None:
    lines = run_main().stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["New York", "Los Angeles"]
    assert all("°C" in line and "population" in line for line in lines)


def test_a_city_that_does_not_exist_is_told_in_the_answer(run_main: RunMain) -> None:
    result = run_main("What is the weather in Atlantis?")
    assert (result.returncode, result.stdout) == (0, "Atlantis: there is no city called 'Atlantis'.\n")


def test_with_a_key_it_uses_the_services_of_the_environment(run_main: RunMain, standin: StandIn) -> None:
    result = run_main("Weather in Tokyo?", "--model", "some/model", env=standin.environment)
    assert (result.returncode, result.stdout) == (0, TOKYO)
    assert "DEMO" not in result.stderr
    assert standin.calls[0].headers["ai-language-model-id"] == "some/model"
    assert standin.calls[0].headers["authorization"] == f"Bearer {standin.environment['AI_GATEWAY_API_KEY']}"


def test_the_model_comes_from_the_environment_and_offline_wins_over_a_key(run_main: RunMain, standin: StandIn) -> None:
    run_main("Weather in Tokyo?", env={**standin.environment, "AI_MODEL": "env/model"})
    assert {call.headers["ai-language-model-id"] for call in standin.calls} == {"env/model"}
    seen = len(standin.calls)
    result = run_main("--offline", "Weather in Tokyo?", env=standin.environment)
    assert (result.stdout, len(standin.calls)) == (TOKYO, seen)
    assert NOTICE in result.stderr


def test_what_the_sdk_needs_for_other_agents_is_loaded_when_it_is_used(environment: dict[str, str]) -> None:
    program = """\
import os, runpy, sys
os._exit = lambda status: None
sys.argv = ["main.py", "--offline", "Weather in Tokyo?"]
runpy.run_path("main.py", run_name="__main__")
import vercel_ai_sdk as ai
few = {"anthropic", "openai", "mcp.client"}
before = few & set(sys.modules)
ai.anthropic.AnthropicModel("claude", api_key="a key")
ai.openai.OpenAIModel("gpt", api_key="a key")
tool = ai.mcp.client.mcp.types.Tool(name="add", inputSchema={})
from mcp import ClientSession, types
from mcp.client.session import ClientSession as same
print(before, few <= set(sys.modules), isinstance(tool, types.Tool), same is ClientSession, flush=True)
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert result.stdout == f"{TOKYO}set() True True True\n"


def test_without_the_demo_its_server_is_not_loaded(environment: dict[str, str]) -> None:
    program = """\
import os, runpy, sys
os._exit = lambda status: None
sys.argv = ["main.py", "--id", "nobody"]
runpy.run_path("main.py", run_name="__main__")
print({"starlette", "uvicorn"} & set(sys.modules), flush=True)
"""
    env = {**environment, "AI_GATEWAY_API_KEY": "a-key"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert result.stdout == "set()\n"


def test_progress_is_on_standard_error(run_main: RunMain, standin: StandIn) -> None:
    result = run_main("Weather in Tokyo?", "--id", (name := uuid.uuid4().hex), "--model", "m", env=standin.environment)
    plain = re.sub(r"process \d+", "process N", re.sub(r"\d+\.\d s", "N s", result.stderr))
    assert plain.splitlines() == [
        f"Run {name} (process N)",
        "  > m, call 1",
        "  < m, call 1 done in N s: 221 tokens in, 20 out",
        '  > get_weather(city="Tokyo")',
        '  < get_weather(city="Tokyo") done in N s: {"city":"Tokyo","country":"Japan","temperature":"18.4 °C",'
        '"conditions":"partly cloudy","wind":"12.1 km/h"}',
        "  > m, call 2",
        "  < m, call 2 done in N s: 322 tokens in, 11 out",
        "2 model calls, 1 tool call, 543 tokens in, 31 out, N s",
    ]


def test_an_answer_that_was_cut_is_reported_as_such(run_main: RunMain, standin: StandIn) -> None:
    standin.play(text("half an ans", reason="length"))
    result = run_main("Weather?", env=standin.environment)
    assert (result.returncode, result.stdout) == (0, "half an ans\n")
    assert "The answer was cut short by the model's length limit." in result.stderr


def test_a_run_is_joined_by_its_name_and_gone_on_with_by_a_query(run_main: RunMain, standin: StandIn) -> None:
    name = uuid.uuid4().hex
    run = rf"Run {name} \(process \d+\)"
    first = run_main("Weather in Tokyo?", "--id", name, env=standin.environment)
    alone = run_main("--id", name, env=standin.environment)
    assert {first.stdout, alone.stdout} == {TOKYO}
    assert re.match(rf"{run} is over\n", alone.stderr)
    assert len(standin.calls) == 2
    more = run_main("and the population?", "--id", name, env=standin.environment)
    assert more.stdout == "Tokyo: population 9,733,276.\n"
    assert re.match(rf"{run} goes on\n", more.stderr)
    assert run_main("--id", name, env=standin.environment).stdout == more.stdout


def test_only_the_turn_of_a_message_is_shown(run_main: RunMain, standin: StandIn) -> None:
    name = uuid.uuid4().hex
    assert run_main("--chat", "--id", name, env=standin.environment, input="Weather in Tokyo?\n").stdout == TOKYO
    more = run_main("and the population?", "--id", name, env=standin.environment)
    assert more.stdout == "Tokyo: population 9,733,276.\n"
    assert "get_weather" not in more.stderr
    again = run_main("--id", name, env=standin.environment)
    assert (again.stdout, "get_weather" in again.stderr) == (more.stdout, False)


# ── Failures ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("code", "kind", "line"),
    [
        (
            401,
            "authentication_error",
            r"Error: the run failed: HTTP 401: no good\. Set AI_GATEWAY_API_KEY to a valid key and start a new run\.",
        ),
        (
            404,
            "model_not_found",
            r"Error: the run failed: HTTP 404: no good\. Name another model with --model or AI_MODEL\.",
        ),
    ],
)
def test_a_model_that_refuses_ends_the_run_with_one_line(
    run_main: RunMain, standin: StandIn, code: int, kind: str, line: str
) -> None:
    standin.play(status(code, kind, "no good"))
    result = run_main("Weather?", env=standin.environment)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(line, last_line(result))


@pytest.mark.parametrize(("code", "advice"), [(400, "--model"), (402, "credit"), (403, "allowed")])
def test_every_final_status_comes_with_advice(run_main: RunMain, standin: StandIn, code: int, advice: str) -> None:
    standin.play(status(code, "whatever", "no good"))
    result = run_main("Weather?", env=standin.environment)
    assert result.returncode == 1
    assert last_line(result).startswith(f"Error: the run failed: HTTP {code}: no good. ")
    assert advice in last_line(result)


def test_a_loop_without_end_is_stopped(run_main: RunMain, standin: StandIn) -> None:
    standin.play(*[calls((str(i), "get_population", {"city": "Tokyo"})) for i in range(51)])
    result = run_main("Loop!", env=standin.environment)
    assert result.returncode == 1
    assert "the agent made 50 model calls without coming to an answer" in last_line(result)
    assert len(standin.calls) == 50


async def test_a_run_that_timed_out_is_told(run_main: RunMain, client: Client) -> None:
    name = uuid.uuid4().hex
    request = AgentRequest(query="Weather?", model="m")
    timeout = timedelta(seconds=1)
    await client.start_workflow(
        AgentWorkflow.run, request, id=name, task_queue=command_line.TASK_QUEUE, execution_timeout=timeout
    )
    result = await asyncio.to_thread(run_main, "--no-worker", "--id", name)
    assert (result.returncode, result.stdout) == (1, "")
    assert last_line(result) == "Error: the run failed: Workflow timed out"


def test_a_run_that_is_not_there_cannot_be_joined(run_main: RunMain) -> None:
    result = run_main("--id", "nobody")
    assert (result.returncode, last_line(result)) == (
        1,
        "Error: there is no run called 'nobody'; add a query to start one",
    )


async def test_an_id_that_belongs_to_another_workflow_is_refused(run_main: RunMain, client: Client) -> None:
    await client.start_workflow("Other", id="taken", task_queue="none")
    result = run_main("Weather?", "--id", "taken")
    assert result.returncode == 1
    assert last_line(result) == "Error: 'taken' is the id of a Other, not of an agent: choose another"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([""], "the query is empty"),
        ([" \n\t"], "the query is empty"),
        (["bell\a"], "the query contains control characters"),
        ([b"\xff\xfe"], "the query is not valid UTF-8"),
        (["q", "--id", ""], "--id is empty"),
        (["q", "--id", "i" * 1001], "--id has 1,001 bytes, over the limit of 1,000"),
        (["q", "--id", b"\xff"], "--id is not valid UTF-8"),
        (["q", "--model", " "], "--model is empty"),
        (["--worker", "q"], "--worker only serves: it takes no query, --id or --model"),
        (["--worker", "--no-worker"], "argument --no-worker: not allowed with argument --worker"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["q", "second"], "unrecognized arguments: second"),
    ],
)
def test_wrong_usage_is_answered_with_one_line(arguments: list[str | bytes], problem: str) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *arguments], capture_output=True, text=True, timeout=20, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert f"main.py: error: {problem}" in last_line(result)


def test_a_query_over_the_payload_limit_is_refused_before_it_is_sent(run_main: RunMain) -> None:
    result = run_main("-", input="weather in Tokyo? " * 170_000)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(
        r"Error: the query has 3,0\d\d,\d\d\d bytes, over the limit of 1,048,064: shorten it", last_line(result)
    )


def test_a_server_that_cannot_be_reached_is_named(run_main: RunMain) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        result = run_main("Weather?", env={"TEMPORAL_ADDRESS": address})
    assert result.returncode == 1
    assert last_line(result).startswith(f"Error: cannot use the Temporal server at {address}: ")


def test_what_a_server_refuses_is_told_with_its_reason(start_main: StartMain, start_server: StartServer) -> None:
    _, address = start_server("--dynamic-config-value", "limit.maxIDLength=100")
    process = start_main("Weather?", "--id", "x" * 101, env={"TEMPORAL_ADDRESS": address})
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.fullmatch(r"Error: the Temporal server refused: WorkflowId .*length.*", err.splitlines()[-1])
    assert "Traceback" not in err


def test_a_namespace_that_is_not_there_is_named(run_main: RunMain) -> None:
    result = run_main("Weather?", env={"TEMPORAL_NAMESPACE": "nowhere"})
    assert result.returncode == 1
    assert last_line(result).endswith("Namespace nowhere is not found.")


def test_a_profile_names_the_server(run_main: RunMain, environment: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "temporal.toml"
    # Popped, since an empty one wins over the profile too, and then there is a dev server.
    config.write_text(f'[profile.mine]\naddress = "{environment.pop("TEMPORAL_ADDRESS")}"\n')
    profile = {"TEMPORAL_CONFIG_FILE": str(config), "TEMPORAL_PROFILE": "mine"}
    assert run_main("Weather in Tokyo?", env=profile).stdout == TOKYO
    result = run_main("Weather in Tokyo?", env={**profile, "TEMPORAL_PROFILE": "yours"})
    assert result.returncode == 1
    assert "Error: the Temporal configuration cannot be read: Profile 'yours' not found" in last_line(result)


def test_demo_workers_leave_real_runs_alone(start_main: StartMain, run_main: RunMain, standin: StandIn) -> None:
    demo = start_main("--worker", "--offline")
    line_with(demo, "ready")
    standin.play(status(503), status(503), text("from the real one"))
    assert run_main("Weather in Tokyo?", env=standin.environment).stdout == "from the real one\n"
    assert run_main("--no-worker", "--offline", "Weather in Tokyo?").stdout == TOKYO


def test_a_run_is_not_joined_by_the_other_kind_of_worker(
    start_main: StartMain, run_main: RunMain, standin: StandIn
) -> None:
    standin.play(hang())
    started = start_main("Weather?", "--id", (name := uuid.uuid4().hex), env=standin.environment)
    standin.wait_for(calls=1)
    result = run_main("--id", name)
    assert (result.returncode, last_line(result)) == (
        1,
        f"Error: run {name!r} was started with an API key: join it the same way",
    )
    started.kill()


@pytest.mark.parametrize("sink", ["| true", "> /dev/full", ">&-"])
def test_an_answer_that_cannot_be_written_is_no_traceback(environment: dict[str, str], sink: str) -> None:
    command = f"{shlex.quote(sys.executable)} main.py --offline 'Weather in Tokyo?' {sink}"
    result = subprocess.run(
        command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in result.stderr
    assert ("Error: the answer cannot be written" in result.stderr) == (sink != "| true")


@pytest.mark.parametrize("sink", ["2>&-", "2>/dev/full"])
def test_progress_that_cannot_be_written_is_no_reason_to_lose_the_answer(
    environment: dict[str, str], sink: str
) -> None:
    command = f"{shlex.quote(sys.executable)} main.py --offline 'Weather in Tokyo?' {sink}"
    result = subprocess.run(
        command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout) == (0, TOKYO)


def test_a_terminal_without_the_signs_of_the_answer_still_gets_it(run_main: RunMain) -> None:
    assert run_main("Weather in Tokyo?", env={"PYTHONIOENCODING": "ascii"}).stdout == TOKYO.replace("°", "?")


# ── The dev server of the folder ─────────────────────────────────────────────────────────────────────────


def test_the_dev_server_comes_and_goes_with_the_run_and_keeps_its_runs(folder: Path, start_main: StartMain) -> None:
    first = start_main("Weather in Tokyo?", "--id", "one", folder=folder)
    out, err = first.communicate(timeout=60)
    assert (first.returncode, out) == (0, TOKYO)
    assert "http://localhost:8233/namespaces/default/workflows/one" in err
    assert (folder / ".temporal" / "temporal.db").exists()
    assert not devserver.answers(devserver.PORT)
    again = start_main("--id", "one", folder=folder)
    assert again.communicate(timeout=60)[0] == TOKYO


def test_two_runs_share_the_dev_server_and_the_last_one_stops_it(
    folder: Path, start_main: StartMain, standin: StandIn
) -> None:
    start_main = functools.partial(start_main, folder=folder, env=standin.environment)
    first = start_main("--worker")
    line_with(first, "ready")
    quick = start_main("Weather in Tokyo?")
    assert quick.communicate(timeout=60)[0] == TOKYO
    other = start_main("Weather in Tokyo and Paris?")
    standin.wait_for(calls=3)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert "Paris" in other.communicate(timeout=60)[0]


def test_another_program_on_the_port_is_told_from_a_temporal_server(folder: Path, start_main: StartMain) -> None:
    with socket.create_server(("127.0.0.1", devserver.PORT)):
        process = start_main("Weather?", folder=folder)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Error: localhost:7233 does not answer: is it a Temporal server? Free the port" in err
    assert "Traceback" not in err


def test_a_taken_web_ui_port_is_told(folder: Path, start_main: StartMain) -> None:
    with socket.create_server(("127.0.0.1", devserver.UI_PORT)):
        process = start_main("Weather?", folder=folder)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"Error: the Temporal server did not start: .*8233.*", err)


def test_a_folder_that_cannot_be_written_is_told(folder: Path, start_main: StartMain) -> None:
    (folder / ".temporal").write_text("not a folder")
    process = start_main("Weather?", folder=folder)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"Error: cannot keep the Temporal server's files in .*\.temporal: ", err)


def test_no_temporal_command_is_told(folder: Path, environment: dict[str, str]) -> None:
    # The same Python without the folder that `temporal` is in.
    bare = folder / "python"
    bare.symlink_to(Path(sys.executable).resolve())
    process = subprocess.Popen(
        [str(bare), str(folder / "main.py"), "Weather?"],
        env={**{k: v for k, v in environment.items() if k != "TEMPORAL_ADDRESS"}, "PATH": "", "PYTHONPATH": site()},
        stderr=subprocess.PIPE,
        text=True,
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Error: there is no `temporal` command: run `uv sync`, or name a server in TEMPORAL_ADDRESS" in err


def site() -> str:
    return os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
