"""The transcript of a workflow run, for its model activities and for people.

The input of an activity stays in the history for good. If each model call had the whole transcript in its input, the
history would grow with the square of the turns. So a model activity is given only a number, and fetches the request
from its workflow: out of the cache of its own worker, or by a query, whose answer Temporal does not record.
"""

import functools
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import pydantic
import vercel_ai_sdk as ai
from temporalio import activity, workflow
from temporalio.client import WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from bridge.of_run import of_run
from bridge.watching import answer_watchers
from bridge.wire import PAYLOAD_LIMIT, ModelRequest, RequestJson, WireMessage, json_of

REQUEST_QUERY = "model_request"
"""Name of the Temporal query with which a model activity fetches its request."""

TRANSCRIPT_QUERY = "transcript"
"""Name of the Temporal query that gives people the transcript of a run, live or finished."""

PAGE = 250 * 1024
"""Bytes. A query's answer is a payload too: longer requests are fetched in pages. External storage, which takes
payloads of over 256 KB, would keep every page for good."""

QUERY_TIMEOUT = timedelta(seconds=5)
"""For one attempt. A query goes to the worker that has the run in its cache, and is lost if that worker was just
killed: so it is soon sent again."""

QUERY_TRIES = 6
"""Half a minute, since a worker with much to do may take many seconds to replay a run."""


class Conversation(pydantic.BaseModel):
    """What one model, or one agent, of a run was asked and said."""

    label: str | None = None
    """As the loop gives it to `ai.stream_step`."""
    omitted: int = 0
    """How many messages at the beginning did not fit."""
    messages: list[WireMessage]
    usage: ai.Usage | None = None
    """Tokens of all these messages, the omitted ones too."""


class Transcript(Conversation):
    """Answer of the Temporal query `TRANSCRIPT_QUERY`: the conversation with the latest model call, and the others.

    Conversations are told apart by their label. Of several with the same one, the latest is here.
    """

    others: list[Conversation] = []


# ── In the workflow ──────────────────────────────────────────────────────────────────────────────────────


class RunTranscript:
    """The requests of the model calls in one workflow run, and the answers to them."""

    def __init__(self) -> None:
        self.usage: ai.Usage | None = None
        """Tokens of the run so far."""
        self.requests: dict[int, RequestJson] = {}
        """The model requests that wait for their activity, by number."""
        self.loaded: dict[bytes, ai.Message] = {}
        """Settled messages as the activities of this process have read them, by their JSON."""
        self._settled: dict[int, tuple[ai.Message, bytes]] = {}
        """By the id of the object."""
        self._conversations: dict[int, list[ai.Message]] = {}
        """The messages of the latest model calls, by number."""
        self._numbers = count(1)
        _cached[workflow.info().run_id] = self
        workflow.set_query_handler(REQUEST_QUERY, self._page)
        answer_watchers()
        if workflow.get_query_handler(TRANSCRIPT_QUERY) is None:  # the workflow may have one of its own
            workflow.set_query_handler(TRANSCRIPT_QUERY, self._transcript)

    @contextmanager
    def opened(self, request: ModelRequest) -> Iterator[int]:
        """Keep the request of a model call for its activity to fetch, by the number that is yielded."""
        number = next(self._numbers)
        self._keep(number, request.messages)
        # As JSON, since the loop may change its messages meanwhile.
        self.requests[number] = RequestJson(request, {id: json for id, (_, json) in self._settled.items()})
        try:
            yield number
        finally:
            del self.requests[number]

    def replied(self, request: ModelRequest, message: ai.Message) -> None:
        """Keep the answer to a request. The loop will add the results of its tool calls to the same object."""
        request.messages.append(message)
        if message.usage is not None:
            self.usage = message.usage if self.usage is None else self.usage + message.usage

    def settle(self, messages: list[ai.Message]) -> None:
        """Take these messages, and no others, for ones that change no more. Their JSON is made once, and read once in
        each process, however many calls they are a part of: a conversation does not cost more from turn to turn."""
        self._settled = {
            id(message): self._settled.get(id(message)) or (message, json_of(message)) for message in messages
        }
        kept = {json for _, json in self._settled.values()}
        self.loaded = {json: message for json, message in list(self.loaded.items()) if json in kept}

    def _page(self, number: int, start: int) -> bytes:
        return self.requests[number].whole()[start : start + PAGE]

    def _keep(self, number: int, messages: list[ai.Message]) -> None:
        """Keep the messages of a call, and forget those of the calls that it goes on from, or that have its label."""
        known = {id(message) for message in messages if message.role == "assistant"}
        kept = dict[str | None, int]()
        for earlier, said in self._conversations.items():
            if earlier not in self.requests:  # it is answered
                kept[_label(said)] = earlier
        for earlier, said in list(self._conversations.items()):
            answered = earlier not in self.requests
            if answered and (kept[_label(said)] != earlier or any(id(message) in known for message in said)):
                del self._conversations[earlier]
        self._conversations[number] = messages

    def _transcript(self) -> Transcript:
        latest: dict[str | None, list[ai.Message]] = {}
        for messages in reversed(self._conversations.values()):
            latest.setdefault(_label(messages), messages)
        first, *others = [_conversation(label, messages) for label, messages in latest.items()] or [
            _conversation(None, [])
        ]
        transcript = Transcript(**dict(first), others=others)
        while len(transcript.model_dump_json().encode()) > PAYLOAD_LIMIT:
            longest = max(
                [transcript, *transcript.others], key=lambda one: len(one.model_dump_json(include={"messages"}))
            )
            half = (len(longest.messages) + 1) // 2
            longest.omitted, longest.messages = longest.omitted + half, longest.messages[half:]
        return transcript


