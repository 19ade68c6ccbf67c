"""`ai.Hook`, the SDK's own way to ask a person: each workflow run has hooks of its own, and they outlive processes."""

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import hooked
import pytest
import vercel_ai_sdk as ai
from conftest import ROOT, OpenTerminal, RunMain, StartAgent, StartMain, copy_sample
from hooked import Permission
from processes import kill, lines_until
from standin import StandIn, hang, text
from standin import tools as calls
from temporalio.api.enums.v1 import EventType
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.worker import Replayer, Worker
from vercel_ai_sdk.core import hooks

from options.gateway import GatewayModel
from options.hooks import (
    CANCEL_HOOK,
    INVALID_RESOLUTION,
    RESOLVE_HOOK,
    HookCancellation,
    HookResolution,
    OpenHook,
    open_hooks,
)
from plugin import DurableAgents

type Handle = WorkflowHandle[Any, Any]
type Start = Callable[..., Awaitable[Handle]]

BOUND = 60

pytestmark = pytest.mark.usefixtures("alone")


def make_worker(client: Client, queue: str, **options: Any) -> Worker:
    return Worker(client, task_queue=queue, workflows=hooked.WORKFLOWS, **options)


@pytest.fixture(params=[1000, 0], ids=["cached", "replayed all the time"])
async def start(client: Client, standin: StandIn, request: pytest.FixtureRequest) -> AsyncIterator[Start]:
    """Start a workflow of hooked.py on one worker, which may replay the run for each workflow task. After the test, the
    histories of all of them are replayed."""
    queue = uuid.uuid4().hex
    handles: list[Handle] = []

    async def start(cls: type, argument: object = None) -> Handle:
        arguments = [] if argument is None else [argument]
        run: Any = cls.run  # type: ignore[attr-defined]  # every workflow has one
        handles.append(await client.start_workflow(run, args=arguments, id=uuid.uuid4().hex, task_queue=queue))
        return handles[-1]

    async with make_worker(client, queue, max_cached_workflows=request.param):
        yield start
    for handle in handles:
        await replay(client, handle)


async def replay(client: Client, handle: Handle) -> None:
    """Replay a run, and the runs that continue it as new."""
    replayer = Replayer(workflows=hooked.WORKFLOWS, plugins=[DurableAgents()])
    run_id: str | None = handle.first_execution_run_id
    while run_id:
        history = await client.get_workflow_handle(handle.id, run_id=run_id).fetch_history()
        await replayer.replay_workflow(history)
        assert not any(event.HasField("timer_started_event_attributes") for event in history.events)
        run_id = history.events[-1].workflow_execution_continued_as_new_event_attributes.new_execution_run_id


async def hooks_of(handle: Handle) -> dict[str, OpenHook]:
    """The hooks that are open, from where everybody can read them."""
    return open_hooks(await (await handle.describe()).memo())


async def until_open(handle: Handle, *labels: str) -> dict[str, OpenHook]:
    """Wait until exactly these hooks are open, also in a run that has continued as new."""
    async with asyncio.timeout(BOUND):
        while (found := await hooks_of(handle)).keys() != {*labels}:
            pass
    return found


async def resolve(handle: Handle, label: str, **resolution: object) -> None:
    async with asyncio.timeout(BOUND):
        await handle.execute_update(RESOLVE_HOOK, HookResolution(label=label, resolution=resolution))


async def cancel(handle: Handle, label: str, reason: str | None = None) -> None:
    async with asyncio.timeout(BOUND):
        await handle.execute_update(CANCEL_HOOK, HookCancellation(label=label, reason=reason))


async def result(handle: Handle) -> Any:
    async with asyncio.timeout(BOUND):
        return await handle.result()


async def refusal(update: Awaitable[None]) -> tuple[str | None, str]:
    """The type and the message of the error with which an update is refused."""
    with pytest.raises(WorkflowUpdateFailedError) as raised:
        await update
    assert isinstance(raised.value.cause, ApplicationError)
    return raised.value.cause.type, raised.value.cause.message


