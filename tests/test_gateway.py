"""The gateway's stream in the forms in which people met it: nothing of it is lost, and what is odd has one outcome.

The numbers are those of issue 13. A run takes milliseconds and a stand-in a fifth of a second, so the rows of a table
are runs at the same time, and one test.
"""

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import agents
import pytest
import vercel_ai_sdk as ai
from conftest import make_worker
from standin import Call, Reply, StandIn, event, parts, raw, text, text_parts, unescaped
from standin import json as page
from starlette.responses import Response
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import Replayer

from app.demo import Part, finish, tool_call
from bridge.transcript import TRANSCRIPT_QUERY, Transcript
from bridge.wire import Metadata, ModelRequest, is_provider_executed, text_of
from options.gateway import GatewayModel
from plugin import DurableAgents

type Start = Callable[..., Awaitable[WorkflowHandle[Any, Any]]]
type Converse = Callable[..., Awaitable[list[dict[str, Any]]]]
type AtOnce = Callable[[type, dict[str, list[Reply]]], Awaitable[dict[str, Any]]]


@pytest.fixture
def start(client: Client, queue: str, standin: StandIn) -> Start:
    async def start(cls: type, request: object, *, task_queue: str = queue) -> WorkflowHandle[Any, Any]:
        run = cls.run  # type: ignore[attr-defined]  # every workflow has one
        return await client.start_workflow(run, request, id=uuid.uuid4().hex, task_queue=task_queue)

    return start


async def outcome_of(handle: WorkflowHandle[Any, Any]) -> Any:
    """The result of a run, or its failure."""
    try:
        async with asyncio.timeout(30):
            return await handle.result()
    except WorkflowFailureError as failure:
        error: BaseException = failure
        while error.__cause__:
            error = error.__cause__
        return error
    except TimeoutError as error:
        await handle.terminate()  # or it would take the replies of another test
        return error


@pytest.fixture
def at_once(start: Start, standin: StandIn) -> AtOnce:
    """Starts a run for every name, with the name as the query, and answers each with replies of its own, the last one
    again and again. Returns the outcomes by name."""

    async def at_once(cls: type, scripts: dict[str, list[Reply]]) -> dict[str, Any]:
        left = {name: list(replies) for name, replies in scripts.items()}

        async def answer(call: Call) -> Response:
            replies = left[call.query]
            reply = (replies.pop(0) if len(replies) > 1 else replies[0])(call)
            return await reply if isinstance(reply, Awaitable) else reply

        async def run(name: str) -> Any:
            return await outcome_of(await start(cls, request_of(name) if cls is agents.SendWorkflow else name))

        standin.play(*[answer] * 1000)
        return dict(zip(scripts, await asyncio.gather(*map(run, scripts)), strict=True))

    return at_once