def _label(messages: list[ai.Message]) -> str | None:
    return next((message.label for message in reversed(messages) if message.label is not None), None)


def _conversation(label: str | None, messages: list[ai.Message]) -> Conversation:
    used = [message.usage for message in messages if message.usage is not None]
    return Conversation(label=label, messages=messages, usage=functools.reduce(operator.add, used) if used else None)


def run_transcript() -> RunTranscript:
    """The transcript of the current workflow run; the first call begins it."""
    return of_run(RunTranscript)


_cached: WeakValueDictionary[str, RunTranscript] = WeakValueDictionary()
"""Of the workflow runs that this process has in its cache, by run id."""


def is_cached(run_id: str) -> bool:
    """Whether this process has a workflow run in its cache."""
    return run_id in _cached


# ── In the model activity ────────────────────────────────────────────────────────────────────────────────


async def fetch_request(number: int) -> ModelRequest:
    """Fetch the request of the model call that this activity makes, from the workflow that scheduled it.

    Raises:
        RPCError: The run is over, or no worker answers for it.
    """
    info = activity.info()
    assert info.workflow_id is not None
    assert info.workflow_run_id is not None
    # Mostly the run is in the cache of this very worker. A look in there saves the way over the server, which takes as
    # long as all the rest of a call with a model that answers at once.
    here = _cached.get(info.workflow_run_id)
    # One look, since the workflow's thread may take it out at any time: when the run has to leave the cache.
    if here and (request := here.requests.get(number)):  # None also if the run is being replayed and is not as far yet
        return request.loaded(here.loaded)
    handle = activity.client().get_workflow_handle(info.workflow_id, run_id=info.workflow_run_id)
    data = bytearray()
    while True:
        page = await _fetch_page(handle, number, len(data))
        data += page
        if len(page) < PAGE:
            return ModelRequest.model_validate_json(bytes(data))


async def _fetch_page(handle: WorkflowHandle[Any, Any], number: int, start: int) -> bytes:
    tries = 0
    while True:
        try:
            page: bytes = await handle.query(
                REQUEST_QUERY, args=[number, start], result_type=bytes, rpc_timeout=QUERY_TIMEOUT
            )
            return page
        except RPCError as error:
            tries += 1
            if tries == QUERY_TRIES or error.status not in (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED):
                raise