async def event_types(handle: Handle) -> list[int]:
    return [event.event_type for event in (await handle.fetch_history()).events]


def legs(*ids: str) -> Any:
    return calls(*((id, "count_legs", {"legs": []}) for id in ids))


# ── The loop ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_two_runs_with_one_label_get_each_its_own_answer(start: Start, standin: StandIn) -> None:
    standin.play(legs("tc-1"), legs("tc-1"), text("the answer"), text("the answer"))
    first, second = [await start(hooked.CarefulWorkflow, "go") for _ in range(2)]
    for run in (first, second):
        await until_open(run, "approve_tc-1")
    await resolve(second, "approve_tc-1", granted=False, reason="it is the second")
    assert dumped(await result(second))[2]["parts"][0]["resolution"] == {
        "granted": False,
        "reason": "it is the second",
    }
    await until_open(first, "approve_tc-1")
    await resolve(first, "approve_tc-1", granted=True)
    assert resolution_in(await result(first)) == {"granted": True, "reason": None}


def resolution_in(messages: list[ai.Message]) -> object:
    [resolved] = [part for message in messages for part in message.parts if "resolved" in part.model_dump().values()]
    assert isinstance(resolved, ai.HookPart)
    return resolved.resolution


def dumped(messages: list[ai.Message]) -> list[dict[str, Any]]:
    return [message.model_dump(exclude={"id"}) for message in messages]


def whole(messages: list[ai.Message]) -> list[ai.Message]:
    """The messages without those of an answer that is still being written."""
    return [message for message in messages if message.usage is not None or isinstance(message.parts[0], ai.HookPart)]


ANSWERS: list[tuple[str, dict[str, Any]]] = [
    ("approve_b", {"granted": True}),
    ("approve_c", {"granted": False, "reason": "too many legs"}),
    ("approve_a", {"granted": True}),
]


def answers_due(messages: list[ai.Message]) -> int:
    """How many of these answers are due, each when all is done that the one before has set off."""
    parts = [part for message in messages for part in message.parts]
    hooks_in = [(part.hook_id, part.status) for part in parts if isinstance(part, ai.HookPart)]
    done = [part.tool_call_id for part in parts if isinstance(part, ai.ToolPart) and part.status == "result"]
    return (
        [status for _, status in hooks_in].count("pending") // 3
        + ("b" in done)
        + (("approve_c", "resolved") in hooks_in)
    )


async def test_a_loop_with_hooks_gives_the_same_messages_with_and_without_temporal(
    start: Start, standin: StandIn
) -> None:
    turns = legs("a", "b", "c"), text("the answer")
    standin.play(*turns)
    plain: list[ai.Message] = []
    answers = iter(ANSWERS)
    given = 0
    async for message in ai.run(hooked.careful_agent, GatewayModel("test/model"), "go"):
        plain.append(message)
        while given < answers_due(plain):
            Permission.resolve(*next(answers))
            given += 1
    assert given == 3

    standin.play(*turns)
    run = await start(hooked.CarefulWorkflow, "go")
    assert [*await until_open(run, "approve_a", "approve_b", "approve_c")]
    for number, (label, resolution) in enumerate(ANSWERS):
        await resolve(run, label, **resolution)
        if number == 0:
            await until_done(run, activities=2)
    durable = await result(run)
    assert dumped(durable) == dumped(whole(plain))
    results = [result["output"]["value"] for result in standin.calls[-1].tool_results]
    assert [isinstance(result, dict) for result in results] == [True, True, False]
    assert results[2] == "not allowed: too many legs"
    assert standin.calls[1].tool_results == standin.calls[3].tool_results


async def until_done(handle: Handle, activities: int) -> None:
    """Wait until the workflow has taken in the results of so many activities."""
    done = 0
    async for event in handle.fetch_history_events(wait_new_event=True):
        done += event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED
        if done == activities and event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
            return


