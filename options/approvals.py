"""Approvals: a person is asked before a tool is called, and the run waits for the answer, for days if need be.

    temporal_tool(charge, before=ask_a_person)

While it waits, no timer and no process runs. The open questions are in the run's memo, so that reading them needs no
worker. The answer is the update `APPROVAL`:

    for call, question in open_questions(await (await handle.describe()).memo()).items():
        await handle.execute_update(APPROVAL, Approval(call=call, approved=True))
"""

from collections.abc import Mapping

import pydantic
from temporalio import workflow
from temporalio.exceptions import ApplicationError

from bridge.details import doing, shortened
from bridge.failures import ToolError
from bridge.of_run import of_run
from bridge.wire import ToolCall

APPROVAL = "approve_tool_call"
"""Name of the update that answers a question."""

QUESTION_MEMO = "waiting_for_approval."
"""Begins the keys of a run's memo under which the open questions are."""

QUESTION_BYTES = 8_000
"""Longest question. Long enough to show what is allowed, and short enough for many questions at once: the server limits
the size of a run's memo."""


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
    answer = await of_run(_Desk).ask(call.summary)
    if not answer.approved:
        raise ToolError(f"a person did not allow this call of {call.tool}: {answer.reason or 'no reason given'}")


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
        workflow.set_update_handler(APPROVAL, self._answer, validator=self._check)

    async def ask(self, summary: str) -> Approval:
        call = workflow.uuid4().hex[:8]
        self._questions[call] = shortened(summary, QUESTION_BYTES)
        # A key for each, since the server takes no more than 4 MB at once, which many questions in one value would be.
        workflow.upsert_memo({QUESTION_MEMO + call: self._questions[call]})
        try:
            with doing(f"waiting for an approval ({call}): {summary}"):
                await workflow.wait_condition(lambda: call in self._answers)
        finally:
            del self._questions[call]
            if workflow.in_workflow():  # not while the run is evicted from the worker's cache
                workflow.upsert_memo({QUESTION_MEMO + call: None})
        return self._answers[call]

    def _answer(self, answer: Approval) -> str:
        self._answers[answer.call] = answer
        return self._questions[answer.call]

    def _check(self, answer: Approval) -> None:
        if answer.call in self._answers:
            raise ApplicationError(f"tool call {answer.call!r} is answered already", type="AlreadyAnswered")
        if answer.call not in self._questions:
            raise ApplicationError(f"no tool call {answer.call!r} waits for an approval", type="UnknownCall")
