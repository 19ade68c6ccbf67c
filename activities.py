"""The two activities: all I/O of the model calls and of the wrapped tools.

`llm_stream_activity` fetches the transcript from its workflow, calls the model and drains the answer.
`tool_call_activity` calls the original function of a tool by name. Both heartbeat in the background, so that
the server notices a dead worker within seconds, and both sort their failures: what would fail again the same
way is final, the rest is left to the retry policy.

Nothing here names a tool, a model or a task queue. Copy this file together with durable.py.
"""

import asyncio
import base64
import json
import os
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, override
from weakref import WeakValueDictionary

import httpx
import pydantic
import vercel_ai_sdk as ai
from pydantic_core import from_json, to_jsonable_python
from temporalio import activity
from temporalio.client import WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode
from vercel_ai_sdk.ai_gateway.errors import GatewayError
from vercel_ai_sdk.core import llm as events

PAYLOAD_LIMIT = 2 * 1024 * 1024 - 1024
"""Bytes of JSON. Temporal servers refuse a payload of over 2 MiB by default; the rest is room for its metadata."""

QUERY = "model_request"
"""Name of the query with which a model activity fetches its request. durable.py registers the handler."""

TRANSCRIPT = "transcript"
"""Name of the query that gives people the conversation of a run, live or finished."""

APPROVAL = "approve_tool_call"
"""Name of the update that answers the question whether a tool may be called."""

QUESTION_MEMO = "waiting_for_approval."
"""Begins the keys of a run's memo under which the open questions are: see `open_questions()`."""

QUERY_PAGE = 250 * 1024
"""Bytes. A query's answer is a payload too: longer transcripts are fetched in pages. External storage, which takes
payloads of over 256 KB, would keep every page for good."""

QUERY_TIMEOUT = timedelta(seconds=5)
"""For one attempt at a query. It goes to the worker that has the run in its cache, and is lost if that one was just
killed: so it is soon sent again."""

QUERY_TRIES = 6
"""Attempts at a query before the attempt of the activity fails: half a minute, since a worker with much to do may take
many seconds to replay a run."""

LIVE_SECONDS = 0.05
"""Seconds from the first news of a model to the heartbeat that reports it. The worker sends heartbeats on no more often
than its `max_heartbeat_throttle_interval` says."""

LIVE_LIMIT = 20_000
"""Characters of an answer that are reported while it comes: the last ones, since every report has them all."""

MALFORMED_ANSWER_ATTEMPTS = 3
"""Attempts of a call, counting those that failed for other reasons: from this one on, an answer of nothing or not in
the asked format is final. A model may do better when it is asked again, but not for ever."""

TLS = httpx.create_ssl_context()
"""Made once: it takes 30 ms, which every model call would pay again."""

MIN_SECRET = 8
"""Characters. A shorter value of an environment variable is no secret, and may be part of any word."""

GATEWAY_URL = "https://ai-gateway.vercel.sh/v3/ai"

# Errors that the same input is taken to raise again. Everything else may be a passing fault and is retried. Mind that
# `JSONDecodeError` and pydantic's `ValidationError` are ValueErrors: a tool that cannot read what a service answers
# should raise an error of its own instead, a `RuntimeError` say.
FINAL_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
    ValueError,
    httpx.InvalidURL,
    httpx.LocalProtocolError,
    httpx.UnsupportedProtocol,
)

# ── What crosses between workflow and activities ─────────────────────────────────────────────────────────


