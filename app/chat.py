"""`main.py --chat`: a conversation, at the terminal or through pipes.

At a terminal (app/prompt.py) a person may type at any time. Without one, each line of standard input is a message, and
the next one is read when it is answered.
"""

import asyncio
import re
import shlex
import sys
import threading
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from functools import partial
from typing import override

from temporalio.client import WorkflowExecutionDescription, WorkflowFailureError
from temporalio.service import RPCError, RPCStatusCode

from app.command_line import Options, problem_of
from app.output import COMMAND, UserError, is_dumb, one_line, print_answer, say, say_error, title
from app.progress import Asked, Before, Happening, Progress, Replied, Said, TurnBegan, TurnOver
from app.questions import NoAnswer, Question
from app.runs import Handle, UnfitAnswer, join, send, status_in, turn_failed, why_failed
from app.screen import Screen, is_terminal
from app.server import Server, patiently
from app.terminal import CUT_SHORT, name_run, say_how_to_answer
from bridge.wire import STOPPED, text_of
from options.conversation import UserMessage, last_text
from options.conversation_client import described, end, stop
from workflow import AgentWorkflow
from workflow_types import AgentAnswer

type Ask = Callable[[UserMessage], Awaitable[tuple[Handle, str]]]
"""Sends a message: to the open run, or to a new one."""

HELP = """\
A message begins a turn. While the agent works, it steers: it is read before the next model call.
  /stop   stops the turn at once; so does Esc, where the line is empty
  /end    ends the conversation, when all is answered; a later message goes on with it
  /help   says this
Enter sends. Alt-Enter or Ctrl-J begins a new line. Up, Down and Ctrl-R bring earlier messages.
Ctrl-D and Ctrl-C leave. The conversation stays, and while a worker runs the agent goes on."""

AGAIN_SECONDS = 2
"""How often to look whether somebody else goes on with a conversation that is over."""


SEND_SECONDS = 5
"""How long to go on trying to send a message when its writer has left."""


async def chat(server: Server, ask: Ask, options: Options) -> None:
    """Converse until the person leaves, the conversation is ended with `/end`, or standard input ends.

    Args:
        server: Where the conversation is.
        ask: Sends a message in it.
        options: Of the command line. Without an `id`, the conversation gets one.

    Raises:
        UserError: The conversation cannot be read, or the server is gone for good. Without a terminal, also: a message
            was not answered.
        RPCError: The server refuses.
    """
    state = " begins with a message"
    if options.id is None:
        options.id = f"agent-{uuid.uuid4().hex[:12]}"
    elif await described(server.client, options.id) is not None:
        _, state = await join(server.client, options.id, options.task_queue)
    await name_run(server, options.id, state, options)
    screen: ChatScreen
    if is_terminal() and (sys.platform == "win32" or not is_dumb()):
        from app.prompt import Prompt

        screen = Prompt()
    else:
        screen = Lines()
    talk = Chat(server, ask, options, screen)
    left = "Left"
    try:
        await talk.run(options.query)
        left = "Ended" if talk.is_ended else left
    finally:
        if talk.has_begun:
            say(f"{left} {options.id}. Come back with: {COMMAND} --chat --id {shlex.quote(options.id)}")


class ChatScreen(Screen):
    """What a chat is shown on and typed into."""

    is_patient = False
    """Whether the next line is wanted only when the last one is answered."""

    can_ask = True
    """Whether somebody is there to answer questions."""

    doing: tuple[str, datetime] | None = None
    """What the agent does while no call is under way, and since when."""

    turn: int | None = None
    """The turn under way."""

    last_words = ""
    """What is certainly the end of an answer, while the turn is not over."""

    async def serve(self) -> None:
        """Draw, until it is cancelled."""
        await asyncio.Event().wait()

    def lines(self) -> AsyncGenerator[str]:
        """What is typed, line by line, until the person leaves."""
        raise NotImplementedError

    def echo(self, text: str, note: str = "") -> None:
        """Show a message of a person."""
        raise NotImplementedError

    def echo_answer(self, question: Question, line: str) -> None:
        """Show what a person has typed in answer to a question."""

    def note(self, text: str) -> None:
        """Say something about the conversation."""
        say(text)

    def answer(self, text: str, *notes: str) -> None:
        """Show what the model said, if it did, and lines about it."""
        raise NotImplementedError

    def ask(self, question: Question | None) -> None:
        """Ask a question in the place of the prompt. None: it is no longer open, or answered."""
        if question is not None:
            self.say("?", question.text)
            say(f"    {question.prompt}")