async def test_open_hooks_are_told_with_all_that_is_needed_to_answer_them(start: Start, standin: StandIn) -> None:
    standin.play(legs("a"), text("the answer"))
    run = await start(hooked.CarefulWorkflow, "go")
    [hook] = (await until_open(run, "approve_a")).values()
    assert (hook.label, hook.type) == ("approve_a", "Permit")
    assert hook.metadata == '{"tool":"count_legs","arguments":"{\\"legs\\": []}"}'
    assert hook.resolution_schema == hooked.Permit.model_json_schema()
    metadata = await run.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
    assert metadata.current_details.startswith("- waiting for a hook: Permit approve_a\n")
    await resolve(run, "approve_a", granted=True)
    await result(run)
    assert await hooks_of(run) == {}


# ── Many hooks ───────────────────────────────────────────────────────────────────────────────────────────


async def test_hooks_are_answered_in_any_order_and_cost_nothing_while_they_wait(start: Start) -> None:
    # `ai.ToolApproval` does not wait outside of workflows, and no model or tool was called before.
    labels = ["a", "b", "c d", "e" * 2000, "ü\n\"'"]
    run = await start(hooked.AskingWorkflow, hooked.Asked(labels=labels))
    await until_open(run, *labels)
    for label in reversed(labels):
        await resolve(run, label, granted=True, reason=label[:3])
    assert await result(run) == [f"True: {label[:3]}" for label in labels]


@pytest.mark.parametrize("start", [1000], ids=["cached"], indirect=True)
async def test_many_hooks_with_much_to_tell_are_no_problem(start: Start) -> None:
    labels = [str(number) for number in range(50)]
    run = await start(hooked.AskingWorkflow, hooked.Asked(labels=labels, metadata={"all": "天" * 10_000}))
    for label, hook in (await until_open(run, *labels)).items():
        assert 7_990 < len(hook.metadata.encode()) < 8_010
        assert hook.metadata.startswith('{"all":"天天')
        await resolve(run, label, granted=False)
    assert await result(run) == ["False: None"] * 50


async def test_two_hooks_with_one_label_at_once_fail_the_run(start: Start) -> None:
    run = await start(hooked.AskingWorkflow, hooked.Asked(labels=["twin", "twin"]))
    with pytest.raises(WorkflowFailureError) as raised:
        await result(run)
    assert "two hooks have the label 'twin' at once" in str(raised.value.cause)


async def test_a_loop_that_ends_takes_no_hook_of_another_loop_in_its_run(start: Start) -> None:
    run = await start(hooked.TwoLoopsWorkflow)
    await until_open(run, "same", "begin")
    await resolve(run, "same", granted=True, reason="the first")
    await resolve(run, "begin", granted=True)
    await until_open(run, "same", "last")
    await resolve(run, "last", granted=True)
    await until_open(run, "same")
    await resolve(run, "same", granted=True, reason="the second")
    assert await result(run) == ["the first", "the second"]


# ── Answers that are refused ─────────────────────────────────────────────────────────────────────────────


async def test_what_does_not_resolve_a_hook_is_refused_and_leaves_no_trace(start: Start) -> None:
    run = await start(hooked.AskingWorkflow, hooked.Asked(labels=["a", "b"]))
    await until_open(run, "a", "b")
    before = await event_types(run)
    assert await refusal(resolve(run, "c", granted=True)) == ("UnknownHook", "no hook 'c' waits to be resolved")
    assert await refusal(cancel(run, "c")) == ("UnknownHook", "no hook 'c' waits to be resolved")
    assert await refusal(resolve(run, "a")) == (
        INVALID_RESOLUTION,
        "that does not resolve hook 'a': granted: Field required",
    )
    kind, message = await refusal(resolve(run, "a", granted="perhaps", reason=[]))
    assert kind == INVALID_RESOLUTION
    assert message.startswith("that does not resolve hook 'a': granted: Input should be a valid boolean")
    assert "; reason: Input should be a valid string" in message
    assert await event_types(run) == before
    await resolve(run, "a", granted=True)
    already = ("AlreadyResolved", "hook 'a' is resolved already")
    assert await refusal(resolve(run, "a", granted=True)) == already
    assert await refusal(cancel(run, "a")) == already
    await resolve(run, "b", granted=True)
    await result(run)


