"""Shows a run to a person: each call as it starts and ends, failed attempts, the text as it comes, the questions."""

import asyncio
import os
import select
import shlex
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count

from pydantic_core import to_json
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.segment import SegmentLines
from rich.spinner import Spinner
from rich.text import Text
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowFailureError, WorkflowQueryFailedError
from temporalio.service import RPCError
from vercel_ai_sdk import Usage

from app.command_line import Options
from app.output import COMMAND, UserError, in_color, markdown, one_line, print_answer, printable, say, say_error, title
from app.questions import Answer, NoAnswer, Question
from app.runs import (
    Handle,
    UnfitAnswer,
    has_worker,
    questions_of,
    result_of,
    send,
    status_in,
    turn_failed,
    unreadable,
    why_failed,
)
from app.server import Server, patiently
from bridge.watching import WATCH_AGAIN_SECONDS, watch
from bridge.wire import STOPPED, LiveText, ModelReply, ToolReply, text_of
from options.conversation import MEMO, Status, last_text_in
from workflow import AgentAnswer, AgentRequest

CUT_SHORT = {STOPPED: "a stop", "length": "the model's length limit", "content-filter": "a content filter"}


async def show_run(server: Server, handle: Handle, state: str, message: str | None, options: Options) -> None:
    """Name a run, show every step until a message is answered, and print the answer.

    Args:
        server: Where the run is.
        handle: The run.
        state: What it is doing, in words.
        message: The id of the message. None: until the run is over, or waits for a message.
        options: Of the command line.

    Raises:
        UserError: It failed, or was stopped, or cannot be read, or the server is gone for good.
        RPCError: The server refuses.
    """
    say(f"Run {handle.id} (process {os.getpid()}){state}")
    if page := server.page(handle.id):
        say(f"    {page}")
    if options.no_worker and not await has_worker(server.client, options.task_queue):
        say(f"No worker serves the task queue {options.task_queue}; waiting for one.")
    progress = Progress(server.client, handle, message, options.debug)
    try:
        try:
            summary = await progress.follow()
        except (UserError, RPCError):
            raise
        except Exception as error:  # the answer is wanted all the same
            say_error(error, options.debug)
            summary = "The progress display failed; the run went on without it."
        answer = progress.answer or await result_of(handle)
    except WorkflowFailureError as error:
        raise UserError(why_failed(error)) from error
    except asyncio.CancelledError:
        say(f"Interrupted. The run itself goes on; follow it with: {COMMAND} --id {shlex.quote(handle.id)}")
        raise
    is_stopped = answer.finish_reason == STOPPED
    if cut := CUT_SHORT.get(answer.finish_reason or ""):
        say(f"The answer was cut short by {cut}.")
    if answer.text or not is_stopped:
        print_answer(answer.text)
    say(summary)
    if is_stopped:
        command = f'{COMMAND} --id {shlex.quote(handle.id)} "…"'
        raise UserError(f"somebody stopped this answer; the conversation goes on with: {command}")
    if server.is_ours:
        say(f"To look back: {COMMAND} --worker, and open the page above. Ctrl-C stops it.")


MARKS = {"<": ("✓", "green"), "x": ("✗", "red"), "!": ("!", "yellow"), "?": ("?", "cyan")}
"""Sign and color in a terminal, by the mark of the plain line."""

ENDINGS = {
    "activity_task_completed_event_attributes": ("<", "done in"),
    "activity_task_failed_event_attributes": ("x", "FAILED after"),
    "activity_task_timed_out_event_attributes": ("x", "TIMED OUT after"),
    "activity_task_canceled_event_attributes": ("x", "cancelled after"),
}
"""The end of a call: the mark of its line, and its words."""


@dataclass
class Step:
    """A model or tool call that is under way."""

    activity_id: str
    summary: str
    of_model: bool
    since: datetime
    attempt: int = 1
    said: tuple[tuple[str, str], ...] = ()
    """The words of the model so far, with the style of each text."""


