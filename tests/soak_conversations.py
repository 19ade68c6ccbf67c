"""Conversations for the soak: several messages, sent in several ways, while workers and servers are killed.

Each message has a mark of its own. So a message that is lost, read twice or out of order shows in what the model was
asked, and in the transcript that the conversation has in the end.
"""

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from standin import Call, StandIn
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from app import command_line
from app.demo import CITIES
from options.conversation import ConversationState, ConversationView, TurnResult, UserMessage
from options.conversation_client import Handle, ask, end, first_memo, say, stop, turn_under_way, view
from workflow import AgentWorkflow
from workflow_types import AgentRequest

WAYS = ["asked", "signalled twice", "sent by main.py", "sent by main.py"]
GONE = (
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.CANCELLED,
    RPCStatusCode.UNKNOWN,
    RPCStatusCode.DEADLINE_EXCEEDED,
)
"""How a call fails while there is no server, or no worker for a query."""


@dataclass
class Sent:
    """A message of the plan."""

    text: str
    city: str
    way: str
    steers: bool
    is_stopped: bool
    """Whether its turn is to be stopped."""
    pauses: tuple[float, float]
    """Seconds before it is sent, and from then on to the stop."""
    result: TurnResult | None = None

    @property
    def mark(self) -> str:
        return mark_in(self.text)

    @property
    def fact(self) -> str:
        """What the answer has to say."""
        return f"{self.city}: population {CITIES[self.city][4]:,}."


def mark_in(text: str) -> str:
    return match[1] if (match := re.search(r"\[(.*)\]", text)) else ""