async def test_an_answer_that_comes_before_its_hook_is_refused_and_can_be_sent_again(
    start: Start, standin: StandIn
) -> None:
    standin.play(hang(), text("go on"))
    run = await start(hooked.HookLaterWorkflow)
    await asyncio.to_thread(standin.wait_for, calls=1)
    early = await refusal(resolve(run, "later", granted=True))
    assert early == ("UnknownHook", "no hook 'later' waits to be resolved")
    await run.terminate()

    standin.play(text("go on"))
    run = await start(hooked.HookLaterWorkflow)
    await until_open(run, "later")
    await resolve(run, "later", granted=True, reason="now")
    assert await result(run) == "now"


async def test_of_two_answers_at_the_same_moment_the_second_is_refused(start: Start) -> None:
    run = await start(hooked.AskingWorkflow, hooked.Asked(labels=["a"]))
    await until_open(run, "a")
    outcomes = await asyncio.gather(
        resolve(run, "a", granted=True, reason="one"),
        resolve(run, "a", granted=True, reason="two"),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes].count(type(None)) == 1
    assert (await result(run))[0] in ("True: one", "True: two")


# ── Other ends ───────────────────────────────────────────────────────────────────────────────────────────


async def test_a_hook_is_cancelled(start: Start) -> None:
    run = await start(hooked.AskingWorkflow, hooked.Asked(labels=["a", "b"]))
    await until_open(run, "a", "b")
    await cancel(run, "a", "nobody is there")
    await until_open(run, "b")
    assert await refusal(resolve(run, "a", granted=True)) == ("UnknownHook", "no hook 'a' waits to be resolved")
    await cancel(run, "b")
    assert await result(run) == ["cancelled: nobody is there", "cancelled: "]


async def test_a_loop_that_does_not_catch_the_cancellation_ends_as_without_temporal(
    start: Start, standin: StandIn
) -> None:
    standin.play(legs("a"))
    plain: list[ai.Message] = []
    async for message in ai.run(hooked.careful_agent, GatewayModel("test/model"), "go"):
        plain.append(message)
        if '"pending","metadata"' in message.model_dump_json():
            await Permission.cancel("approve_a", "no")
    standin.play(legs("a"))
    run = await start(hooked.CarefulWorkflow, "go")
    await until_open(run, "approve_a")
    await cancel(run, "approve_a", "no")
    durable = await result(run)
    assert dumped(durable) == dumped(whole(plain))
    assert durable[-1].get_hook_part().status == "cancelled"


async def test_a_hook_that_the_loop_gives_up_is_no_longer_open(client: Client) -> None:
    queue = uuid.uuid4().hex
    async with make_worker(client, queue), asyncio.timeout(BOUND):
        asked = hooked.Asked(labels=["a"], patience=0.1)
        run = await client.start_workflow(hooked.AskingWorkflow.run, asked, id=queue, task_queue=queue)
        await until_done_modifying(run, 2)
        assert await hooks_of(run) == {}
        assert await refusal(resolve(run, "a", granted=True)) == ("UnknownHook", "no hook 'a' waits to be resolved")
        await run.signal(hooked.AskingWorkflow.go_on)
        await result(run)


async def until_done_modifying(handle: Handle, times: int) -> None:
    async for event in handle.fetch_history_events(wait_new_event=True):
        times -= event.event_type == EventType.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED
        if not times:
            return


async def test_a_signal_of_the_workflow_itself_may_resolve_a_hook(start: Start) -> None:
    first, second = [await start(hooked.AskingWorkflow, hooked.Asked(labels=["same"])) for _ in range(2)]
    for run in (first, second):
        await until_open(run, "same")
    await second.signal(hooked.AskingWorkflow.resolve, "same")
    assert await result(second) == ["True: by signal"]
    await until_open(first, "same")
    await resolve(first, "same", granted=False)
    await result(first)