class Screen:
    """Standard error: plain lines, or, in a terminal, lines with the calls under way below them."""

    def __init__(self) -> None:
        plain = not in_color(sys.stderr)
        self.console = Console(stderr=True, force_terminal=not plain, quiet=plain)
        self._spinner = Spinner("dots")
        self.live = Live(self, console=self.console, auto_refresh=False)
        self.can_ask = sys.platform != "win32" and all(s is not None and s.isatty() for s in (sys.stdin, sys.stderr))
        self.steps: dict[int, Step] = {}  # under way, by the event that began them

    def say(self, mark: str, text: str) -> None:
        if self.console.quiet:
            say(f"  {mark} {text}")
        elif mark != ">":  # calls under way stand below
            sign, style = MARKS[mark]
            line = Text.assemble((f"  {sign} ", style), printable(text))
            if mark == "<":  # its end counts; an error or a question stands there whole
                line.truncate(self.console.width, overflow="ellipsis")
            self.console.print(line, soft_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self.live.is_started:  # nothing of it stays there
            return
        width, height = options.size
        spinner = self._spinner.render(time.monotonic())
        steps = list(self.steps.values())[: max(1, height - 3)]
        for step in steps:
            seconds = f" {(datetime.now(UTC) - step.since).total_seconds():.0f} s"
            row = Text(f"  {spinner} {printable(step.summary)}")
            row.truncate(max(1, width - len(seconds)), overflow="ellipsis")
            yield row.append(seconds)
        # The end of the text counts, and rendering all of a long text takes too long to be live.
        texts = [markdown(text[-2 * height * width :], style) for step in steps for text, style in step.said]
        lines = console.render_lines(Group(*texts), options, pad=False)
        yield SegmentLines(lines[-max(1, height - len(steps) - 2) :], new_lines=True)


class Progress:
    """Follows a run and shows its steps: each call as it starts and ends, failed attempts, the text as it comes.

    Args:
        client: For the server.
        handle: The run.
        message: The id of the message whose answer is wanted. None: until the run is over, or waits for a message.
        debug: Whether to show tracebacks.
    """

    def __init__(self, client: Client, handle: Handle, message: str | None, debug: bool) -> None:
        self.answer: AgentAnswer | None = None
        """If the run goes on after the answer. Otherwise the answer is the run's result."""
        self._debug = debug
        self._client = client
        self._handle = handle
        self._message = message
        self._status = Status()
        """What the run was doing, as far as its history has been read."""
        self._first_turn = 0
        """Earlier turns are not shown."""
        self._last = AgentAnswer(text="")
        """What the model said last, in this turn."""
        self._screen = Screen()
        self._began = self._ended = datetime.now(UTC)
        self._calls = {"model": 0, "tool": 0}
        self._usage = Usage()

    async def follow(self) -> str:
        """Show every step until the end, and return a summary. UserError: the turn failed, or cannot be read."""
        self._first_turn = (await status_in(await patiently(self._handle.describe))).turn
        with self._screen.live:
            live = [asyncio.create_task(part) for part in (self._follow_pending(), self._keep_watched())]
            try:
                await self._follow_history()
            finally:
                for task in live:
                    task.cancel()
                outcomes = await asyncio.gather(*live, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, Exception):  # in the live part; the steps are all there
                    say_error(outcome, self._debug)
        seconds = (self._ended - self._began).total_seconds()
        calls = ", ".join(f"{number:,} {kind} call{'s' * (number != 1)}" for kind, number in self._calls.items())
        return f"{calls}, {_tokens(self._usage)}, {seconds:.1f} s"

    async def _follow_history(self) -> None:
        run_id: str | None = None  # the latest
        while (
            run_id != "" and self.answer is None
        ):  # a run that continues as new has a history of its own for each part
            self._screen.steps.clear()
            handle = self._client.get_workflow_handle(self._handle.id, run_id=run_id)
            # A long poll: the server answers when there is something new.
            events = handle.fetch_history_events(wait_new_event=True)
            while self.answer is None and (event := await patiently(partial(anext, events, None))):
                await self._show_event(event)
                run_id = event.workflow_execution_continued_as_new_event_attributes.new_execution_run_id

    async def _show_event(self, event: HistoryEvent) -> None:
        now = self._ended = event.event_time.ToDatetime(UTC)
        match kind := event.WhichOneof("attributes"):
            case "workflow_execution_started_event_attributes":
                started = event.workflow_execution_started_event_attributes
                self._began = min(self._began, now)
                request = await self._decode(started.input.payloads[0], AgentRequest)
                if carried := request.carried:
                    self._calls = {"model": carried.calls, "tool": len(carried.checkpoint.tools)}
                    self._usage = carried.usage or Usage()
                if request.conversation:
                    self._last = AgentAnswer(text=last_text_in(request.conversation))
                if MEMO in started.memo.fields:
                    await self._take_status(started.memo.fields[MEMO], now)
            case "activity_task_scheduled_event_attributes":
                scheduled = event.activity_task_scheduled_event_attributes
                summary = await self._decode(event.user_metadata.summary, str)
                of_model = scheduled.activity_type.name == "llm_stream_activity"
                self._screen.steps[event.event_id] = Step(scheduled.activity_id, summary, of_model, since=now)
                self._say(">", summary)
            case "activity_task_started_event_attributes":
                began = event.activity_task_started_event_attributes
                self._screen.steps[began.scheduled_event_id].attempt = began.attempt
            case kind if kind in ENDINGS:
                step = self._screen.steps.pop(getattr(event, kind).scheduled_event_id)
                self._calls["model" if step.of_model else "tool"] += 1
                attempts = f", attempt {step.attempt}" if step.attempt > 1 else ""
                mark, ended = ENDINGS[kind]
                seconds, result = (now - step.since).total_seconds(), await self._result(event, step)
                self._say(mark, f"{step.summary} {ended} {seconds:.1f} s{attempts}{result}")
            case "workflow_properties_modified_event_attributes":
                changed = event.workflow_properties_modified_event_attributes.upserted_memo.fields
                if MEMO in changed:
                    await self._take_status(changed[MEMO], now)
                for key in changed:
                    # The history tells of every question that came or went; the description knows which are open.
                    if question := (await self._open_questions()).get(key):
                        await self._ask(key, question)

    def _say(self, mark: str, text: str) -> None:
        if self._status.turn >= self._first_turn:
            self._screen.say(mark, text)

    async def _take_status(self, payload: Payload, now: datetime) -> None:
        status = await self._decode(payload, Status)
        if self._message is None:
            found = status.turn - status.working >= self._first_turn
        else:
            found = self._message in status.answered
        if found:
            if status.outcome == "failed":
                raise UserError(turn_failed(status.problem))
            reason = STOPPED if status.outcome == "stopped" else self._last.finish_reason
            self.answer = self._last.model_copy(update={"finish_reason": reason})
        elif status.working and status.turn > self._status.turn:
            self._began, self._calls, self._usage = now, {"model": 0, "tool": 0}, Usage()
        self._status = status

    async def _result(self, event: HistoryEvent, step: Step) -> str:
        """The result of a call, in short."""
        if event.HasField("activity_task_failed_event_attributes"):
            failure = event.activity_task_failed_event_attributes.failure
            return f": {await self._decode_failure(failure)}"
        if not event.HasField("activity_task_completed_event_attributes"):
            return ""
        payload = event.activity_task_completed_event_attributes.result.payloads[0]
        if not step.of_model:
            return f": {title(to_json((await self._decode(payload, ToolReply)).result).decode(), 120)}"
        reply = await self._decode(payload, ModelReply)
        self._last = AgentAnswer(text=text_of(reply.message), finish_reason=reply.finish_reason)
        usage = reply.message.usage
        self._usage += usage or Usage()
        return f": {_tokens(usage)}" if usage else ""

    async def _decode[T](self, payload: Payload, type: type[T]) -> T:
        try:
            value: T = (await self._client.data_converter.decode([payload], [type]))[0]
        except Exception as error:  # any error of a data converter
            raise unreadable(error) from error
        return value

    async def _decode_failure(self, failure: Failure) -> str:
        try:
            return one_line(await self._client.data_converter.decode_failure(failure))
        except Exception as error:
            raise unreadable(error) from error

    async def _follow_pending(self) -> None:
        # Attempts, and the text of an answer that is not whole yet, are not in the history, only in the description.
        for tick in count():
            await asyncio.sleep(0.08)
            is_live = self._has_text_to_show()
            if self._screen.steps and (is_live or tick % 5 == 0):  # there is less to tell of the rest
                with suppress(RPCError):  # the server is lost, which `_follow_history` says
                    await self._show_pending()
            if self._screen.live.is_started:
                self._screen.live.refresh()

    def _has_text_to_show(self) -> bool:
        return not self._screen.console.quiet and any(step.of_model for step in self._screen.steps.values())

    async def _keep_watched(self) -> None:
        while True:
            seconds = 0.08
            if self._has_text_to_show():
                with suppress(RPCError, WorkflowQueryFailedError):  # no worker: then there is no text either
                    await watch(self._handle)
                    seconds = WATCH_AGAIN_SECONDS
            await asyncio.sleep(seconds)

    async def _show_pending(self) -> None:
        description = await self._handle.describe()
        steps = {step.activity_id: step for step in self._screen.steps.values()}
        for pending in description.raw_description.pending_activities:
            if not (step := steps.get(pending.activity_id)):
                continue
            said: tuple[tuple[str, str], ...] = ()
            if step.of_model and pending.heartbeat_details.payloads:
                live = await self._decode(pending.heartbeat_details.payloads[0], LiveText)
                if live.attempt == pending.attempt:  # or it is the text of one that failed
                    said = (live.reasoning, "dim italic"), ("…" * bool(live.start) + live.text, "none")
            step.said = said
            if pending.attempt > step.attempt and self._screen.live.is_started:
                step.attempt = pending.attempt
                wait = (pending.next_attempt_schedule_time.ToDatetime(UTC) - datetime.now(UTC)).total_seconds()
                when = f"in {wait:.0f} s" if wait > 0.5 else "now"  # it is in the past if there is none
                failure = await self._decode_failure(pending.last_failure)
                self._screen.say("!", f"{step.summary}: attempt {step.attempt - 1} failed: {failure}; next one {when}")

    async def _open_questions(self) -> dict[str, Question]:
        return await questions_of(await patiently(self._handle.describe))

    async def _ask(self, key: str, question: Question) -> None:
        """Ask the person at the terminal until an answer is taken, or say with which commands to answer."""
        self._screen.say("?", question.text)
        if not self._screen.can_ask:
            for options in question.options:
                say(f"        {COMMAND} --id {shlex.quote(self._handle.id)} {options}")
            return
        while True:
            self._screen.live.stop()  # the terminal is left to the typing person
            answer = await self._prompt(key, question)
            self._screen.live.start()
            try:
                if answer:
                    await send(self._handle, answer)
                    if answer.said:
                        self._screen.say("x", answer.said)
                return
            except UnfitAnswer as error:
                self._screen.say("!", one_line(error))
            except UserError:  # somebody else was faster, or the clock
                return

    async def _prompt(self, key: str, question: Question) -> Answer | None:
        """Have a person answer; None if that was done elsewhere meanwhile, or its time is over."""
        import termios  # there is none on Windows

        while True:
            termios.tcflush(sys.stdin, termios.TCIFLUSH)  # keys that were typed before the question do not answer it
            print(f"    {printable(question.prompt)}", end="", file=sys.stderr, flush=True)
            while not (await asyncio.to_thread(select.select, [sys.stdin], [], [], 0.5))[0]:
                if key not in await self._open_questions():
                    say("It was answered elsewhere, or too late.")
                    return None
            # Not sys.stdin.readline(): after half a line and Ctrl-D it would block the loop, and it raises where the
            # line is not UTF-8.
            line = os.read(sys.stdin.fileno(), 4096).decode(errors="replace")
            if not line.endswith("\n"):  # Ctrl-D
                say("")
            try:
                return question.answer(line)
            except NoAnswer as error:
                if str(error):
                    say(f"    {error}")


def _tokens(usage: Usage) -> str:
    return f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out"