@pytest.fixture(params=["plain", "durable", "by query", "replayed", "continued as new"])
def converse(
    request: pytest.FixtureRequest, client: Client, start: Start, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> Converse:
    """Has a loop answered with a stream and then with a text, in all the ways that a conversation may take. Returns the
    prompt of the second request: what the model is told of its first answer."""
    way = request.param
    if way == "by query":
        monkeypatch.setattr("bridge.transcript._cached", {})
    if way == "continued as new":
        monkeypatch.setattr("options.continuing.HISTORY_LIMIT", 10)

    async def converse(*stream: Part) -> list[dict[str, Any]]:
        standin.play(parts(*stream, finish("tool-calls")), text("done"))
        if way == "plain":
            await agents.transcript_of(ai.run(agents.other_agent, GatewayModel("m"), "go"))
        else:
            async with AsyncExitStack() as stack:
                options = {}
                if way == "replayed":  # from the beginning, for every step
                    options["task_queue"] = uuid.uuid4().hex
                    await stack.enter_async_context(make_worker(client, options["task_queue"], max_cached_workflows=0))
                if way == "continued as new":
                    handle = await start(agents.LongWorkflow, agents.LongRequest(query="go"), **options)
                else:
                    handle = await start(agents.OtherWorkflow, "go", **options)
                assert not isinstance(outcome := await outcome_of(handle), BaseException), outcome
            runs = {handle.first_execution_run_id, (await handle.describe()).run_id}
            assert len(runs) == 1 + (way == "continued as new")
            replayer = Replayer(workflows=[agents.LongWorkflow, agents.OtherWorkflow], plugins=[DurableAgents()])
            for run in runs:
                await replayer.replay_workflow(await client.get_workflow_handle(handle.id, run_id=run).fetch_history())
        assert len(standin.calls) == 2
        return standin.calls[1].prompt

    return converse


def request_of(query: str) -> ModelRequest:
    return ModelRequest(messages=ai.make_messages(user=query))


def second_request(standin: StandIn, name: str) -> Call:
    return [call for call in standin.calls if call.query == name][1]


def block(kind: str, *deltas: str | None, **metadata: Metadata) -> list[Part]:
    """A block of text or reasoning; its id is the same for all."""
    middle = [{"type": f"{kind}-delta", "id": "0", "delta": delta} for delta in deltas]
    return signed([{"type": f"{kind}-start", "id": "0"}, *middle, {"type": f"{kind}-end", "id": "0"}], **metadata)


def signed(stream: Iterable[Part], **metadata: Metadata) -> list[Part]:
    """The parts, with metadata on their `start`, their `end` or the last `delta`."""
    stream = list(stream)
    for place, sent in metadata.items():
        stream[{"start": 0, "delta": -2, "end": -1}[place]]["providerMetadata"] = sent
    return stream


def count_legs(id: str, **metadata: Metadata) -> list[Part]:
    """A call of a tool that works."""
    return signed(tool_call(id, "count_legs", {"legs": []}), **metadata)


def search(id: str, arguments: object, *results: object, name: str = "search") -> list[Part]:
    """A call that the provider made itself, and its results."""
    of = {"toolCallId": id, "toolName": name}
    call = {"type": "tool-call", **of, "input": arguments, "providerExecuted": True}
    found = [{"type": "tool-result", **of, "result": result, "preliminary": True} for result in results]
    return [call, *found[:-1], *({**part, "preliminary": False} for part in found[-1:])]


# ── 1. Lines ─────────────────────────────────────────────────────────────────────────────────────────────

SEPARATORS = ["\u2028", "\u2029", "\x85"]
"""They end a line for `str.splitlines()`, but not in server-sent events. JavaScript leaves them raw in JSON."""

TEXT = "".join(f"one{separator}" for separator in SEPARATORS) + "two \ufeff gr\u00fc\u00dfe \U0001f600"
STREAM = [*text_parts(TEXT, " end."), finish("stop")]
LINES = [event(part) for part in STREAM]
DONE = b"data: [DONE]\n\n"

FRAMES: dict[str, bytes] = {
    "LF": b"".join(LINES) + DONE,
    "CRLF": b"".join(event(part, "\r\n") for part in STREAM) + b"data: [DONE]\r\n\r\n",
    "CR": b"".join(event(part, "\r") for part in STREAM) + b"data: [DONE]\r\r",
    "no [DONE]": b"".join(event(part, "\r") for part in STREAM),
    "no space after the colon": b"".join(event(part, field="data:") for part in STREAM) + b"data:[DONE]\n\n",
    "byte order mark": b"\xef\xbb\xbf" + b"".join(LINES) + DONE,
    "comments": b": ping\n\n" + b":\n".join(LINES) + b"\n: ping\n\n" + DONE,
    "other fields": b"event: part\nid: 1\nretry: 10\nnonsense\n".join([b"", *LINES]) + b"event: end\n\n" + DONE,
    "events of several lines": b"".join(
        event(part).replace(b", ", b",\ndata: ").replace(b"{", b"{\ndata: ") for part in STREAM
    ),
    "events of nothing": b"data\n\ndata:\n\n" + b"\n\n\n".join(LINES) + DONE,
}


async def test_1_a_stream_is_split_into_lines_as_its_standard_says(at_once: AtOnce) -> None:
    whole = {name: [raw(data)] for name, data in FRAMES.items()}
    bytewise = {f"{name}, byte by byte": [raw(*(bytes([b]) for b in data))] for name, data in FRAMES.items()}
    latin = {"another charset in the header": [raw(FRAMES["LF"], media_type="text/event-stream; charset=iso-8859-1")]}
    outcomes = await at_once(agents.SendWorkflow, whole | bytewise | latin)
    assert {name: text_of(message) for name, message in outcomes.items()} == dict.fromkeys(outcomes, f"{TEXT} end.")


async def test_1_separators_that_end_no_line_arrive_in_text_and_arguments(at_once: AtOnce, standin: StandIn) -> None:
    def told(separator: str) -> list[Reply]:
        said = text_parts(f"first line{separator}second line", " end.")
        arguments = json.dumps({"legs": [], "note": f"a{separator}b"}, ensure_ascii=False)
        return [unescaped(*said, *tool_call("1", "count_legs", arguments), finish("tool-calls")), text("done")]

    outcomes = await at_once(agents.OtherWorkflow, {separator: told(separator) for separator in SEPARATORS})
    for separator, messages in outcomes.items():
        assert messages[0].text == f"first line{separator}second line end."
        [result] = second_request(standin, separator).tool_results
        assert result["output"]["value"] == {"legs": 0, "ends": [], "note": f"a{separator}b"}


# ── 2. Blocks with one id ────────────────────────────────────────────────────────────────────────────────


async def test_2_blocks_with_one_id_are_all_kept_in_order(converse: Converse) -> None:
    kinds = ["reasoning", "reasoning", "text", "text", "reasoning", "text"]
    stream = [part for i, kind in enumerate(kinds) for part in block(kind, f"{i}", "!")]
    _, assistant, _ = await converse(*stream, *count_legs("1"))
    assert assistant["content"][:-1] == [{"type": kind, "text": f"{i}!"} for i, kind in enumerate(kinds)]


# ── 3. Odd things ────────────────────────────────────────────────────────────────────────────────────────


def with_line(line: str) -> Reply:
    return raw(*map(event, text_parts("?")), f"data: {line}\n\n".encode(), event(finish("stop")), DONE)


def with_delta(delta: object) -> Reply:
    return parts(*text_parts("?"), {"type": "text-delta", "id": "t", "delta": delta}, finish("stop"))


MALFORMED: dict[str, tuple[Reply, list[str]]] = {
    "no JSON": (with_line('{"type": "text-delta"'), ["a part is no JSON (Expecting", '{"type": "text-delta"']),
    "NaN": (with_line('{"type": "text-delta", "id": "t", "delta": NaN}'), ["a part is no JSON (NaN", "-delta"]),
    "NaN in metadata": (with_line('{"type": "text-end", "id": "t", "providerMetadata": NaN}'), ["NaN", "text-end"]),
    "brackets": (with_line("[" * 100_000), ["a part is no JSON", "[[["]),
    "list": (with_line('["text"]'), ['a part has no type: ["text"]']),
    "string": (with_line('"text"'), ['a part has no type: "text"']),
    "null": (with_line("null"), ["a part has no type: null"]),
    "no type": (with_line('{"id": "t"}'), ['a part has no type: {"id": "t"}']),
    "type of a list": (with_line('{"type": ["text-delta"]}'), ['a part has no type: {"type": ["text-delta"]}']),
    "delta of an object": (with_delta({"text": "a"}), ['the delta of a text-delta is no text: {"text": "a"}']),
    "delta of a list": (with_delta(["a"]), ['the delta of a text-delta is no text: ["a"]']),
    "delta of a number": (with_delta(7), ["the delta of a text-delta is no text: 7"]),
    "delta of a truth": (with_delta(False), ["the delta of a text-delta is no text: false"]),
    "no delta": (with_line('{"type": "text-delta", "id": "t"}'), ["a text-delta has no delta"]),
    "no delta of arguments": (
        parts(next(tool_call("1", "t", "")), {"type": "tool-input-delta", "id": "1"}),
        ["a tool-input-delta has no delta"],
    ),
    "never begun": (with_line('{"type": "reasoning-end", "id": "t"}'), ["a reasoning-end of a block that was never"]),
    "file of nothing": (with_line('{"type": "file", "mediaType": "image/png"}'), ["a file has no data"]),
}


async def test_3_an_answer_that_cannot_be_read_is_asked_for_again_and_then_reported(
    at_once: AtOnce, standin: StandIn
) -> None:
    again = {f"{name}, once": [reply, text("whole")] for name, (reply, _) in MALFORMED.items()}
    outcomes = await at_once(agents.AnswerWorkflow, again | {name: [reply] for name, (reply, _) in MALFORMED.items()})
    assert {name: outcomes[name] for name in again} == dict.fromkeys(again, "whole")
    attempts = Counter(call.query for call in standin.calls)
    assert attempts == dict.fromkeys(again, 2) | dict.fromkeys(MALFORMED, 3)
    for name, (_, told) in MALFORMED.items():
        failure = outcomes[name]
        assert isinstance(failure, ApplicationError), name
        assert (failure.type, failure.non_retryable) == ("UnusableAnswer", True)
        assert failure.message.startswith("the model's stream is malformed: ")
        assert [piece for piece in told if piece not in failure.message] == []
        # What Python says of its own mistakes.
        assert not any(phrase in failure.message for phrase in ("Error:", "object has no", "object is not", "must be"))
        assert len(failure.message) < 300


def ended(**last: object) -> list[Part]:
    return [*text_parts("whole"), {**finish("stop", 10, 5), **last}]


def amid(part: Part) -> list[Part]:
    first, *others = ended()
    return [part, first, part, *others]


COUNTED = {"inputTokens": {"total": 10}, "outputTokens": {"total": 5}}
ODD_COUNTS: list[object] = ["10", -1, None, True, {}, [10]]
ODD_USAGES: list[object] = [None, [], "10", 10]
ODD_REASONS: list[object] = [None, {}, {"unified": None}, {"unified": 7}, {"raw": "stop"}, [], 7, ""]
ODD_METADATA: list[object] = [None, "odd", ["odd"], {"odd": "odd"}, {"odd": None}, {"odd": [1]}]
IGNORED: list[Part] = [
    {"type": "stream-start", "warnings": None},
    {"type": "response-metadata", "id": "r", "timestamp": 7},
    {"type": "source", "sourceType": "url", "url": "https://example.com"},
    {"type": "raw", "rawValue": None},
    {"type": "sparkle", "id": {}, "delta": ["?"]},
    {"type": "text-sparkle", "id": "t", "delta": "?"},
    {"type": ""},
]

KEPT: dict[str, tuple[list[Part], str, tuple[int, int] | None]] = {
    "null delta": ([*block("text", "who", None, "le"), finish("stop", 10, 5)], "stop", (10, 5)),
    **{f"part {part}": (amid(part), "stop", (10, 5)) for part in IGNORED},
    **{f"reason {reason}": (ended(finishReason=reason), "other", (10, 5)) for reason in ODD_REASONS},
    "no reason": ([*text_parts("whole"), {"type": "finish", "usage": COUNTED}], "other", (10, 5)),
    "fractions": (ended(usage={"inputTokens": {"total": 9.5}, "outputTokens": {"total": 5.0}}), "stop", (10, 5)),
    **{
        f"count {count}": (ended(usage=COUNTED | {"inputTokens": {"total": count}}), "stop", (0, 5))
        for count in ODD_COUNTS
    },
    "counts of a string": (ended(usage=COUNTED | {"inputTokens": "10"}), "stop", (0, 5)),
    **{f"usage {usage}": (ended(usage=usage), "stop", None) for usage in ODD_USAGES},
    **{
        f"metadata {sent}": ([{**part, "providerMetadata": sent} for part in ended()], "stop", (10, 5))
        for sent in ODD_METADATA
    },
}


async def test_3_an_answer_is_kept_where_what_is_odd_is_none_of_it(at_once: AtOnce, standin: StandIn) -> None:
    outcomes = await at_once(agents.SendWorkflow, {name: [parts(*stream)] for name, (stream, _, _) in KEPT.items()})
    assert len(standin.calls) == len(KEPT)
    for name, (_, reason, counts) in KEPT.items():
        model = GatewayModel("m")
        for message in (outcomes[name], await model.buffer(request_of(name).messages)):
            assert (name, [part.model_dump()["text"] for part in message.parts]) == (name, ["whole"])
            usage = message.usage
            assert (name, usage and (usage.input_tokens, usage.output_tokens)) == (name, counts)
        assert (name, model.finish_reason) == (name, reason)


LONE = "a\ud800b"
"""Half of a surrogate pair: JSON can write it, as an escape, but no UTF-8 can hold it."""

ENDLESS = "1e999"
"""Stands for this number: JSON can write it, but Python reads it as infinity, which JSON does not have."""

UNSPEAKABLE: dict[str, list[Part]] = {
    "text": block("text", LONE),
    "reasoning": block("reasoning", LONE),
    "metadata of a thought": block("reasoning", "?", end={"anthropic": {"signature": LONE, LONE: [LONE]}, LONE: {}}),
    "metadata of a call": count_legs("2", end={"google": {"thoughtSignature": LONE}}),
    "endless metadata": block("reasoning", "?", end={"anthropic": {"n": ENDLESS}}),
    "call": list(tool_call(LONE, LONE, "{}")),
    "arguments": list(tool_call("2", "count_legs", {"legs": [], "note": LONE})),
    "file": [{"type": "file", "mediaType": LONE, "data": "aGVsbG8="}],
    "provider's arguments": search("2", {"q": LONE}),
    "provider's arguments, escaped": search("2", '{"q": "\\ud800"}'),
    "provider's tool": search(LONE, {}, "found", name=LONE),
    "provider's result": search("2", {}, {LONE: LONE}),
    "provider's endless result": search("2", {}, {"n": ENDLESS}),
    "usage": [finish("stop") | {"usage": {"raw": {"tier": LONE}}}],
    "endless usage": [finish("stop") | {"usage": {"inputTokens": {"total": ENDLESS}}}],
    "finish reason": [finish(LONE)],
}


async def test_3_what_no_request_can_hold_does_not_end_a_run(at_once: AtOnce, standin: StandIn) -> None:
    def told(stream: Sequence[Part]) -> list[Reply]:
        end = [] if stream[-1]["type"] == "finish" else [finish("tool-calls")]
        lines = (f"data: {json.dumps(part)}\n\n" for part in [*count_legs("1"), *stream, *end])
        return [raw(*(line.replace(f'"{ENDLESS}"', ENDLESS).encode() for line in lines), DONE), text("done")]

    outcomes = await at_once(agents.AnswerWorkflow, {name: told(stream) for name, stream in UNSPEAKABLE.items()})
    assert outcomes == dict.fromkeys(UNSPEAKABLE, "done")
    for name in UNSPEAKABLE:
        assert second_request(standin, name).tool_results[0]["toolCallId"] == "1"


# ── 4. Metadata ──────────────────────────────────────────────────────────────────────────────────────────

THOUGHT: Metadata = {"google": {"thoughtSignature": "Q2/+=="}}
ITEM: Metadata = {"openai": {"itemId": "rs_1", "reasoningEncryptedContent": None}}
WHOLE_ITEM: Metadata = {"openai": {"itemId": "rs_1", "reasoningEncryptedContent": "gAAA"}}
REDACTED: Metadata = {"anthropic": {"redactedData": "x"}}
IMAGE: Part = {"type": "file", "mediaType": "image/png", "data": "aGVsbG8="}


def signature(value: str) -> Metadata:
    return {"anthropic": {"signature": value}}


def said(kind: str, text: str, metadata: Metadata | None = None) -> Part:
    return {"type": kind, "text": text} | ({"providerOptions": metadata} if metadata else {})


def called(id: str, metadata: Metadata | None = None) -> Part:
    call = {"type": "tool-call", "toolCallId": id, "toolName": "count_legs", "input": {"legs": []}}
    return call | ({"providerOptions": metadata} if metadata else {})


SIGNED: list[tuple[list[Part], Part]] = [
    (block("reasoning", "a", "b", delta=signature("1")), said("reasoning", "ab", signature("1"))),
    (block("reasoning", "c", "", delta=signature("2")), said("reasoning", "c", signature("2"))),
    (block("reasoning", "d", end=signature("3")), said("reasoning", "d", signature("3"))),
    (block("reasoning", start=REDACTED), said("reasoning", "", REDACTED)),
    (block("reasoning", "e", start=ITEM), said("reasoning", "e", ITEM)),
    (block("reasoning", "f", start=ITEM, end=WHOLE_ITEM), said("reasoning", "f", WHOLE_ITEM)),
    (block("reasoning", "g"), said("reasoning", "g")),
    (block("text", "h", end=THOUGHT), said("text", "h", THOUGHT)),
    (block("text", end=THOUGHT), said("text", "", THOUGHT)),
    (count_legs("1", end=THOUGHT), called("1", THOUGHT)),
    (block("text", "after the call"), said("text", "after the call")),
    (count_legs("2"), called("2")),
    (count_legs("3", start=THOUGHT, end=ITEM), called("3", THOUGHT | ITEM)),
    ([IMAGE], {**IMAGE, "data": "data:image/png;base64,aGVsbG8="}),
    (
        [{**IMAGE, "providerMetadata": THOUGHT}],
        {**IMAGE, "data": "data:image/png;base64,aGVsbG8=", "providerOptions": THOUGHT},
    ),
    (block("reasoning", "last", end=signature("4")), said("reasoning", "last", signature("4"))),
]
"""What the gateway sends, and what the next request has of it."""


async def test_4_metadata_goes_back_with_the_part_that_it_came_with_in_order(converse: Converse) -> None:
    user, assistant, tool = await converse(*(part for sent, _ in SIGNED for part in sent))
    assert [user["role"], assistant["role"], tool["role"]] == ["user", "assistant", "tool"]
    assert assistant["content"] == [expected for _, expected in SIGNED]
    assert [result["toolCallId"] for result in tool["content"]] == ["1", "2", "3"]


async def test_4_a_call_that_no_tool_can_take_keeps_its_metadata(converse: Converse) -> None:
    made_up = signed(tool_call("1", "count_legs", "[7]"), end=THOUGHT)
    _, assistant, _ = await converse(*made_up, *count_legs("2"))
    assert [part.get("providerOptions") for part in assistant["content"]] == [THOUGHT, None]


async def test_4_metadata_is_in_every_later_request_of_a_run_that_continues(
    start: Start, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("options.continuing.HISTORY_LIMIT", 10)
    turns = [[*block("reasoning", f"{i}", end=signature(f"{i}")), *count_legs(f"{i}", end=THOUGHT)] for i in range(5)]
    standin.play(*(parts(*turn, finish("tool-calls")) for turn in turns), text("done"))
    handle = await start(agents.LongWorkflow, agents.LongRequest(query="go"))
    assert await outcome_of(handle) == ("done", 6)
    assert (await handle.describe()).run_id != handle.first_execution_run_id
    answers = [message["content"] for message in standin.calls[-1].prompt if message["role"] == "assistant"]
    assert answers == [[said("reasoning", f"{i}", signature(f"{i}")), called(f"{i}", THOUGHT)] for i in range(5)]


async def test_4_what_is_left_of_metadata_that_no_request_can_hold_goes_back(start: Start, standin: StandIn) -> None:
    metadata = {"anthropic": {"signature": LONE, "kept": "\u2028\U0001f600"}}
    stream = parts(*block("reasoning", "?", end=metadata), *count_legs("1"), finish("tool-calls"))
    standin.play(stream, text("done"))
    await outcome_of(await start(agents.OtherWorkflow, "go"))
    [thought, _] = standin.calls[1].prompt[1]["content"]
    assert thought["providerOptions"] == {"anthropic": {"signature": "a\ufffdb", "kept": "\u2028\U0001f600"}}


# ── 5. Tools that the provider ran ───────────────────────────────────────────────────────────────────────


def failed(*stream: Part) -> list[Part]:
    return [*stream[:-1], {**stream[-1], "isError": True}]


RAN: list[tuple[list[Part], Part]] = [
    (search("s1", '{"q": "x"}', [{"title": "t"}]), {"type": "json", "value": [{"title": "t"}]}),
    (search("s2", {"q": "x"}, None), {"type": "json", "value": None}),
    (failed(*search("s3", '{"q": "x"}', {"code": "busy"})), {"type": "error-json", "value": {"code": "busy"}}),
    (search("s4", '{"q": "x"}', "a part", "more", "all"), {"type": "json", "value": "all"}),
    (failed(*search("s5", '{"q": "x"}', "a part", "no")), {"type": "error-json", "value": "no"}),
]
"""Calls and results as they come, and the output in the next request."""


async def test_5_a_tool_that_the_provider_ran_is_kept_and_not_called(start: Start, standin: StandIn) -> None:
    streamed = [part | {"providerExecuted": True} for part in tool_call("s0", "search", '{"q": "x"}')]
    stream = parts(*streamed, *(part for sent, _ in RAN for part in sent), *text_parts("found"), finish("stop"))
    standin.play(stream, stream)
    handle = await start(agents.AnswerWorkflow, "go")
    assert await outcome_of(handle) == "found"
    [_, durable] = (await handle.query(TRANSCRIPT_QUERY, result_type=Transcript)).messages
    [plain] = await agents.transcript_of(ai.run(agents.other_agent, GatewayModel("m"), "go"))
    assert len(standin.calls) == 2
    for message in (durable, plain):
        kept = [part for part in message.parts if isinstance(part, ai.ToolPart)]
        assert all(map(is_provider_executed, kept))
        assert [(part.tool_name, json.loads(part.tool_args)) for part in kept] == [("search", {"q": "x"})] * 6
        assert [part.status for part in kept] == ["pending", "result", "result", "error", "result", "error"]
        assert [part.result for part in kept] == [None, *(output["value"] for _, output in RAN)]
        assert (message.parts[-1].type, message.text, message.tool_calls) == ("text", "found", [])
    assert durable.model_dump(exclude={"id"}) == plain.model_dump(exclude={"id"})


async def test_5_the_next_request_has_the_providers_calls_and_their_results(converse: Converse) -> None:
    stream = [part for sent, _ in RAN for part in [*sent, *block("text", "and")]]
    _, assistant, tool = await converse(*stream, *count_legs("1"))
    expected = []
    for i, (_, output) in enumerate(RAN, 1):
        name = {"toolCallId": f"s{i}", "toolName": "search"}
        expected += [
            {"type": "tool-call", **name, "input": {"q": "x"}, "providerExecuted": True},
            {"type": "tool-result", **name, "output": output},
            said("text", "and"),
        ]
    assert assistant["content"] == [*expected, called("1")]
    assert [result["toolCallId"] for result in tool["content"]] == ["1"]


async def test_5_call_and_result_each_get_their_own_metadata_back(converse: Converse) -> None:
    _, assistant, _ = await converse(*signed(search("s", "{}", "found"), start=THOUGHT, end=ITEM), *count_legs("1"))
    assert [part.get("providerOptions") for part in assistant["content"]] == [THOUGHT, ITEM, None]


async def test_5_odd_arguments_of_the_providers_own_call_do_not_end_a_run(at_once: AtOnce, standin: StandIn) -> None:
    odd: dict[str, object] = {"empty": "", "blank": "  ", "null text": "null", "null": None, "broken": '{"q": '}
    scripts: dict[str, list[Reply]] = {
        name: [parts(*search("s", arguments, "found"), *count_legs("1"), finish("tool-calls")), text("done")]
        for name, arguments in odd.items()
    }
    assert await at_once(agents.AnswerWorkflow, scripts) == dict.fromkeys(odd, "done")
    inputs = {name: second_request(standin, name).prompt[1]["content"][0]["input"] for name in odd}
    inputs.pop("broken")  # whatever the provider can make of it
    assert inputs == {name: {} for name in inputs}


# ── 6. Errors in the stream ──────────────────────────────────────────────────────────────────────────────

TOO_LONG = "prompt is too long: 215000 tokens > 200000 maximum"

FINAL: dict[str, object] = {
    **{f"status {code}": {"message": "not so", "statusCode": code} for code in (400, 401, 403, 404, 413, 422)},
    **{
        f"type {kind}": {"message": "not so", "type": kind}
        for kind in ("invalid_request_error", "insufficient_quota", "authentication_error", "permission_error")
    },
    "code": {"message": "not so", "type": "rate_limit_exceeded", "code": "insufficient_quota"},
    "code and status": {"message": "not so", "statusCode": 429, "code": "insufficient_quota"},
    "not retryable": {"message": "not so", "isRetryable": False},
    "not retryable, with a status": {"message": "not so", "isRetryable": False, "statusCode": 503},
    "too long": {"message": TOO_LONG},
    "too long, with a status": {"message": TOO_LONG, "statusCode": 500},
    "too long, as a string": TOO_LONG,
    "nested": {"type": "error", "error": {"message": "not so", "type": "invalid_request_error"}},
    "nested in a status": {"statusCode": 400, "error": {"message": "not so"}},
    "nested in what is not retryable": {"isRetryable": False, "error": {"message": "not so"}},
}

PASSING: dict[str, object] = {
    **{f"status {code}": {"message": "busy", "statusCode": code} for code in (408, 409, 425, 429, 500, 503, 529)},
    **{
        f"type {kind}": {"message": "busy", "type": kind}
        for kind in ("overloaded_error", "rate_limit_exceeded", "api_error", None, ["odd"])
    },
    "retryable": {"message": "busy", "isRetryable": True},
    "retryable, with a status": {"message": "busy", "isRetryable": True, "statusCode": 400},
    "nested": {"type": "error", "error": {"message": "busy", "type": "overloaded_error"}},
    "string": "busy",
    "null": None,
    "list": ["busy"],
    "no message": {},
    "odd message": {"message": {"text": "busy"}},
    "odd status": {"message": "busy", "statusCode": "503"},
    "odd word": {"message": "busy", "isRetryable": "no"},
}

OVER_HTTP: dict[str, tuple[int, object, str]] = {
    "code": (429, {"error": {"message": "not so", "code": "insufficient_quota"}}, "HTTP 429: not so"),
    "type": (429, {"error": {"message": "not so", "type": "insufficient_quota"}}, "HTTP 429: not so"),
    "not retryable": (429, {"error": {"message": "not so", "isRetryable": False}}, "HTTP 429: not so"),
    "too long": (500, {"error": {"message": TOO_LONG}}, f"HTTP 500: {TOO_LONG}"),
    "too long, as a string": (500, {"error": TOO_LONG}, f"HTTP 500: {TOO_LONG}"),
    "status": (413, {"error": {"message": "not so"}}, "HTTP 413: not so"),
    "no object": (413, ["not so"], 'HTTP 413: ["not so"]'),
}


def reporting(error: object, *before: Part) -> Reply:
    return parts(*before, {"type": "error", "error": error}, finish("stop"))


async def test_6_a_final_error_ends_the_run_at_once_with_what_it_says(at_once: AtOnce, standin: StandIn) -> None:
    scripts = {
        **{name: [reporting(error), text("paid twice")] for name, error in FINAL.items()},
        **{f"{name} after text": [reporting(FINAL[name], *text_parts("half")), text("?")] for name in FINAL},
        **{f"HTTP: {name}": [page(body, code), text("paid twice")] for name, (code, body, _) in OVER_HTTP.items()},
    }
    outcomes = await at_once(agents.AnswerWorkflow, scripts)
    assert {name: answer for name, answer in outcomes.items() if not isinstance(answer, ApplicationError)} == {}
    assert Counter(call.query for call in standin.calls) == dict.fromkeys(scripts, 1)
    assert all(failure.non_retryable for failure in outcomes.values())
    for name in FINAL:
        for failure in (outcomes[name], outcomes[f"{name} after text"]):
            assert (TOO_LONG if name.startswith("too long") else "not so") in failure.message
    told = {name: outcomes[f"HTTP: {name}"].message for name in OVER_HTTP}
    assert told == {name: message for name, (_, _, message) in OVER_HTTP.items()}


async def test_3_a_page_in_the_place_of_a_stream_is_an_outage(at_once: AtOnce) -> None:
    pages = {"JSON": page({"text": "whole"}), "HTML": raw(b"<h1>Hello</h1>", media_type="text/html")}
    scripts = {name: [*[reply] * 3, text("whole")] for name, reply in pages.items()}
    assert await at_once(agents.ImpatientWorkflow, scripts) == dict.fromkeys(pages, "whole")


async def test_6_a_passing_error_is_ridden_out_more_often_than_a_malformed_answer(
    at_once: AtOnce, standin: StandIn
) -> None:
    scripts = {name: [*[reporting(error)] * 3, text("whole")] for name, error in PASSING.items()}
    assert await at_once(agents.ImpatientWorkflow, scripts) == dict.fromkeys(PASSING, "whole")
    assert min(Counter(call.query for call in standin.calls).values()) == 4


# ── 8. Blank arguments ───────────────────────────────────────────────────────────────────────────────────

BLANKS: dict[str, object] = {"1": "", "2": "null", "3": "  ", "4": " null\n", "5": "{}"}
WHOLE: dict[str, Part] = {"6": {"input": "null"}, "7": {"input": None}, "8": {"input": {}}, "9": {}}
"""Calls that were not streamed before."""


async def test_8_blank_arguments_are_none(converse: Converse) -> None:
    streamed = [part for id, arguments in BLANKS.items() for part in tool_call(id, "any_arguments", arguments)]
    whole = [
        {"type": "tool-call", "toolCallId": id, "toolName": "any_arguments", **arguments}
        for id, arguments in WHOLE.items()
    ]
    _, assistant, tool = await converse(*streamed, *whole)
    assert [(part["toolCallId"], part["input"]) for part in assistant["content"]] == [
        (f"{i}", {}) for i in range(1, 10)
    ]
    assert [result["output"] for result in tool["content"]] == [{"type": "json", "value": {"first": 0}}] * 9


async def test_8_a_tool_without_parameters_is_called(at_once: AtOnce, standin: StandIn) -> None:
    scripts: dict[str, list[Reply]] = {
        id: [parts(*tool_call("1", "misread", arguments), finish("tool-calls")), text("done")]
        for id, arguments in BLANKS.items()
    }
    assert await at_once(agents.AnswerWorkflow, scripts) == dict.fromkeys(BLANKS, "done")
    told = {id: second_request(standin, id).tool_results[0]["output"]["value"] for id in BLANKS}
    assert told == dict.fromkeys(BLANKS, "ToolError: misread failed: KeyError: 'population'")