class Lines(ChatScreen):
    """Plain lines: through pipes, or on a terminal that cannot do more."""

    def __init__(self) -> None:
        super().__init__()
        self.is_patient = not is_terminal()
        self.can_ask = is_terminal()

    @override
    async def lines(self) -> AsyncGenerator[str]:
        queue, loop = asyncio.Queue[bytes | None](), asyncio.get_running_loop()

        def read() -> None:
            with suppress(RuntimeError):  # the loop is closed
                for line in sys.stdin.buffer if sys.stdin else ():
                    loop.call_soon_threadsafe(queue.put_nowait, line)
                loop.call_soon_threadsafe(queue.put_nowait, None)

        # Not `asyncio.to_thread()`, which would have to wait for the end of a line before the process can end.
        threading.Thread(target=read, name="standard input", daemon=True).start()
        while (line := await queue.get()) is not None:
            yield line.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape").rstrip("\r\n")

    @override
    def echo(self, text: str, note: str = "") -> None:
        if note:  # one's own stand there already
            say(f"  * {title(text)} ({note})")

    @override
    def answer(self, text: str, *notes: str) -> None:
        if text:
            print_answer(text)
        for note in notes:
            say(note)


class Chat:
    """The state of a chat: what is shown already, what is asked, what is not answered yet."""

    def __init__(self, server: Server, ask: Ask, options: Options, screen: ChatScreen) -> None:
        assert options.id is not None
        self.is_ended = False
        """Whether the conversation has ended, by a wish of this person."""
        self._wants_end = False
        self._client, self._id, self._debug = server.client, options.id, options.debug
        self._handle: Handle = server.client.get_workflow_handle_for(AgentWorkflow.run, options.id)
        self._ask, self._screen = ask, screen
        self._progress = Progress(server.client, options.id, screen, options.debug)
        self._jobs = set[asyncio.Task[None]]()
        self._order = asyncio.Lock()  # of messages
        self._begun = asyncio.Event()
        """Somebody has sent a message, so there may be a new run."""
        self._past = 0
        """The last turn that was over before."""
        self._shown = -1
        """The last turn that is shown."""
        self._last_said = ""
        """The id of the message that was shown last."""
        self._mine: dict[str, asyncio.Future[AgentAnswer]] = {}
        """The messages of this person, by their ids."""
        self._unsent: dict[str, str] = {}
        """Their texts, as long as the server may not have them."""
        self._late = set[str]()
        """Those that came too late to steer."""
        self._is_stopping = False
        self._questions: dict[str, Question] = {}
        """The open ones. The first of them is asked."""

    @property
    def has_begun(self) -> bool:
        """Whether there is something to come back to."""
        return bool(self._progress.run_id or self._mine)

    async def run(self, first: str | None) -> None:
        """Converse, beginning with a message. Raises: see `chat()`."""
        tasks = [asyncio.create_task(part) for part in (self._screen.serve(), self._follow(), self._read(first))]
        try:
            async with self._progress.live():
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if self._unsent:  # typed just before
                    await asyncio.wait(self._jobs, timeout=SEND_SECONDS)
        finally:
            for task in (*tasks, *self._jobs):
                task.cancel()
            await asyncio.gather(*tasks, *self._jobs, return_exceptions=True)
            for text in self._unsent.values():
                say(f"Not sent: {text}")

    # ── What the person types ──

    async def _read(self, first: str | None) -> None:
        if first is not None:
            await self._take(first)
        async with aclosing(self._screen.lines()) as lines:
            async for line in lines:
                await self._take(line)
        if self._wants_end and self._screen.is_patient:
            await asyncio.Event().wait()  # for the end, which a worker has to bring about

    async def _take(self, line: str) -> None:
        text = line.replace("\r\n", "\n").strip()
        job: Coroutine[None, None, None] | None = None
        match text:
            case "":
                pass
            case "/help":
                self._screen.note(f"\n{HELP}")
            case "/stop":
                job = self._stop()
            case "/end":
                job = self._end()
            case command if re.fullmatch(r"/\w*", command):
                self._screen.note(f"There is no command {command}; /help lists those that there are.")
            case _ if self._questions and self._screen.can_ask:
                job = self._answer(text)
            case _ if problem := problem_of(text):
                self._failed(UserError(f"the message {problem}"))
            case _:
                job = self._send(text)
        if job is not None:
            task = asyncio.create_task(self._job(job))
            self._jobs.add(task)
            task.add_done_callback(self._jobs.discard)
            if self._screen.is_patient:
                await task

    async def _job(self, job: Coroutine[None, None, None]) -> None:
        try:
            await job
        except RPCError as error:
            self._failed(UserError(f"the Temporal server refused: {one_line(error)}"))
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        if self._screen.is_patient:
            raise error
        say_error(error, self._debug)

    async def _send(self, text: str) -> None:
        self._wants_end = False
        message = UserMessage(id=uuid.uuid4().hex, text=text)
        answered = self._mine[message.id] = asyncio.Future[AgentAnswer]()
        answered.add_done_callback(lambda future: future.cancelled() or future.exception())  # nobody may be waiting
        self._unsent[message.id] = text
        self._echo(message)
        async with self._order:
            try:
                await patiently(partial(self._ask, message))
            except (UserError, RPCError):
                del self._unsent[message.id], self._mine[message.id]
                raise
        del self._unsent[message.id]
        if message.steers is not None:
            self._screen.note(f"  steers turn {message.steers}")
        self._begun.set()
        if self._screen.is_patient:
            await answered

    def _echo(self, message: UserMessage, note: str = "") -> None:
        self._last_said = message.id
        self._screen.echo(message.text, note)

    async def _stop(self) -> None:
        turn = await patiently(partial(stop, self._handle)) if self.has_begun else None
        self._is_stopping = turn is not None
        self._screen.note("There is nothing to stop." if turn is None else f"Stopping turn {turn}.")

    async def _end(self) -> None:
        self._wants_end = True
        try:
            async with self._order:
                if self.has_begun:
                    await patiently(partial(end, self._handle))
            if self.has_begun:
                self._screen.note("Ending the conversation, when all messages are answered.")
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
        self._begun.set()

    async def _answer(self, line: str) -> None:
        key, question = next(iter(self._questions.items()))
        self._screen.echo_answer(question, line)
        try:
            answer = question.answer(line)
        except NoAnswer as error:
            if str(error):
                self._screen.note(f"    {error}")
            return
        self._asked_no_more(key)
        try:
            await send(self._handle, answer)
            if answer.said:
                self._screen.say("x", answer.said)
        except UnfitAnswer as error:
            self._screen.say("!", one_line(error))
            self._asked(key, question)

    # ── What happens in the conversation ──

    async def _follow(self) -> None:
        first = True
        while run := await self._next_run():
            if first:
                status = await status_in(run)
                self._past = status.turn - status.working
                self._progress.first_turn = self._past + 1
            first = False
            try:
                async with aclosing(self._progress.follow(run)) as happenings:
                    async for happening in happenings:
                        self._happened(happening)
                        self._show_state()
                self._over("")
            except WorkflowFailureError as error:
                self._over(why_failed(error))

    async def _next_run(self) -> WorkflowExecutionDescription | None:
        """A run that was not followed yet, or None when the person wants no other."""
        while True:
            self._begun.clear()
            run = await patiently(partial(described, self._client, self._id))
            if run is not None and run.run_id != self._progress.run_id:
                return run
            if self._wants_end:
                self.is_ended = True
                return None
            with suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_SECONDS):
                    await self._begun.wait()

    def _happened(self, happening: Happening) -> None:
        match happening:
            case Before(turns) if turns and self._shown < turns[-1].number == self._past:
                asked = [text_of(message) for message in turns[-1].messages if message.role == "user"]
                self._show_past(asked, lambda: self._screen.answer(last_text(turns[-1].messages)))
            case Said(message) if message.id not in self._mine and self._shown >= self._past:
                self._echo(message, "from elsewhere" if self._progress.is_live else "")
            case TurnBegan(turn) if turn > self._past > self._shown:
                self._show_past([], lambda: None)
            case TurnBegan(turn) if turn > self._past and (waiting := self._progress.waiting):
                if waiting[0].id != self._last_said:  # others came after it
                    self._screen.note(f"  turn {turn}: {title(waiting[0].text, 60)}")
            case Replied(message) if self._shown >= self._past and not self._screen.is_patient:
                if message.tool_calls:
                    self._screen.answer(text_of(message))
                else:
                    self._screen.last_words = text_of(message)
            case Asked(key, None):
                self._asked_no_more(key, elsewhere=True)
            case Asked(key, question) if question is not None:
                self._asked(key, question)
            case TurnOver() as over if over.turn == self._past and self._shown < over.turn:
                self._show_past([message.text for message in over.messages], lambda: self._turn_over(over, ""))
            case TurnOver() as over if over.turn > max(self._past, self._shown):
                self._turn_over(over, over.summary)

    def _show_past(self, asked: list[str], answer: Callable[[], None]) -> None:
        """Show the last turn that was over before, and what was said since."""
        self._shown = self._past
        if self._screen.is_patient:  # it wants its own answers
            return
        for text in asked:
            self._screen.echo(text)
        answer()
        for message in self._progress.waiting:
            if message.id not in self._mine:
                self._echo(message)

    def _turn_over(self, over: TurnOver, summary: str) -> None:
        self._shown, self._screen.last_words, self._is_stopping = over.turn, "", False
        is_mine = any(id in self._mine for id in over.answered)
        if self._screen.is_patient and (over.outcome == "failed" or not is_mine):
            pass  # it fails with the error, and prints no answer to somebody else
        elif over.outcome == "failed":
            self._screen.say("x", turn_failed(over.problem))
        else:
            notes = [summary] if summary else []
            if cut := CUT_SHORT.get(over.answer.finish_reason or ""):
                notes.insert(0, f"cut short by {cut}")
            self._screen.answer(over.answer.text, *notes)
        for id in over.answered:
            if id in self._mine and not self._mine[id].done():
                self._settle(self._mine[id], over)
        for message in self._progress.waiting:
            if message.steers == over.turn and message.id not in self._late:
                self._late.add(message.id)
                self._screen.note(f"  too late to steer, so it gets a turn of its own: {title(message.text, 40)}")

    def _settle(self, answered: asyncio.Future[AgentAnswer], over: TurnOver) -> None:
        if over.outcome == "failed":
            answered.set_exception(UserError(turn_failed(over.problem)))
        elif over.answer.finish_reason == STOPPED:
            answered.set_exception(UserError("somebody stopped this answer"))
        else:
            answered.set_result(over.answer)

    def _over(self, problem: str) -> None:
        for key in list(self._questions):
            self._asked_no_more(key)
        self._screen.last_words = ""
        self._show_state()
        for answered in self._mine.values():
            if problem and not answered.done():
                answered.set_exception(UserError(problem))
        if problem and not self._screen.is_patient:
            self._screen.say("x", problem)
        if not self._wants_end:
            self._screen.note("The conversation is over. Your next message goes on with it.")

    def _show_state(self) -> None:
        status = self._progress.status
        turn = status.turn if status.working else None
        if turn != self._screen.turn:
            self._screen.turn = turn
            self._screen.doing = (f"turn {turn}", datetime.now(UTC)) if turn else None
        self._screen.refresh()

    # ── Questions ──

    def _asked(self, key: str, question: Question) -> None:
        self._questions[key] = question
        if not self._screen.can_ask:
            self._screen.say("?", question.text)
            say_how_to_answer(self._id, question)
        elif len(self._questions) == 1:
            self._screen.ask(question)

    def _asked_no_more(self, key: str, elsewhere: bool = False) -> None:
        was_asked = key == next(iter(self._questions), None)
        if self._questions.pop(key, None) is None or not was_asked or not self._screen.can_ask:
            return
        if elsewhere and not self._is_stopping:
            self._screen.note("    It was answered elsewhere, or too late.")
        if not (self._is_stopping and self._questions):  # the others go with it
            self._screen.ask(next(iter(self._questions.values()), None))