@dataclass
class Dialogue:
    """A conversation, and the worker process that serves it."""

    id: str
    stay_open: bool
    sent: list[Sent]
    folder: Path
    client: Client
    environment: dict[str, str]
    process: asyncio.subprocess.Process | None = None
    """The worker."""
    is_over: bool = False
    errors: list[str] = field(default_factory=list)
    seen: ConversationView | None = None

    @classmethod
    def planned(cls, plan: random.Random, id: str, cities: list[str], **options: Any) -> "Dialogue":
        """With a message for each city. The first and the last one are asked here."""
        sent = [
            Sent(
                text=f"How many people live in {city}? [{id}/{i}]",
                city=city,
                way=plan.choice(WAYS) if 0 < i < len(cities) - 1 else "asked",
                steers=plan.random() < 0.5,
                is_stopped=i < len(cities) - 1 and plan.random() < 0.2,
                pauses=(plan.uniform(0, 2), plan.uniform(0, 1.5)),
            )
            for i, city in enumerate(cities)
        ]
        return cls(id=id, stay_open=plan.random() < 0.5, sent=sent, **options)

    @property
    def handle(self) -> WorkflowHandle[Any, Any]:
        return self.client.get_workflow_handle(self.id)

    # ── Sending ──

    async def converse(self) -> None:
        """Send the messages and wait for the answers, whatever is killed meanwhile."""
        worker, answers = asyncio.create_task(self._serve()), list[asyncio.Task[None]]()
        try:
            # The last one comes after all others that were only signalled.
            for message in self.sent:
                await asyncio.sleep(message.pauses[0])
                task = await self._send(message)
                answers += [task] if task else []
                if message.is_stopped:
                    await asyncio.sleep(message.pauses[1])
                    with suppress(RPCError):  # the run is over
                        await persistently(lambda: stop(self.handle))
            await asyncio.gather(*answers)
            self.seen = await persistently(lambda: view(self.handle))
            if self.stay_open:
                await persistently(lambda: end(self.handle))
            await persistently(self.handle.result)
            self.is_over = True
        finally:
            for task in (worker, *answers):
                task.cancel()
            await asyncio.gather(worker, *answers, return_exceptions=True)

    async def _send(self, sent: Sent) -> asyncio.Task[None] | None:
        """Returns when the server has the message. The task ends with the answer."""
        if sent.way == "sent by main.py":
            process = None
            while process is None and not await persistently(partial(self._arrived, sent.mark)):
                process = await self._sent_by_main(sent)
            return asyncio.create_task(self._finish(process, sent)) if process else None
        steers = await persistently(self._turn_under_way) if sent.steers else None
        message = UserMessage(id=sent.mark, text=sent.text, steers=steers)
        for _ in range(2 if sent.way == "signalled twice" else 1):
            await persistently(lambda: say(self.client, self.id, message, self._starter(message)))
        return asyncio.create_task(self._answer(sent, message)) if sent.way == "asked" else None

    async def _sent_by_main(self, sent: Sent) -> asyncio.subprocess.Process | None:
        """None if the process ended before it said that the message is sent."""
        arguments = ["--no-worker", "--id", self.id, sent.text]
        process = await self._main(*arguments)
        assert process.stderr is not None
        lines = []
        while line := (await process.stderr.readline()).decode():
            lines.append(line)
            if line.startswith(f"Run {self.id}"):
                return process
        if await process.wait() != -signal.SIGKILL:
            self.errors.append(f"{arguments}: {''.join(lines)}")
        return None

    async def _finish(self, process: asyncio.subprocess.Process, sent: Sent) -> None:
        try:
            out, said = (each.decode() for each in await process.communicate())
        finally:
            if process.returncode is None:
                process.kill()
        right = sent.fact in out if process.returncode == 0 else "somebody stopped this answer" in said
        if not right:
            self.errors.append(f"{sent.text}: main.py ended with {process.returncode}: {out}{said[-500:]}")

    async def _answer(self, sent: Sent, message: UserMessage) -> None:
        sent.result = await persistently(lambda: ask(self.client, self.id, message, self._starter(message)))

    def _starter(self, message: UserMessage) -> Callable[[ConversationState | None], Awaitable[Handle]]:
        async def start(state: ConversationState | None) -> Handle:
            request = AgentRequest(
                query=message.text,
                query_id=message.id,
                model=command_line.DEFAULT_MODEL,
                stay_open=self.stay_open,
                conversation=state,
            )
            return await self.client.start_workflow(
                AgentWorkflow.run,
                request,
                id=self.id,
                task_queue=command_line.TASK_QUEUE,
                memo=await first_memo(None, message.text, state),
            )

        return start

    async def _turn_under_way(self) -> int | None:
        try:
            return await turn_under_way(self.handle)
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            return None

    async def _arrived(self, mark: str) -> bool:
        """Whether the server has a message with this mark, in any run."""
        return any(f"[{mark}]".encode() in event.SerializeToString() for event in chain(*await self.histories()))

    async def histories(self) -> list[Sequence[HistoryEvent]]:
        """The events of each run of the conversation."""
        found = list[Sequence[HistoryEvent]]()
        async for execution in self.client.list_workflows(f'WorkflowId = "{self.id}"'):
            run = self.client.get_workflow_handle(self.id, run_id=execution.run_id)
            found.append((await run.fetch_history()).events)
        return found

    # ── The worker ──

    async def _serve(self) -> None:
        while True:
            self.process = await self._main("--worker")
            try:
                _, said = await self.process.communicate()
            finally:
                if self.process.returncode is None:
                    self.process.terminate()
                    await self.process.communicate()
            if self.process.returncode != -signal.SIGKILL:
                self.errors.append(f"the worker ended with {self.process.returncode}: {said.decode()[-500:]}")

    async def _main(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *[sys.executable, str(self.folder / "main.py"), *arguments],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    # ── Checks ──

    def problems(self, standin: StandIn) -> list[str]:
        """What is wrong with the transcript, once the conversation is over."""
        assert self.seen is not None
        found = list[str]()
        said = [
            [mark_in(message.text) for message in turn.messages if message.role == "user"] for turn in self.seen.turns
        ]
        expected = [sent.mark for sent in self.sent]
        read = Counter(mark for turn in said for mark in turn)
        for mark in expected:
            if read[mark] != 1:
                found.append(f"message {mark} is in the transcript {read[mark]} times")
        if set(read) - set(expected):
            found.append(f"nobody sent {set(read) - set(expected)}")
        for what, marks in [("questions", [turn[0] for turn in said]), *(("steering", turn[1:]) for turn in said)]:
            if marks != sorted(marks, key=expected.index):
                found.append(f"{what} out of order: {marks}")
        if [turn.number for turn in self.seen.turns] != list(range(1, len(said) + 1)):
            found.append(f"turns are numbered {[turn.number for turn in self.seen.turns]}")
        found += [f"turn {turn.number} failed: {turn.problem}" for turn in self.seen.turns if turn.outcome == "failed"]
        for turn, marks in zip(self.seen.turns, said, strict=True):
            for sent in [sent for sent in self.sent if sent.mark in marks]:
                got, answer = sent.result, turn.messages[-1].text
                if turn.outcome == "answered" and sent.fact not in answer:
                    found.append(f"message {sent.mark}: no {sent.fact!r} in {answer!r}")
                if got and (got.outcome != turn.outcome or (got.outcome == "answered" and got.text != answer)):
                    found.append(f"message {sent.mark} got {got}, and turn {turn.number} is {turn.outcome} {answer!r}")
        prompt = self.calls(standin)[-1].prompt
        asked = [part["text"] for message in prompt if message["role"] == "user" for part in message["content"]]
        if list(map(mark_in, asked)) != [mark for turn in said for mark in turn]:
            found.append(f"the last model call has {asked}")
        return found + self.errors

    def figures(self) -> Counter[str]:
        turns = self.seen.turns if self.seen else []
        return Counter(
            {
                "conversations": 1,
                "messages": len(self.sent),
                "turns": len(turns),
                "steering messages": sum(m.role == "user" for turn in turns for m in turn.messages) - len(turns),
                "stopped turns": sum(turn.outcome == "stopped" for turn in turns),
            }
        )

    async def count(self, standin: StandIn) -> tuple[int, int]:
        """How many calls were made again after they were done, and how many because they were in flight."""
        prompts = Counter(json.dumps(call.prompt) for call in self.calls(standin))
        lookups = Counter(city for city in standin.lookups if city in [sent.city for sent in self.sent])
        scheduled, done = Counter[str](), Counter[str]()
        attempts, is_known = 0, True
        for events in await self.histories():
            names, started = dict[int, str](), set[int]()
            for event in events:
                if event.HasField("activity_task_scheduled_event_attributes"):
                    is_model = (
                        event.activity_task_scheduled_event_attributes.activity_type.name == "llm_stream_activity"
                    )
                    names[event.event_id] = "model" if is_model else json.loads(event.user_metadata.summary.data)
                    scheduled[names[event.event_id]] += 1
                elif event.HasField("activity_task_started_event_attributes"):
                    attempts += event.activity_task_started_event_attributes.attempt
                    started.add(event.activity_task_started_event_attributes.scheduled_event_id)
                elif event.HasField("activity_task_completed_event_attributes"):
                    done[names[event.activity_task_completed_event_attributes.scheduled_event_id]] += 1
            # A call that was cancelled between two attempts does not tell how many it had, nor does a tool call that a
            # stop has cancelled, and that was still open when the run was over.
            is_known = is_known and started == set(names)
        # Each call that was done had a prompt of its own, since the conversation only grows.
        twice = max(0, done.pop("model") - len(prompts)) + sum(number - 1 for number in done.values())
        requests = prompts.total() + lookups.total()
        if is_known:
            twice += max(0, requests - attempts)
        tools = scheduled.total() - scheduled["model"]
        return twice, prompts.total() - len(prompts) + max(0, lookups.total() - tools)

    def calls(self, standin: StandIn) -> list[Call]:
        return [call for call in standin.calls if mark_in(call.query).startswith(f"{self.id}/")]


async def persistently[T](call: Callable[[], Awaitable[T]]) -> T:
    """Await a call again and again while the server is gone, or the worker that a query needs."""
    while True:
        try:
            return await call()
        except RPCError as error:
            if error.status not in GONE:
                raise
            await asyncio.sleep(0.5)