def _dump_message(message: ai.Message, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
    # JSON has no bytes, and `FilePart.data` may be a string as well: mark the ones that have to turn back.
    parts, binary = list(message.parts), []
    for i, part in enumerate(parts):
        if part.type == "file" and isinstance(part.data, bytes):
            parts[i] = part.model_copy(update={"data": base64.b64encode(part.data).decode()})
            binary.append(i)
    dumped: dict[str, Any] = handler(message.model_copy(update={"parts": parts}) if binary else message)
    for i in binary:
        dumped["parts"][i]["encoding"] = "base64"
    return dumped


def _load_message(value: Any) -> Any:
    if isinstance(value, dict):
        for part in value.get("parts", ()):
            if isinstance(part, dict) and part.get("type") == "file" and part.pop("encoding", None) == "base64":
                part["data"] = base64.b64decode(part["data"])
    return value


WireMessage = Annotated[ai.Message, pydantic.WrapSerializer(_dump_message), pydantic.BeforeValidator(_load_message)]
"""An `ai.Message` that comes out of JSON as it went in, binary files included."""


def text_of(message: ai.Message) -> str:
    """All the text of a message. `Message.text` is only the first part of it."""
    return "".join(part.text for part in message.parts if isinstance(part, ai.TextPart))


class ToolSpec(pydantic.BaseModel):
    """What the model is told about a tool (`ai.ToolLike`)."""

    name: str
    description: str
    param_schema: dict[str, Any]


class ModelRequest(pydantic.BaseModel):
    """Everything one model call is made of. Stays out of the history: the activity queries its workflow for it."""

    messages: list[WireMessage]
    tools: list[ToolSpec] = []
    output_type: pydantic.ImportString[type[pydantic.BaseModel]] | None = None


class ModelCall(pydantic.BaseModel):
    """Input of `llm_stream_activity`: whom to ask, and which request of its workflow run, counted from 1, to fetch."""

    model: str
    number: int
    idle_timeout: timedelta


class ModelReply(pydantic.BaseModel):
    """Result of `llm_stream_activity`. `finish_reason` is None where the model class does not tell it."""

    message: WireMessage
    finish_reason: str | None = None


class ToolCall(pydantic.BaseModel):
    """Input of `tool_call_activity`."""

    tool: str
    arguments: dict[str, pydantic.JsonValue]


class ToolReply(pydantic.BaseModel):
    """Result of `tool_call_activity`: what the function returned, as JSON, which is how the model will read it."""

    result: pydantic.JsonValue


class Transcript(pydantic.BaseModel):
    """Answer of the query `TRANSCRIPT`. `omitted` is how many messages at the beginning did not fit."""

    omitted: int = 0
    messages: list[WireMessage]


class Approval(pydantic.BaseModel):
    """Argument of the update `APPROVAL`: whether a tool call may be made. The model is told the reason if not."""

    call: str
    """Which question this answers, as `open_questions()` has it; not the model's id of the call."""
    approved: bool
    reason: str = ""


def open_questions[T](memo: Mapping[str, T]) -> dict[str, T]:
    """The tool calls of a run that wait for an approval: from its memo, the question by the id to answer it with."""
    return {key.removeprefix(QUESTION_MEMO): memo[key] for key in memo if key.startswith(QUESTION_MEMO)}


class LiveText(pydantic.BaseModel):
    """What the model has said so far: the details of a model activity's heartbeats.

    Heartbeats cost no history. Read them with `WorkflowHandle.describe()`, from the pending activities. After a
    failed attempt its last heartbeat stays there for a while: `attempt` tells whose it is.
    """

    attempt: int
    text: str
    reasoning: str = ""
    start: int = 0
    """How many characters of the text are left out before this part of it."""


# ── The model ────────────────────────────────────────────────────────────────────────────────────────────


class IncompleteAnswer(GatewayError):
    """The model's stream broke off, or reported an error in the middle."""


class _ErrorPartTransport(httpx.AsyncHTTPTransport):
    """Raises when an `error` part arrives in the stream: `GatewayModel` skips it, and with it the reason."""

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        if response.status_code < 400 and isinstance(response.stream, httpx.AsyncByteStream):
            response.stream = _ErrorPartStream(response.stream)
        return response


class _ErrorPartStream(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    @override
    async def __aiter__(self) -> AsyncIterator[bytes]:
        line = b""
        async for chunk in self._stream:
            *complete, line = (line + chunk).split(b"\n")
            for data in complete:
                if data.startswith(b"data: ") and b'"error"' in data:
                    self._check(data.removeprefix(b"data: "))
            yield chunk

    def _check(self, data: bytes) -> None:
        with suppress(ValueError):  # no JSON: the SDK skips it as well
            match json.loads(data):
                case {"type": "error", "error": {"message": reason}} | {"type": "error", "error": reason}:
                    raise IncompleteAnswer(f"the model's stream reported an error: {reason}")

    @override
    async def aclose(self) -> None:
        await self._stream.aclose()


class CheckedGatewayModel(ai.ai_gateway.GatewayModel):
    """The SDK's `GatewayModel`, with an end to its stream that can be relied on.

    Reads `AI_GATEWAY_API_KEY` and `AI_GATEWAY_BASE_URL` from the environment of the worker.

    Args:
        model: The model's id, as `provider/model`.

    Raises:
        GatewayError: From `stream()`, as in the SDK; also for an `error` part in the middle of the stream and for
            a stream without a `finish` part, which the SDK would return as if they were whole answers.
    """

    def __init__(self, model: str) -> None:
        url = httpx.URL(os.environ.get("AI_GATEWAY_BASE_URL") or GATEWAY_URL)
        # httpx does not look for a proxy in the environment when it is given a transport.
        proxies = urllib.request.getproxies()
        proxy = None if urllib.request.proxy_bypass(url.host) else proxies.get(url.scheme) or proxies.get("all")
        if proxy and "://" not in proxy:
            proxy = f"http://{proxy}"
        super().__init__(
            model,
            base_url=str(url),
            # The transport below reads the stream as it comes, which a compressed one would hide from it.
            headers={"Accept-Encoding": "identity"},
            # private: the SDK has no public way to see the parts that it drops.
            _transport=_ErrorPartTransport(verify=TLS, proxy=proxy),
        )
        self.finish_reason: str | None = None
        """Why the latest stream ended, as the model said; None until it has."""

    @override
    async def stream_events(
        self,
        messages: list[ai.Message],
        tools: Sequence[ai.ToolLike] | None = None,
        output_type: type[pydantic.BaseModel] | None = None,
    ) -> AsyncGenerator[events.StreamEvent]:
        self.finish_reason = None
        async with aclosing(_separate_calls(super().stream_events(messages, tools, output_type))) as stream:
            async for event in stream:
                if isinstance(event, events.MessageDone):
                    self.finish_reason = event.finish_reason
                yield event
        if self.finish_reason is None:
            raise IncompleteAnswer("the model's stream ended before its finish part")
        if self.finish_reason == "error":
            raise IncompleteAnswer("the model's stream finished with an error")


async def _separate_calls(stream: AsyncGenerator[events.StreamEvent]) -> AsyncGenerator[events.StreamEvent]:
    """Give a second tool call with a used id an id of its own; the SDK's `StreamHandler` would merge the two.

    A call normally comes twice, streamed (`tool-input-*`) and then whole (`tool-call`), so a repeated id means
    another call only if its name or arguments differ. What repeats an id is held back until that is known.
    """
    whole: dict[str, list[tuple[str, str]]] = {}  # names and arguments, by id
    current: dict[str, tuple[str, str]] = {}
    async with aclosing(stream):
        async for event in stream:
            repeats = getattr(event, "tool_call_id", None) in whole
            match event:
                case events.ToolStart(tool_call_id=id, tool_name=name):
                    current[id] = (name, "")
                case events.ToolArgsDelta(tool_call_id=id, delta=delta) if id in current:
                    name, arguments = current[id]
                    current[id] = (name, arguments + delta)
                case events.ToolEnd(tool_call_id=id) if id in current:
                    call, known = current.pop(id), whole.setdefault(id, [])
                    if known[-1:] == [(call[0], "")]:
                        known.pop()  # was announced without arguments
                    if not any(_same_call(call, other) for other in known):
                        known.append(call)
                        if repeats:
                            new_id = id if len(known) == 1 else f"{id}-{len(known)}"
                            yield events.ToolStart(new_id, call[0])
                            yield events.ToolArgsDelta(new_id, call[1])
                            yield events.ToolEnd(new_id)
            if not repeats:
                yield event


def _same_call(a: tuple[str, str], b: tuple[str, str]) -> bool:
    try:
        return a[0] == b[0] and (a[1] == b[1] or from_json(a[1]) == from_json(b[1]))
    except ValueError:
        return False


@dataclass(frozen=True)
class ModelActivities:
    """Holds what the model activity depends on, so that a worker can be given another model class.

    Args:
        make_model: Makes the model to call from the name that the workflow's `TemporalLanguageModel` has. Called for
            every call, since a model may keep the state of its stream. It has to raise when a stream breaks off, or
            half a message is taken for an answer: the SDK's gateway and OpenAI models do not, this file's one does.
    """

    make_model: Callable[[str], ai.LanguageModel] = CheckedGatewayModel

    @activity.defn
    async def llm_stream_activity(self, call: ModelCall) -> ModelReply:
        """Fetch a request from the calling workflow, send it to the model, and return the finished message.

        Raises:
            ApplicationError: Not retryable where asking again cannot help (a bad key, an unknown model, a bad request:
                see `final`), for an answer over `PAYLOAD_LIMIT`, and for an empty or malformed one from the attempt
                `MALFORMED_ANSWER_ATTEMPTS` on; retryable otherwise.
        """
        with _sorted_failures():
            async with _heartbeats() as live:
                request = await _fetch_request(call.number)
                model = self.make_model(call.model)
                message = await _drain(model, request, call.idle_timeout, live)
                reply = ModelReply(
                    message=_well_formed(message, request),
                    finish_reason=getattr(model, "finish_reason", None),
                )
                if not (message.tool_calls or message.files or text_of(message).strip()):
                    raise _malformed_answer(f"the model answered with nothing (finish reason: {reply.finish_reason})")
                _check_size("the model's answer", reply)
                return reply


class OpenRequests(dict[int, bytes]):
    """The model requests of a workflow run that wait for their activity, as JSON, by number. durable.py fills it."""


open_requests: WeakValueDictionary[str, OpenRequests] = WeakValueDictionary()
"""Of the workflow runs that this process has in its cache, by run id."""


async def _fetch_request(number: int) -> ModelRequest:
    """Ask the workflow that scheduled this activity for the transcript: a query's answer is not in the history."""
    info = activity.info()
    assert info.workflow_id is not None
    assert info.workflow_run_id is not None
    # Mostly the run is in the cache of this very worker. A look in there saves the way over the server, which takes as
    # long as all the rest of a call with a model that answers at once.
    here = open_requests.get(info.workflow_run_id, OpenRequests())
    # One look, since the workflow's thread may take it out at any time: when the run has to leave the cache.
    if request := here.get(number):  # None also if the run is being replayed and is not as far yet
        return ModelRequest.model_validate_json(request)
    handle = activity.client().get_workflow_handle(info.workflow_id, run_id=info.workflow_run_id)
    data = bytearray()
    while True:
        page = await _query(handle, number, len(data))
        data += page
        if len(page) < QUERY_PAGE:
            return ModelRequest.model_validate_json(bytes(data))


async def _query(handle: WorkflowHandle[Any, Any], number: int, start: int) -> bytes:
    tries = 0
    while True:
        try:
            page: bytes = await handle.query(QUERY, args=[number, start], result_type=bytes, rpc_timeout=QUERY_TIMEOUT)
            return page
        except RPCError as error:
            tries += 1
            if tries == QUERY_TRIES or error.status not in (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED):
                raise


async def _drain(model: ai.LanguageModel, request: ModelRequest, idle_timeout: timedelta, live: "_Live") -> ai.Message:
    message: ai.Message | None = None
    clock = asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(idle_timeout.total_seconds()) as stalled:
            stream = model.stream(request.messages, request.tools or None, output_type=request.output_type)
            async with aclosing(stream):
                async for message in stream:  # the last one is the whole message
                    live.show(message)
                    stalled.reschedule(clock() + idle_timeout.total_seconds())
    except TimeoutError:
        if stalled.expired():
            raise TimeoutError(f"the model sent nothing for {idle_timeout.total_seconds():g} s") from None
        raise
    except (json.JSONDecodeError, pydantic.ValidationError) as error:
        if request.output_type is None:
            raise
        problem = f"the model's answer is not a {request.output_type.__name__}: {_one_line(error)}"
        raise _malformed_answer(problem) from None
    except KeyError as error:  # the SDK's, for a part of a block that was never begun
        raise _malformed_answer(f"the model's stream is malformed ({_one_line(error)})") from None
    if message is None:
        raise _malformed_answer("the model's stream was empty")
    return message


def _malformed_answer(problem: str) -> ApplicationError:
    last = activity.info().attempt >= MALFORMED_ANSWER_ATTEMPTS
    return ApplicationError(problem, type="MalformedAnswer", non_retryable=last)


class ToolError(json.JSONDecodeError):
    """A tool call that failed for good, for the model to read.

    It has nothing to do with JSON. But `ai.execute_tool` reports only `JSONDecodeError` and pydantic's
    `ValidationError` to the model, and lets anything else end the run.
    """

    def __init__(self, message: str) -> None:
        ValueError.__init__(self, message)


@ai.tool
async def rejected_tool_call(tool: str, arguments: str, problem: str) -> None:
    """Answer a call that no tool can take; `_well_formed` puts it in the place of such a call."""
    raise ToolError(problem)


def _well_formed(message: ai.Message, request: ModelRequest) -> ai.Message:
    """Make a model's message safe to keep: whatever is in the transcript is sent again with every later call.

    Calls that no offered tool can take (a made-up name, arguments that are no JSON object) become calls of the
    `rejected_tool_call`, which answers the model with the problem; every tool call gets an id that is unique in the
    transcript; halves of surrogate pairs, which cannot be encoded, are joined or replaced.
    """
    offered = [tool.name for tool in request.tools]
    ids = {part.tool_call_id for earlier in request.messages for part in earlier.tool_calls}
    parts: list[ai.Part] = []
    for part in message.parts:
        match part:
            case ai.TextPart() | ai.ReasoningPart():
                parts.append(part.model_copy(update={"text": _encodable(part.text), "delta": None}))
            case ai.ToolPart():
                name, arguments, id = map(_encodable, (part.tool_name, part.tool_args, part.tool_call_id))
                problem = _call_problem(name, arguments, offered)
                if problem:
                    call = {"tool": name, "arguments": arguments, "problem": problem}
                    name, arguments = rejected_tool_call.name, json.dumps(call, ensure_ascii=False)
                unique, n = id or "call", 1
                while unique in ids:
                    n += 1
                    unique = f"{id or 'call'}-{n}"
                ids.add(unique)
                update = {"tool_call_id": unique, "tool_name": name, "tool_args": arguments, "args_delta": None}
                parts.append(part.model_copy(update=update))
            case _:
                parts.append(part)
    return message.model_copy(update={"parts": parts})


def _call_problem(name: str, arguments: str, offered: list[str]) -> str | None:
    if name not in offered:
        return f"there is no tool {name!r}; the tools are: {', '.join(offered) or 'none'}"
    try:
        # Stricter than json.loads, which lets NaN and lone surrogates through to the next request.
        value = from_json(arguments or "{}", allow_inf_nan=False)
        json.dumps(value, allow_nan=False)  # 1e999 is read as infinity
    except ValueError as error:
        return f"the arguments of {name} are not valid JSON: {error}"
    return None if isinstance(value, dict) else f"the arguments of {name} must be a JSON object"


def _encodable(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# ── The tools ────────────────────────────────────────────────────────────────────────────────────────────

_originals: dict[str, Callable[..., Awaitable[object]]] = {}


def register_tool[**P, R](name: str, function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """Keep the original function of a tool for `tool_call_activity`, and return it as the activity will call it.

    `temporal_tool()` calls this when a module is imported, so that every worker process has every tool, also one
    that never ran the workflow.

    Args:
        name: The tool's name, as the model knows it.
        function: The function that the SDK's `@ai.tool` was put on. The arguments come from JSON and are turned
            into what its annotations say: pydantic models, dates, …
    """
    _originals[name] = typed = pydantic.validate_call(function)
    return typed


@activity.defn
async def tool_call_activity(call: ToolCall) -> ToolReply:
    """Call the original function of a tool and return what it returned, as JSON.

    Raises:
        ApplicationError: Not retryable for an error that the same arguments would cause again (see `final`), and
            for a result that is not JSON or over `PAYLOAD_LIMIT`; retryable for the rest, and for a tool that this
            worker does not have, since another one may.
    """
    function = _originals.get(call.tool)
    if function is None:
        raise ApplicationError(f"this worker has no tool {call.tool!r}", type="UnknownTool")
    with _sorted_failures():
        async with _heartbeats():
            result = await function(**call.arguments)
        try:
            reply = ToolReply(result=to_jsonable_python(result, bytes_mode="base64"))
            json.dumps(reply.result, allow_nan=False)
        except ValueError as error:
            raise ValueError(f"the result of {call.tool} is not JSON: {_one_line(error)}") from None
        _check_size(f"the result of {call.tool}", reply)
        return reply


# ── Both ─────────────────────────────────────────────────────────────────────────────────────────────────


class _Live:
    """What the heartbeats of an activity tell."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self._message: ai.Message | None = None

    def show(self, message: ai.Message) -> None:
        self._message = message
        self.changed.set()

    def details(self) -> list[LiveText]:
        if self._message is None:
            return []
        text = text_of(self._message)
        reasoning = "".join(part.text for part in self._message.parts if isinstance(part, ai.ReasoningPart))
        live = LiveText(
            attempt=activity.info().attempt,
            text=_encodable(text[-LIVE_LIMIT:]),
            reasoning=_encodable(reasoning[-LIVE_LIMIT:]),
            start=max(0, len(text) - LIVE_LIMIT),
        )
        return [live]


@asynccontextmanager
async def _heartbeats() -> AsyncGenerator[_Live]:
    """Heartbeat while the body runs, also while it only waits: it is how the server knows that the worker lives."""
    live = _Live()
    # Without a timeout too, since a heartbeat is how an activity hears that it is cancelled.
    seconds = (activity.info().heartbeat_timeout or timedelta(minutes=1)).total_seconds() / 3

    async def beat() -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(live.changed.wait(), seconds)
                await asyncio.sleep(LIVE_SECONDS)  # more may come, and a call that is done by then needs no heartbeat
            live.changed.clear()
            activity.heartbeat(*live.details())

    task = asyncio.create_task(beat())
    try:
        yield live
    finally:
        task.cancel()


@contextmanager
def _sorted_failures() -> Iterator[None]:
    """Turn what the body raises into an `ApplicationError` that says whether to try again, without any secret."""
    try:
        yield
    except Exception as error:
        while isinstance(error, ExceptionGroup):  # of a tool that uses a TaskGroup
            error = error.exceptions[0]
        if isinstance(error, ApplicationError):
            raise error
        # `from None`: a cause would put its own, unredacted text into the history.
        raise ApplicationError(_one_line(error), type=type(error).__name__, non_retryable=final(error)) from None


def final(error: BaseException) -> bool:
    """Whether the same call would fail the same way again, so that retrying it only costs time and money.

    An HTTP status decides where there is one (`status_code` on the error, as the SDKs of the model providers have
    it, or on its `response`): 4xx is final but for 408, 409, 425 and 429. Otherwise the type decides.
    """
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in (408, 409, 425, 429)
    if isinstance(error, GatewayError) and error.__cause__ is not None:
        # The SDK wraps whatever goes wrong, a bug included, into an error that looks like the server's.
        error = error.__cause__
    return isinstance(error, FINAL_ERRORS)


def _one_line(error: BaseException) -> str:
    """The error's text in one line, without the values of secrets in the environment (a server may echo them)."""
    text = str(error)
    if isinstance(error, GatewayError) and not isinstance(error, IncompleteAnswer):
        # What the SDK says of a lost connection leads astray, and of a status it says nothing.
        cause = error.__cause__
        text = f"{type(cause).__name__}: {cause}" if cause else f"HTTP {error.status_code}: {error}"
    elif isinstance(error, KeyError):  # whose text is just the key
        text = f"{type(error).__name__}: {text}"
    text = " ".join(text.split()) or type(error).__name__
    for name, secret in os.environ.items():
        if name.endswith(("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")) and len(secret) >= MIN_SECRET:
            for shown in (secret, repr(secret)[1:-1], " ".join(secret.split())):
                text = text.replace(shown, f"${name}")
    return _encodable(text)[:2000]  # characters: every failed attempt stands in the history or the Web UI


def _check_size(what: str, value: pydantic.BaseModel) -> None:
    size = len(value.model_dump_json().encode())
    if size > PAYLOAD_LIMIT and activity.client().data_converter.external_storage is None:
        raise ApplicationError(
            f"{what} has {size:,} bytes, over Temporal's limit of {PAYLOAD_LIMIT:,} for one payload",
            type="PayloadTooLarge",
            non_retryable=True,
        )