async def test_a_resolution_from_before_the_hook_is_for_this_run_only(start: Start) -> None:
    runs = [await start(hooked.EarlyWorkflow, reason) for reason in ("one", "two")]
    assert [await result(run) for run in runs] == ["one", "two"]
    assert EventType.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED not in await event_types(runs[0])


# ── Restarts ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs continue as new after a turn or two."""
    monkeypatch.setattr("options.continuing.HISTORY_LIMIT", 10)


@pytest.mark.usefixtures("soon")
async def test_after_continuing_as_new_only_what_is_open_is_asked_again(
    client: Client, start: Start, standin: StandIn
) -> None:
    standin.play(*[legs(str(turn)) for turn in range(4)], text("done"))
    run = await start(hooked.LongWorkflow, hooked.LongRequest(query="go"))
    await until_open(run, "begin", "end")
    await resolve(run, "begin", granted=True, reason="at the beginning")
    for turn in range(4):
        await until_open(run, "turn", "end")
        await resolve(run, "turn", amount=turn + 1)
    await until_open(run, "end")
    assert await refusal(resolve(run, "begin", granted=True)) == ("AlreadyResolved", "hook 'begin' is resolved already")
    await resolve(run, "end", granted=True, reason="in the end")
    assert await result(run) == ["at the beginning", 1, 2, 3, 4, "in the end"]
    assert len(standin.calls) == 5
    assert (await client.get_workflow_handle(run.id).describe()).run_id != run.first_execution_run_id


# ── The process ──────────────────────────────────────────────────────────────────────────────────────────


async def test_outside_of_workflows_hooks_are_as_they_were(start: Start) -> None:
    run = await start(hooked.AskingWorkflow, hooked.Asked(labels=["same"]))
    await until_open(run, "same")
    reasons: list[str | None] = []

    async def loop() -> None:
        reasons.append((await Permission.create("same")).reason)
        reasons.append((await Permission.create("other")).reason)

    async def serverless() -> None:
        await hooked.ToolApproval.create("same")
        raise AssertionError

    cut = ai.run(serverless)
    statuses = [message.parts[0].status async for message in cut]  # type: ignore[union-attr]  # all are of hooks
    assert (statuses, [*cut.pending_hooks]) == (["pending"], ["same"])
    Permission.resolve("same", {"granted": True, "reason": "early"})
    async for message in ai.run(loop):
        if '"status":"pending"' in message.model_dump_json():
            assert "same" not in hooks._live_hooks
            Permission.resolve("other", {"granted": True, "reason": "live"})
    assert reasons == ["early", "live"]
    assert [*hooks._live_hooks, *hooks._pending_resolutions] == []
    await resolve(run, "same", granted=True)
    assert await result(run) == ["True: None"]


def test_the_private_names_of_the_sdk_are_still_there() -> None:
    """Fails when an update of the SDK moves what options/hooks.py has to touch (`private:`)."""
    names = {"_live_hooks", "_pending_resolutions"}
    assert names <= {*ai.Hook.resolve.__func__.__code__.co_names}  # type: ignore[attr-defined]  # of a class method
    assert hooked.Permission._schema is hooked.Permit
    assert ai.Runtime()._hook_replay == {}


# ── In a terminal, and from anywhere else ────────────────────────────────────────────────────────────────

CALLS = "        await asyncio.gather(*(ai.execute_tool(call, message) for call in result.tool_calls))\n"
CHANGES = {
    "    import vercel_ai_sdk as ai\n": "    import pydantic\n    import vercel_ai_sdk as ai\n",
    "    from tools import": "    from options.hooks import temporal_hooks\n    from tools import",
    CALLS: """\
        await asyncio.gather(*(ask_and_call(call, message) for call in result.tool_calls))


temporal_hooks()


@ai.hook
class Permit(pydantic.BaseModel):
    granted: bool
    reason: str | None = None


@ai.hook
class Budget(pydantic.BaseModel):
    amount: int = pydantic.Field(gt=0)
    currency: str = "EUR"


async def ask_and_call(call: ai.ToolPart, message: ai.Message) -> None:
    if call.tool_name == "get_population":
        budget = await Budget.create("budget", metadata={"tool": call.tool_name})
        call.set_result({"population": budget.amount, "currency": budget.currency})
        return
    permit = await Permit.create(f"call {call.tool_call_id}", metadata={"arguments": call.tool_args})
    if permit.granted:
        await ai.execute_tool(call, message)
    else:
        call.set_error(f"refused: {permit.reason}")
""",
}

