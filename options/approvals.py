"""Approvals: a person is asked before a tool is called, and the run waits for the answer, for days if need be.

    temporal_tool(book, before=ask_a_person)
    temporal_tool(charge, before=ask_a_person_if(lambda amount: amount > 100, timeout=timedelta(hours=1)))

While it waits, no process runs, and no timer but the one of a time limit. The open questions are in the run's memo, so
that reading them needs no worker. The answer is the update `APPROVAL`:

    for call, question in open_questions(await (await handle.describe()).memo()).items():
        await handle.execute_update(APPROVAL, Approval(call=call, approved=True))
"""

import inspect
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import FunctionType
from typing import override

import pydantic
from temporalio import workflow
from temporalio.exceptions import ApplicationError

from bridge.details import doing, shortened
from bridge.failures import ToolError
from bridge.of_run import of_run
from bridge.tools import typed_arguments
from bridge.wire import ToolCall

APPROVAL = "approve_tool_call"
"""Name of the update that answers a question."""

QUESTION_MEMO = "waiting_for_approval."
"""Begins the keys of a run's memo under which the open questions are."""

QUESTION_BYTES = 8_000
"""Longest question. Long enough to show what is allowed, and short enough for many questions at once: the server limits
the size of a run's memo."""


REFUSED = "a person did not allow this call of "
"""Begins what the model is told of a call that a person refused. The tool's name follows, and the reason."""


class Approval(pydantic.BaseModel):
    """Argument of the update `APPROVAL`: whether a tool call may be made. The model is told the reason if not."""

    call: str
    """Which question this answers, as `open_questions()` has it; not the model's id of the call."""
    approved: bool
    reason: str = ""


def open_questions[T](memo: Mapping[str, T]) -> dict[str, T]:
    """The tool calls of a run that wait for an approval: from its memo, the question by the id to answer it with."""
    return {key.removeprefix(QUESTION_MEMO): memo[key] for key in memo if key.startswith(QUESTION_MEMO)}


# ── In the workflow ──────────────────────────────────────────────────────────────────────────────────────


async def ask_a_person(call: ToolCall) -> None:
    """Ask a person whether a tool may be called, and wait for the answer for as long as it takes.

    Raises:
        ToolError: The person says no. The model is given the reason.
    """
    await _ask(call, None)


def ask_a_person_if(rule: Callable[..., bool], *, timeout: timedelta | None = None) -> "_AskIf":
    """Make a `before=` that asks a person about some calls of a tool, with a time limit, and lets the others through.

    A call is not made if the person says no, if nobody answers in time, or if the rule raises an error or returns no
    bool. The model is told which of these it was (`ToolError`), and the run goes on.

    Args:
        rule: Whether to ask about a call; `lambda: True` always asks. It gets the arguments of the call that its
            parameters name, or all of them as `**kwargs`, of the types that the tool's function declares, defaults
            included. It runs in the workflow: no clock, no randomness, no I/O.
        timeout: How long to wait for the answer, on a durable timer, which also counts while no worker runs. None: for
            as long as it takes.

    Raises:
        TypeError: The rule is an async function, whose result would always count as yes.
    """
    if inspect.iscoroutinefunction(rule):
        raise TypeError("the rule of an approval is an async function: write a plain one, without I/O")
    return _AskIf(rule, timeout)


class _AskIf:
    """Two of them are equal if the same source made them: the sandbox loads a workflow's file anew for every run, and
    `temporal_tool()` has to see that nothing has changed. The first one stays in use."""

    def __init__(self, rule: Callable[..., bool], timeout: timedelta | None) -> None:
        self._rule, self._timeout = rule, timeout
        self._parameters = inspect.signature(rule).parameters
        self._source: object = rule
        if isinstance(rule, FunctionType):
            enclosed = [cell.cell_contents for cell in rule.__closure__ or ()]
            self._source = rule.__code__, rule.__defaults__, rule.__kwdefaults__, enclosed

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, _AskIf) and (self._source, self._timeout) == (other._source, other._timeout)

    __hash__ = None  # type: ignore[assignment]  # what a rule encloses may be a list

    async def __call__(self, call: ToolCall) -> None:
        try:
            wanted = self._picks(call)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            raise ToolError(f"{call.tool} was not called, since the rule of its approval failed: {problem}") from error
        if wanted:
            await _ask(call, self._timeout)

    def _picks(self, call: ToolCall) -> bool:
        arguments = typed_arguments(call.tool, call.arguments)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in self._parameters.values()):
            arguments = {name: value for name, value in arguments.items() if name in self._parameters}
        wanted: object = self._rule(**arguments)
        if not isinstance(wanted, bool):
            raise TypeError(f"it returned {wanted!r}, which is no bool")
        return wanted


async def _ask(call: ToolCall, limit: timedelta | None) -> None:
    answer = await of_run(_Desk).ask(call.summary, limit)
    if answer is None:
        raise ToolError(f"this call of {call.tool} was not allowed: nobody answered within {limit}")
    if not answer.approved:
        raise ToolError(f"{REFUSED}{call.tool}: {answer.reason or 'no reason given'}")


async def approve_if_enabled(call: ToolCall) -> None:
    """`ask_a_person()`, in workflow runs that have called `enable_approvals()`."""
    if of_run(_Desk).enabled:
        await ask_a_person(call)


def enable_approvals(wanted: bool = True) -> None:
    """Have this workflow run ask before each call of the tools that were wrapped with `before=approve_if_enabled`."""
    of_run(_Desk).enabled = wanted


class _Desk:
    """The questions of one workflow run."""

    def __init__(self) -> None:
        self.enabled = False
        self._questions: dict[str, str] = {}
        self._answers: dict[str, Approval] = {}
        self._late: set[str] = set()
        workflow.set_update_handler(APPROVAL, self._answer, validator=self._check)

    async def ask(self, summary: str, limit: timedelta | None) -> Approval | None:
        """The answer of a person, or None if there is none in time."""
        call = workflow.uuid4().hex[:8]
        self._questions[call] = shortened(summary, QUESTION_BYTES)
        # A key for each, since the server takes no more than 4 MB at once, which many questions in one value would be.
        workflow.upsert_memo({QUESTION_MEMO + call: self._questions[call]})
        try:
            with doing(f"waiting for an approval ({call}): {summary}"):
                await workflow.wait_condition(
                    lambda: call in self._answers, timeout=limit, timeout_summary=shortened(f"approval of {summary}")
                )
        except TimeoutError:
            if call not in self._answers:  # an answer at the very same moment was accepted, so it counts
                self._late.add(call)
        finally:
            del self._questions[call]
            if workflow.in_workflow():  # not while the run is evicted from the worker's cache
                workflow.upsert_memo({QUESTION_MEMO + call: None})
        return self._answers.get(call)

    def _answer(self, answer: Approval) -> str:
        self._answers[answer.call] = answer
        return self._questions[answer.call]

    def _check(self, answer: Approval) -> None:
        if answer.call in self._answers:
            raise ApplicationError(f"tool call {answer.call!r} is answered already", type="AlreadyAnswered")
        if answer.call in self._late:
            raise ApplicationError(f"tool call {answer.call!r} was refused: nobody answered in time", type="TooLate")
        if answer.call not in self._questions:
            raise ApplicationError(f"no tool call {answer.call!r} waits for an approval", type="UnknownCall")
