"""What a person sees of a run while it goes on: lines, and in a terminal the calls under way below them."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Console, Group
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text

from app.output import in_color, markdown, printable, say

MARKS = {"<": ("✓", "green"), "x": ("✗", "red"), "!": ("!", "yellow"), "?": ("?", "cyan")}
"""Sign and color in a terminal, by the mark of the plain line."""


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
    """Plain lines on standard error. In a terminal a subclass shows the calls under way below them, too.

    Args:
        console: For lines in color. A quiet one: the lines are plain.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, quiet=True)
        self._spinner = Spinner("dots")
        self.steps: dict[int, Step] = {}
        """The calls under way, by the events that began them."""

    @property
    def is_free(self) -> bool:
        """Whether there is a picture that changes, and no person types into its place."""
        return False

    @property
    def shows_text(self) -> bool:
        """Whether it shows the text of an answer as it comes."""
        return not self.console.quiet

    def refresh(self) -> None:
        """Draw the calls under way as they are now."""

    def say(self, mark: str, text: str) -> None:
        """Say a line of the run."""
        if self.console.quiet:
            say(f"  {mark} {text}")
        elif mark != ">":  # calls under way stand below
            sign, style = MARKS[mark]
            line = Text.assemble((f"  {sign} ", style), printable(text))
            if mark == "<":  # its end counts; an error or a question stands there whole
                line.truncate(self.console.width, overflow="ellipsis")
            self.console.print(line, soft_wrap=True)

    def picture(self, width: int, height: int) -> Iterator[list[Segment]]:
        """The lines of the calls under way, and below them the end of the text so far, in at most so many lines."""
        options = self.console.options.update(width=width)
        steps = list(self.steps.values())[: max(1, height - 1)]
        for step in steps:
            yield from self.console.render_lines(self.row(step.summary, step.since, width), options, pad=False)
        # The end of the text counts, and rendering all of a long text takes too long to be live.
        texts = [markdown(text[-2 * height * width :], style) for text, style in self.texts()]
        lines = self.console.render_lines(Group(*texts), options, pad=False)
        yield from lines[-max(1, height - len(steps)) :]

    def texts(self) -> list[tuple[str, str]]:
        """The texts so far, each with its style."""
        return [said for step in self.steps.values() for said in step.said]

    def row(self, what: str, since: datetime, width: int) -> Text:
        """The line of something under way, with a spinner and its seconds."""
        seconds = f" {(datetime.now(UTC) - since).total_seconds():.0f} s"
        row = Text(f"  {self._spinner.render(time.monotonic())} {printable(what)}")
        row.truncate(max(1, width - len(seconds)), overflow="ellipsis")
        return row.append(seconds)


def is_terminal() -> bool:
    """Whether a person sits there, who sees standard error and types on standard input."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def console_of_errors() -> Console:
    """The console of standard error, a quiet one where there is no color."""
    plain = not in_color(sys.stderr)
    return Console(stderr=True, force_terminal=not plain, quiet=plain)