TOKYO, PARIS = ("1", "get_weather", {"city": "Tokyo"}), ("2", "get_population", {"city": "Paris"})
ASKED_TOKYO = '? hook call 1 (Permit) waits for an answer: {"arguments":"{\\"city\\": \\"Tokyo\\"}"}'
ASKED_PARIS = '? hook budget (Budget) waits for an answer: {"tool":"get_population"}'
PROMPT_TOKYO = "granted? (y or n, and the reason)"
PROMPT_PARIS = 'Answer with JSON, {"amount": integer, "currency"?: string}:'


@pytest.fixture
def sample(tmp_path: Path, standin: StandIn, environment: dict[str, str]) -> dict[str, Any]:
    """The sample with hooks in the agent of workflow.py, for `start_main` and `open_terminal`."""
    copy_sample(tmp_path)
    source = (tmp_path / "workflow.py").read_text()
    for old, new in CHANGES.items():
        assert source.count(old) == 1
        source = source.replace(old, new)
    (tmp_path / "workflow.py").write_text(source)
    env = {**standin.environment, "TEMPORAL_ADDRESS": environment["TEMPORAL_ADDRESS"]}
    return {"folder": tmp_path, "env": env}


def told(standin: StandIn) -> list[Any]:
    """What the model was told of its tool calls, in its latest request."""
    return [result["output"]["value"] for result in standin.calls[-1].tool_results]


def test_hooks_are_asked_at_the_terminal_by_their_schema(
    open_terminal: OpenTerminal, standin: StandIn, sample: dict[str, Any]
) -> None:
    standin.play(calls(TOKYO, PARIS), text("the answer"))
    terminal = open_terminal("Weather?", "--model", "m", size=(120, 24), **sample)
    terminal.wait_for(ASKED_TOKYO, PROMPT_TOKYO, gone=["budget"])
    terminal.type("perhaps\n")
    terminal.wait_for(f"{PROMPT_TOKYO} perhaps\n    {PROMPT_TOKYO}")
    terminal.type("n it is too far away\n")
    terminal.wait_for(ASKED_PARIS, PROMPT_PARIS)
    terminal.type("y\n")
    terminal.wait_for("that is no JSON: ")
    terminal.type("12\n")
    terminal.wait_for("that is no JSON object")
    terminal.type('{"amount": -1}\n')
    terminal.wait_for("! that does not resolve hook 'budget': amount: Input should be greater than 0")
    assert len(standin.calls) == 1
    terminal.type('{"amount": 12, "currency": "JPY"}\n')
    assert terminal.finish()[0] == 0
    assert told(standin) == ["refused: it is too far away", {"population": 12, "currency": "JPY"}]
    lines = [line.strip() for line in terminal.scrolled if line]
    assert "the answer" in lines
    assert sum(PROMPT_PARIS in line for line in lines) == 4


