"""Holds a conversation of hundreds of turns, and writes what each hundred of them took to conversation.md.

    uv run benchmarks/conversation.py              # a few minutes
    uv run benchmarks/conversation.py --quick      # half a minute, to see that it works

A turn is a short question with one model call. Every fifth has a tool call, and so two model calls. The dev server is
started as main.py starts it, with a database file; the model and the weather service answer at once, over real HTTP.
Three conversations take turns, ten at a time, so that whatever drifts on the machine hits all alike:

- this sample's, whose request to the model has all that was said, and so grows;
- the same with `keep_last()` of options/shortening.py;
- the floor, written by hand: the same signals and activities, and no transcript at all.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import run as benchmark
import vercel_ai_sdk as ai
from report import number, table
from run import FOLDER, Variant, WorkerProcess, say
from servers import dev_server
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import ResetStickyTaskQueueRequest
from temporalio.client import Client
from variant_conversation import KEPT

from app import demo, devserver
from options.conversation import CONVERSATION_QUERY, MEMO, SAY, ConversationView, Status, UserMessage
from options.gateway import GatewayModel
from plugin import DurableAgents

BLOCK = 10
EVENTS = 1000
"""From how many events on a run continues as new. By default it is about 4,000, and 500 turns would do so only once."""
WORKER = Variant("variant_conversation", "")
ANSWER = "The answer to this question is a sentence or two of plain text, as models like to write them. That is all."
TURN_SECONDS = 60
QUIET_SECONDS = 3
DIRECT_CALLS = 20
AGENT = {"query": "", "model": "test/model", "stay_open": True}
VARIANTS = {
    "this sample": ("AgentWorkflow", AGENT),
    f"keeps {KEPT} questions": ("ShortenedWorkflow", AGENT),
    "bare workflow": ("FloorConversation", 0),
}


# ── The model ────────────────────────────────────────────────────────────────────────────────────────────


class Gateway:
    """Answers at once, with a tool call where the question is for the number of people."""

    def __init__(self) -> None:
        self.request_bytes: list[int] = []

    async def reply(self, request: Request) -> Response:
        body = await request.json()
        self.request_bytes.append(len(await request.body()))
        last = body["prompt"][-1]
        asks = last["role"] == "user" and "people" in last["content"][0]["text"]
        return demo.stream(self._parts(len(body["prompt"]) if asks else None))

    @staticmethod
    async def _parts(call: int | None) -> AsyncIterator[demo.Part]:
        yield {"type": "stream-start", "warnings": []}
        if call is not None:
            for part in demo.tool_call(f"call_{call}", "get_population", {"city": "Tokyo"}):
                yield part
        else:
            yield {"type": "text-start", "id": "1"}
            yield {"type": "text-delta", "id": "1", "delta": ANSWER}
            yield {"type": "text-end", "id": "1"}
        yield demo.finish("stop" if call is None else "tool-calls", 100, 20)


# ── Measuring ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Turn:
    """One turn, as the history has it, from the signal on."""

    milliseconds: float = 0
    bytes: int = 0
    events: int = 0
    cpu_milliseconds: float = 0
    request_bytes: int = 0


@dataclass
class Talk:
    """A conversation, and what it took."""

    client: Client
    name: str
    turns: list[Turn] = field(default_factory=list)
    carried: list[int] = field(default_factory=list)
    """Bytes of the input of each run but the first."""
    run_events: list[int] = field(default_factory=list)
    """Events of each run."""
    timers: int = 0

    async def start(self) -> None:
        workflow, input = VARIANTS[self.name]
        self.handle = await self.client.start_workflow(
            workflow, input, id=f"conversation-{uuid.uuid4().hex[:8]}", task_queue=WORKER.module
        )
        self._events = self._follow()

    async def _follow(self) -> AsyncIterator[HistoryEvent]:
        """The events of all runs, as they come."""
        run_id: str | None = self.handle.first_execution_run_id
        while run_id:
            handle = self.client.get_workflow_handle(self.handle.id, run_id=run_id)
            self.run_events.append(0)
            async for event in handle.fetch_history_events(wait_new_event=True):
                self.run_events[-1] = event.event_id
                self.timers += event.HasField("timer_started_event_attributes")
                yield event
                run_id = event.workflow_execution_continued_as_new_event_attributes.new_execution_run_id

    async def take_turn(self, gateway: Gateway) -> None:
        number = len(self.turns) + 1
        question = "How many people live in Tokyo?" if number % 5 == 0 else "And what else is there to know of it?"
        message = UserMessage(id=uuid.uuid4().hex, text=f"{question} ({number})")
        turn, since, requests = Turn(), 0, len(gateway.request_bytes)
        await self.handle.signal(SAY, message)
        async with asyncio.timeout(TURN_SECONDS):
            async for event in self._events:
                if event.HasField("workflow_execution_started_event_attributes"):
                    if event.workflow_execution_started_event_attributes.continued_execution_run_id:
                        self.carried.append(event.ByteSize())
                    continue  # what is carried over is counted on its own
                if event.HasField("workflow_execution_continued_as_new_event_attributes"):
                    continue
                turn.bytes, turn.events = turn.bytes + event.ByteSize(), turn.events + 1
                if event.HasField("workflow_execution_signaled_event_attributes"):
                    since = event.event_time.ToNanoseconds()
                elif event.HasField("workflow_properties_modified_event_attributes"):
                    changed = event.workflow_properties_modified_event_attributes.upserted_memo.fields
                    status = (await self.client.data_converter.decode([changed[MEMO]], [Status]))[0]
                    if message.id in status.answered:
                        assert status.outcome == "answered", status
                        assert status.turn == number, status
                        break
        turn.milliseconds = (event.event_time.ToNanoseconds() - since) / 1e6
        turn.request_bytes = gateway.request_bytes[-1]
        assert len(gateway.request_bytes) - requests == (2 if number % 5 == 0 else 1), "a model call was made twice"
        self.turns.append(turn)


@dataclass
class Replay:
    """A worker that has never seen the conversation."""

    events: int
    seconds: float
    """Until it has answered a query."""
    turn_milliseconds: float
    """Of the next turn."""


@dataclass
class Results:
    talks: list[Talk]
    idle: list[int]
    """Events of each while nobody wrote."""
    replays: dict[str, Replay]
    direct: list[float]
    """Milliseconds of a call without Temporal, in the middle of the first part and of the last."""


async def measure(options: argparse.Namespace, folder: Path) -> Results:
    gateway = Gateway()
    with ExitStack() as running:
        url = running.enter_context(
            demo.serve([Route("/v3/ai/language-model", gateway.reply, methods=["POST"]), *demo.ROUTES[1:]])
        )
        os.environ.update(demo.environment(url))
        settings = ["--db-filename", str(folder / "temporal.db"), *devserver.FAST, *devserver.KILLABLE]
        often = f"limit.historyCount.suggestContinueAsNew={EVENTS}"
        server = dev_server(*settings, "--dynamic-config-value", often, "--log-level", "warn")
        _, address = running.enter_context(server)
        worker = start_worker(address, folder, running)
        client = await Client.connect(address, plugins=[DurableAgents()])
        for name in VARIANTS:  # so that the worker has loaded everything
            await (warm := Talk(client, name)).start()
            for _ in range(BLOCK):
                await warm.take_turn(gateway)
            await warm.handle.terminate()
        talks = [Talk(client, name) for name in VARIANTS]
        for talk in talks:
            await talk.start()
        for number in range(0, options.turns, BLOCK):
            for talk in talks:
                before = worker.used()["cpu"]
                for _ in range(BLOCK):
                    await talk.take_turn(gateway)
                for turn in talk.turns[-BLOCK:]:
                    turn.cpu_milliseconds = (worker.used()["cpu"] - before) * 1000 / BLOCK
            if (number + BLOCK) % 100 == 0:
                say(f"{number + BLOCK} turns: {[show_brief(talk) for talk in talks]}")
        idle = [await events_of(talk) for talk in talks]
        await asyncio.sleep(QUIET_SECONDS)
        idle = [await events_of(talk) - before for talk, before in zip(talks, idle, strict=True)]
        replays = {}
        for talk in talks[:2]:
            worker.stop()
            worker = start_worker(address, folder, running)
            await (warm := Talk(client, talk.name)).start()
            await warm.take_turn(gateway)
            replays[talk.name] = await come_back(talk, gateway)
        direct = [await without_temporal(turns) for turns in (options.turns // 10, options.turns * 9 // 10)]
        return Results(talks, idle, replays, direct)


def start_worker(address: str, folder: Path, running: ExitStack) -> WorkerProcess:
    worker = WorkerProcess(WORKER, address, folder)
    running.callback(worker.stop)
    worker.read()
    return worker


async def without_temporal(turns: int) -> float:
    """Milliseconds of one call of `GatewayModel` with a conversation of so many turns, in this process."""
    messages = []
    for i in range(turns):
        messages += ai.make_messages(user=f"And what else is there to know of it? ({i})")
        messages.append(ai.Message(role="assistant", parts=[ai.TextPart(text=ANSWER)]))
    messages += ai.make_messages(user="And what else is there to know of it?")
    times = []
    for _ in range(DIRECT_CALLS):
        since = time.perf_counter()
        async for _ in GatewayModel("test/model").stream(messages):
            pass
        times.append((time.perf_counter() - since) * 1000)
    return median(times)


async def events_of(talk: Talk) -> int:
    return (await talk.handle.describe()).history_length


async def come_back(talk: Talk, gateway: Gateway) -> Replay:
    """Look at the latest turn, which takes a replay of the current run, and take another one."""
    # Or the server would wait for the dead worker first, for the `STICKY_TIMEOUT` of plugin.py.
    execution = WorkflowExecution(workflow_id=talk.handle.id)
    reset = ResetStickyTaskQueueRequest(namespace=talk.client.namespace, execution=execution)
    await talk.client.workflow_service.reset_sticky_task_queue(reset)
    events, since = await events_of(talk), time.perf_counter()
    handle = talk.client.get_workflow_handle(talk.handle.id)
    view = await handle.query(CONVERSATION_QUERY, len(talk.turns), result_type=ConversationView)
    seconds = time.perf_counter() - since
    assert [turn.number for turn in view.turns] == [len(talk.turns)], view
    await talk.take_turn(gateway)
    return Replay(events, seconds, talk.turns.pop().milliseconds)


# ── The tables ───────────────────────────────────────────────────────────────────────────────────────────


def markdown(results: Results, command: str, minutes: float) -> str:
    talks = results.talks
    size = min(100, len(talks[0].turns) // 2)
    parts = [range(first, first + size) for first in range(0, len(talks[0].turns), size)]

    def by_part(figure: Callable[[Talk, range], float], show: Callable[[float], str] = number) -> str:
        head = ["turns", *(f"{part.start + 1} to {part.stop}" for part in parts), "last to first"]
        rows = []
        for talk in talks:
            figures = [figure(talk, part) for part in parts]
            rows.append([talk.name, *map(show, figures), f"{figures[-1] / figures[0]:.2f}"])
        return table(head, rows)

    def mean(get: Callable[[Turn], float]) -> Callable[[Talk, range], float]:
        return lambda talk, part: sum(get(talk.turns[i]) for i in part) / len(part)

    def middle(get: Callable[[Turn], float]) -> Callable[[Talk, range], float]:
        return lambda talk, part: median(get(talk.turns[i]) for i in part)

    runs = table(
        ["", "runs", "events of each", "carried over, KB", "timers", f"events in {QUIET_SECONDS} s without a message"],
        [
            [
                talk.name,
                str(len(talk.run_events)),
                ", ".join(f"{events:,}" for events in talk.run_events),
                ", ".join(number(size / 1000) for size in talk.carried),
                str(talk.timers),
                str(new),
            ]
            for talk, new in zip(talks, results.idle, strict=True)
        ],
    )
    back = table(
        ["", "events to replay", "seconds", "ms of the next turn"],
        [
            [name, f"{replay.events:,}", number(replay.seconds), number(replay.turn_milliseconds)]
            for name, replay in results.replays.items()
        ],
    )
    return f"""\
