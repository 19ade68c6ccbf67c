"""Shows a run to a person, up to an answer: each call as it starts and ends, the text as it comes, the questions."""

import asyncio
import os
import select
import shlex
import sys
from contextlib import aclosing
from typing import override

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import SegmentLines
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError
from temporalio.service import RPCError

from app.command_line import Options
from app.output import COMMAND, UserError, one_line, print_answer, printable, say, say_error
from app.progress import Asked, Progress, TurnOver
from app.questions import Answer, NoAnswer, Question
from app.runs import Handle, UnfitAnswer, has_worker, result_of, send, status_in, turn_failed, why_failed
from app.screen import Screen, console_of_errors, is_terminal
from app.server import Server, patiently
from bridge.wire import STOPPED
from workflow_types import AgentAnswer

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
    await name_run(server, handle.id, state, options)
    screen = LiveScreen()
    progress = Progress(server.client, handle.id, screen, options.debug)
    try:
        answer, summary = None, ""
        try:
            with screen.live:
                answer = await _follow(progress, screen, handle, message)
            summary = progress.summary
        except (UserError, RPCError, WorkflowFailureError):
            raise
        except Exception as error:  # the answer is wanted all the same
            say_error(error, options.debug)
            summary = "The progress display failed; the run went on without it."
        answer = answer or await result_of(handle)
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


async def name_run(server: Server, id: str, state: str, options: Options) -> None:
    """Say what is followed, and where else it can be looked at."""
    say(f"Run {id} (process {os.getpid()}){state}")
    if page := server.page(id):
        say(f"    {page}")
    if options.no_worker and not await has_worker(server.client, options.task_queue):
        say(f"No worker serves the task queue {options.task_queue}; waiting for one.")


async def _follow(progress: Progress, screen: "LiveScreen", handle: Handle, message: str | None) -> AgentAnswer | None:
    run = await patiently(handle.describe)
    now = await status_in(run)
    # A message that was sent while nothing was under way gets the next turn.
    is_next = message is not None and run.status == WorkflowExecutionStatus.RUNNING
    progress.first_turn = now.turn + (is_next and not now.working and message not in now.answered)
    async with progress.live(), aclosing(progress.follow(run)) as happenings:
        async for happening in happenings:
            match happening:
                case Asked(key, question) if question is not None:
                    await screen.ask(progress, handle, key, question)
                case TurnOver() as over:
                    is_last = over.turn >= progress.first_turn if message is None else message in over.answered
                    if is_last and over.outcome == "failed":
                        raise UserError(turn_failed(over.problem))
                    if is_last:
                        return over.answer
    return None


class LiveScreen(Screen):
    """Standard error: plain lines, or, in a terminal, lines with the calls under way below them."""

    def __init__(self) -> None:
        super().__init__(console_of_errors())
        self.live = Live(self, console=self.console, auto_refresh=False)
        self._can_ask = sys.platform != "win32" and is_terminal()

    @property
    @override
    def is_free(self) -> bool:
        return self.live.is_started

    @override
    def refresh(self) -> None:
        if self.live.is_started:
            self.live.refresh()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.live.is_started:  # nothing of it stays there
            width, height = options.size
            yield SegmentLines(self.picture(width, height - 2), new_lines=True)

    async def ask(self, progress: Progress, handle: Handle, key: str, question: Question) -> None:
        """Ask the person at the terminal until an answer is taken, or say with which commands to answer."""
        self.say("?", question.text)
        if not self._can_ask:
            say_how_to_answer(handle.id, question)
            return
        while True:
            self.live.stop()  # the terminal is left to the typing person
            answer = await self._prompt(progress, key, question)
            self.live.start()
            try:
                if answer:
                    await send(handle, answer)
                    if answer.said:
                        self.say("x", answer.said)
                return
            except UnfitAnswer as error:
                self.say("!", one_line(error))
            except UserError:  # somebody else was faster, or the clock
                return

    async def _prompt(self, progress: Progress, key: str, question: Question) -> Answer | None:
        """Have a person answer; None if that was done elsewhere meanwhile, or its time is over."""
        import termios  # there is none on Windows

        while True:
            termios.tcflush(sys.stdin, termios.TCIFLUSH)  # keys that were typed before the question do not answer it
            print(f"    {printable(question.prompt)}", end="", file=sys.stderr, flush=True)
            while not (await asyncio.to_thread(select.select, [sys.stdin], [], [], 0.5))[0]:
                if key not in await progress.open_questions():
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


def say_how_to_answer(id: str, question: Question) -> None:
    """Say with which commands to answer a question of a run."""
    for options in question.options:
        say(f"        {COMMAND} --id {shlex.quote(id)} {options}")