async def test_a_hook_outlives_the_process_and_is_answered_from_elsewhere(
    client: Client, start_main: StartMain, open_terminal: OpenTerminal, standin: StandIn, sample: dict[str, Any]
) -> None:
    wait, name = asyncio.to_thread, uuid.uuid4().hex
    standin.play(calls(TOKYO, PARIS), text("the answer"))
    victim = start_main("Weather?", "--id", name, "--model", "m", **sample)
    commands = [line.strip() for line in await wait(lines_until, victim, "--resolve") if " --id " in line]
    start_of_all = f"uv run python main.py --id {name}"
    form = """'{"amount": integer, "currency"?: string}'"""
    assert commands == [
        f"{start_of_all} --yes 'call 1'",
        f"""{start_of_all} --no 'call 1' --reason "…\"""",
        f"{start_of_all} --resolve budget {form}",
    ]
    kill(victim)
    # No worker is alive.
    found = await until_open(client.get_workflow_handle(name), "call 1", "budget")
    assert found["budget"].metadata == '{"tool":"get_population"}'

    async def main(*arguments: str) -> tuple[int, str]:
        process = start_main(*arguments, **sample)
        out, err = await wait(process.communicate, timeout=BOUND)
        assert out == ""
        return process.returncode, err.splitlines()[0]

    answers = ("--id", name)
    why = "that is no JSON: expected value at line 1 column 1"
    expected = f"hook 'budget' takes another answer ({why}): {start_of_all} --resolve budget {form}"
    assert await main(*answers, "--yes", "budget") == (1, f"Error: {expected}")
    unfit = "that does not resolve hook 'budget': amount: Field required"
    assert await main(*answers, "--resolve", "budget", "{}") == (1, f"Error: {unfit}")
    nothing = f"no hook 'nonsense' waits in run '{name}'"
    assert await main(*answers, "--resolve", "nonsense", "{}") == (1, f"Error: {nothing}")
    assert await main(*answers, "--resolve", "budget", '{"amount": 3}') == (0, "Resolved: hook budget")
    terminal = open_terminal("--id", name, size=(120, 24), **sample)
    await wait(terminal.wait_for, ASKED_TOKYO, PROMPT_TOKYO, gone=["budget"])
    assert await main(*answers, "--no", "call 1", "--reason", "it rains") == (0, "Resolved: hook call 1")
    assert (await wait(terminal.finish))[0] == 0
    assert "It was answered elsewhere, or too late." in "\n".join(terminal.scrolled)
    assert told(standin) == ["refused: it rains", {"population": 3, "currency": "EUR"}]
    assert len(standin.calls) == 2
    over = f"run '{name}' is over: nothing waits for an answer in it"
    assert await main(*answers, "--yes", "call 1") == (1, f"Error: {over}")


async def test_an_agent_without_hooks_says_so(
    client: Client, run_main: RunMain, start_agent: StartAgent, standin: StandIn
) -> None:
    standin.play(hang())
    run = await start_agent()
    result = await asyncio.to_thread(run_main, "--no-worker", "--id", run.id, "--resolve", "a", "{}")
    assert (result.returncode, result.stderr) == (1, f"Error: no hook 'a' waits in run '{run.id}'\n")
    await run.terminate()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--id", "i", "--resolve", "a"], "argument --resolve: expected 2 arguments"),
        (["--id", "i", "--resolve", "a", "[]"], "--resolve takes the label of a hook and a JSON object"),
        (["--id", "i", "--resolve", "a", "{"], "--resolve takes the label of a hook and a JSON object"),
        (["--id", "i", "--resolve", " ", "{}"], "--resolve is empty"),
        (["--id", "i", "--resolve", "a", "{}", "--yes", "a"], "argument --yes: not allowed with argument --resolve"),
        (
            ["--resolve", "a", "{}"],
            "--yes, --no and --resolve answer a question of a run: they take its --id and no query",
        ),
    ],
)
def test_wrong_usage_is_answered_with_one_line(arguments: list[str], problem: str) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *arguments], capture_output=True, text=True, timeout=20, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == f"main.py: error: {problem}"


# ── The example ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_example_asks_and_is_answered(environment: dict[str, str], tmp_path: Path) -> None:
    script = ROOT / "examples" / "hook.py"
    process = [sys.executable, str(script)]
    result = subprocess.run(
        process, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=BOUND, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    *asked, tokyo, paris = result.stdout.splitlines()
    assert sorted(line.partition(" {")[0] for line in asked) == [f"ToolApproval approve_call_{n}" for n in (1, 2)]
    assert tokyo == "Tokyo: 18.4 °C, partly cloudy, wind 12.1 km/h."
    assert paris == "Paris: a person did not allow it: only Tokyo is allowed."
