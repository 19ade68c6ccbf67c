"""The terminal of a chat: a prompt that can be used at any time, and above it all that happens.

Only what is still going on is drawn again: the calls under way, the text so far, the prompt. Everything else is written
above, once, and stays in the terminal's scrollback.
"""

import asyncio
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from pathlib import Path
from typing import override

from prompt_toolkit import PromptSession
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth, Output, create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.styles import Style
from rich.color import Color
from rich.console import Console
from rich.segment import Segment
from rich.style import Style as RichStyle
from rich.text import Text

from app.chat import ChatScreen
from app.output import markdown, print_answer, printable, say
from app.questions import Question

REMEMBERED_CHARACTERS = 10_000
"""Longer messages are not kept in the history of the prompt."""

STYLE = Style.from_dict({"sign": "ansicyan bold", "question": "ansicyan", "hint": "ansibrightblack"})

COLORS = "black red green yellow blue magenta cyan gray brightblack brightred brightgreen brightyellow brightblue "
COLORS += "brightmagenta brightcyan white"
ANSI_COLORS = [f"ansi{name}" for name in COLORS.split()]
"""prompt_toolkit's names for the sixteen colors of a terminal, by their numbers."""


class Prompt(ChatScreen):
    """Draws the prompt on standard error, and reads keys from standard input."""

    def __init__(self) -> None:
        super().__init__(Console(stderr=True, force_terminal=True))
        self._above = _Above(self)
        self._queue = asyncio.Queue[str | None]()
        self._picture: StyleAndTextTuples = []
        self._question: Question | None = None
        self._draft = ""
        """What was typed when a question came up."""
        self._output = _output()
        self._session = PromptSession[str](
            message=self._message,
            placeholder=lambda: [("class:hint", self._hint())],
            prompt_continuation="  ",
            multiline=True,
            history=_history(),
            key_bindings=self._keys(),
            style=STYLE,
            erase_when_done=True,
            enable_suspend=True,
            output=self._output,
        )
        # A stop must come at once. These are for Esc alone: a terminal sends the rest of a longer sequence with it.
        self._session.app.ttimeoutlen, self._session.app.timeoutlen = 0.05, 0.25

    @override
    async def serve(self) -> None:
        # Whatever is said while the prompt is there has to go above it.
        for handler in logging.root.handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(self._above)
        try:
            with redirect_stderr(self._above):
                await self._session.prompt_async(handle_sigint=False, set_exception_handler=False)
        finally:
            say("")

    @override
    async def lines(self) -> AsyncGenerator[str]:
        while (line := await self._queue.get()) is not None:
            yield line

    # ── Keys ──

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        is_empty = Condition(lambda: not self._session.default_buffer.text)

        @keys.add("enter")
        def send(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            line = buffer.text
            if self._question is None and line.strip():
                buffer.append_to_history()
            buffer.reset()
            self._queue.put_nowait(line)

        @keys.add("escape", "enter")
        @keys.add("c-j")
        def new_line(event: KeyPressEvent) -> None:
            event.current_buffer.newline(copy_margin=False)

        @keys.add("escape", filter=is_empty & Condition(lambda: self.turn is not None))
        def stop(event: KeyPressEvent) -> None:
            self._queue.put_nowait("/stop")

        @keys.add("c-d", filter=is_empty)
        def leave(event: KeyPressEvent) -> None:
            self._queue.put_nowait(None)

        @keys.add("c-c")
        def interrupt(event: KeyPressEvent) -> None:
            event.current_buffer.append_to_history()  # what is typed so far comes back with Up
            if self.turn is not None:
                signal.raise_signal(signal.SIGINT)
            else:
                self._queue.put_nowait(None)

        return keys

    # ── What is drawn again ──

    def _message(self) -> StyleAndTextTuples:
        if self._question is not None:
            return [*self._picture, ("class:question", f"    {printable(self._question.prompt)}")]
        return [*self._picture, ("", "\n"), ("class:sign", "> ")]

    def _hint(self) -> str:
        if self._question is not None:
            return ""
        return f"steers turn {self.turn}; Esc stops it" if self.turn else "a message, or /help"

    @property
    @override
    def is_free(self) -> bool:
        return True

    @override
    def refresh(self) -> None:
        size = self._output.get_size()
        height = size.rows - self._session.default_buffer.document.line_count - 4
        lines = list(self.picture(size.columns, max(2, height)))
        if self.doing and not (self.steps or self.last_words or self._question):
            row = self.row(*self.doing, size.columns)
            lines = self.console.render_lines(row, pad=False)
        self._picture = [fragment for line in lines for fragment in (*_fragments(line), ("", "\n"))]
        self._session.app.invalidate()

    @override
    def texts(self) -> list[tuple[str, str]]:
        return [*super().texts(), (self.last_words, "none")] if self.last_words else super().texts()

    # ── What is written once ──

    def write_above(self, text: str) -> None:
        """Write lines above the prompt. To be called in the event loop."""
        app, output = self._session.app, self._output
        if not app.is_running:
            output.write_raw(text)
            output.flush()
            return
        with output.at_once() if isinstance(output, _AtOnce) else nullcontext():
            app.renderer.erase()
            output.write_raw(text)
            app.renderer.render(app, app.layout)

    @override
    def echo(self, text: str, note: str = "") -> None:
        lines = Text("\n> ", style="cyan").append(printable(text).replace("\n", "\n  "), style="not dim bold default")
        if note:
            lines.append(f"  ({note})", style="not bold dim")
        self.console.print(lines, soft_wrap=True)

    @override
    def echo_answer(self, question: Question, line: str) -> None:
        self.console.print(
            Text(f"    {printable(question.prompt)}", style="cyan").append(line, style="not dim default")
        )

    @override
    def note(self, text: str) -> None:
        self.console.print(Text(printable(text), style="dim"))

    @override
    def answer(self, text: str, *notes: str) -> None:
        if text and not sys.stdout.isatty():
            print_answer(text)
        self.refresh()
        below = Text("\n".join(f"  {note}" for note in notes), style="dim")
        parts = [*(["", markdown(text)] if text else []), *(["", below] if notes else [])]
        if parts:
            self.console.print(*parts, sep="\n")

    @override
    def ask(self, question: Question | None) -> None:
        buffer = self._session.default_buffer
        if self._question is None:
            self._draft = buffer.text  # nor do keys that were typed before answer the question
            buffer.reset()
        self._question = question
        if question is not None:
            self.say("?", question.text)
        else:
            buffer.text, self._draft = self._draft, ""
            buffer.cursor_position = len(buffer.text)
        self.refresh()


def _output() -> Output:
    if sys.platform == "win32":
        return create_output(stdout=sys.stderr)
    term, depth = os.environ.get("TERM"), ColorDepth.from_env()
    return _AtOnce.from_pty(sys.stderr, term=term, default_color_depth=depth)


class _AtOnce(Vt100_Output):
    """Can write several changes at once, so that nobody sees what is in between."""

    _is_held = False

    responds_to_cpr = False  # where the prompt is need not be known, and not every terminal tells it

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Hold back what is written, until the end of the block."""
        self._is_held = True
        try:
            self.write_raw("\x1b[?2026h")  # so that a terminal draws it at once, too, if it knows this
            yield
            self.write_raw("\x1b[?2026l")
        finally:
            self._is_held = False
            self.flush()

    @override
    def flush(self) -> None:
        if not self._is_held:
            super().flush()


def _fragments(line: Iterable[Segment]) -> StyleAndTextTuples:
    """A line of rich's, for prompt_toolkit."""
    return [(_style(segment.style), segment.text) for segment in line if not segment.control]


def _style(style: RichStyle | None) -> str:
    if style is None:
        return ""
    words = [word for word in ("bold", "dim", "italic", "underline", "strike", "reverse") if getattr(style, word)]
    for ground, color in (("fg", style.color), ("bg", style.bgcolor)):
        if color is not None and not color.is_default:
            words.append(f"{ground}:{_color(color)}")
    return " ".join(words)


def _color(color: Color) -> str:
    return ANSI_COLORS[color.number] if color.number is not None and color.number < 16 else color.get_truecolor().hex


class _Above(io.TextIOBase):
    """In the place of standard error: whole lines, from any thread, go above the prompt."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt, self._loop, self._thread = prompt, asyncio.get_running_loop(), threading.get_ident()
        self._stream = sys.stderr
        self._text = ""
        self._lock = threading.Lock()

    @override
    def write(self, text: str) -> int:
        with self._lock:
            self._text += text
        if "\n" in text:
            if threading.get_ident() == self._thread:
                self._write_above()
            else:
                with suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(self._write_above)
        return len(text)

    def _write_above(self) -> None:
        with self._lock:
            lines, end, self._text = self._text.rpartition("\n")
        if end:
            self._prompt.write_above(lines + end)

    @override
    def isatty(self) -> bool:
        return True

    @override
    def fileno(self) -> int:
        return self._stream.fileno()


# ── History ──


def _history() -> History:
    """The messages of this user, kept over the chats."""
    file = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "durable-agent" / "history"
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))  # what people ask is their own affair
        return _Kept(file)
    except OSError as error:
        say(f"The history of the prompt is not kept: {error}")
        return InMemoryHistory()


class _Kept(FileHistory):
    @override
    def store_string(self, string: str) -> None:
        if len(string) <= REMEMBERED_CHARACTERS:
            with suppress(OSError):  # a full disk is no reason to lose the message itself
                super().store_string(string)