# A conversation of {len(talks[0].turns)} turns

Written by `{command}`, in {minutes:.0f} minutes.

- Work: in each turn a short question and a short answer by one model call; every fifth turn has a tool call, and so two
  model calls. The model and the service answer at once, over HTTP on loopback.
- Machine: {benchmark.machine()}, with everything on it.
- The dev server has the settings of main.py and a database file. Times are the server's, from the signal to the end of
  the turn. Three conversations take turns, {BLOCK} at a time.
- *keeps {KEPT} questions* has `shorten=keep_last({KEPT})`. *bare workflow* is the floor: the same signals and
  activities in a loop written by hand, without a transcript.

## History of a turn, bytes

Without what is carried over, which is below.

{by_part(mean(lambda turn: turn.bytes), "{:,.0f}".format)}
## Events of a turn

{by_part(mean(lambda turn: turn.events))}
## Time of a turn, ms

Medians.

{by_part(middle(lambda turn: turn.milliseconds))}
## Worker CPU of a turn, ms

{by_part(mean(lambda turn: turn.cpu_milliseconds))}
## Request to the model, KB

The last of each part. By `GatewayModel` alone, without Temporal, a call takes {number(results.direct[0])} ms in the
middle of the first part, and {number(results.direct[1])} ms in the middle of the last one.

{by_part(lambda talk, part: talk.turns[part[-1]].request_bytes / 1000)}
## Runs

{runs}
## Coming back on a worker that has never seen it

{back}"""


def show_brief(talk: Talk) -> str:
    return f"{median(turn.milliseconds for turn in talk.turns[-100:]):.1f} ms"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What a turn costs in a long conversation.")
    parser.add_argument("--turns", type=int, default=500, help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="40 turns")
    parser.add_argument("--output", type=Path, help="the file to write (default: conversation.md; if quick, a new one)")
    options = parser.parse_args()
    options.turns = 40 if options.quick else options.turns
    since = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as name:
        results = asyncio.run(measure(options, Path(name)))
    command = "uv run benchmarks/conversation.py" + (f" --turns {options.turns}" if options.turns != 500 else "")
    default = Path(tempfile.mkdtemp(prefix="benchmark-")) if options.quick else FOLDER
    output = options.output or default / "conversation.md"
    output.write_text(markdown(results, command, (time.monotonic() - since) / 60))
    say(f"Wrote {output}")
    sys.stderr.flush()
    os._exit(0)  # not sys.exit(), see the end of main.py
