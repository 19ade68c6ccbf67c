"""The gateway's stream in all the forms that people met: nothing of it is lost, and what is odd has one outcome.

The numbers are those of issue 13, where the kinds of faults are told.
"""

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import agents
import pytest
import vercel_ai_sdk as ai
from conftest import make_worker
from standin import Reply, StandIn, event, parts, raw, text, text_parts, unescaped
from standin import json as page
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Replayer
from test_durable import failure_of

from app.demo import Part, finish, tool_call
from bridge.wire import Metadata, ModelRequest
from options.gateway import GatewayModel
from plugin import DurableAgents

type Start = Callable[..., Awaitable[WorkflowHandle[Any, Any]]]
type Converse = Callable[..., Awaitable[list[dict[str, Any]]]]

ASK = ModelRequest(messages=ai.make_messages(user="go"))
BLUNDERS = ("Error:", "object has no attribute", "argument of type", "unhashable", "not subscriptable", "must be str")
"""What a message holds when the code, and not the stream, is said to be wrong."""


@pytest.fixture
def start(client: Client, queue: str, standin: StandIn) -> Start:
    async def start(cls: type, *arguments: object, task_queue: str = queue) -> WorkflowHandle[Any, Any]:
        run = cls.run  # type: ignore[attr-defined]  # every workflow has one
        return await client.start_workflow(run, args=list(arguments), id=uuid.uuid4().hex, task_queue=task_queue)

    return start


async def result_of(handle: WorkflowHandle[Any, Any]) -> Any:
    async with asyncio.timeout(30):
        return await handle.result()


@pytest.fixture(params=["plain", "durable", "by query", "replayed", "continued as new"])
def converse(
    request: pytest.FixtureRequest, client: Client, start: Start, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> Converse:
    """Has the loop answered with a stream and then with a text, in all the ways that a conversation may take. Returns
    the prompt of the second request, which is what the model will know of the first answer."""
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
                if way == "replayed":  # from the beginning, at every step
                    options["task_queue"] = uuid.uuid4().hex
                    worker = make_worker(client, options["task_queue"], max_cached_workflows=0)
                    await stack.enter_async_context(worker)
                if way == "continued as new":
                    handle = await start(agents.LongWorkflow, agents.LongRequest(query="go"), **options)
                else:
                    handle = await start(agents.OtherWorkflow, "go", **options)
                await result_of(handle)
            replayer = Replayer(workflows=[agents.LongWorkflow, agents.OtherWorkflow], plugins=[DurableAgents()])
            runs = {handle.first_execution_run_id, (await handle.describe()).run_id}
            assert len(runs) == 1 + (way == "continued as new")
            for run in runs:
                history = await client.get_workflow_handle(handle.id, run_id=run).fetch_history()
                await replayer.replay_workflow(history)
        assert len(standin.calls) == 2
        return standin.calls[1].prompt

    return converse


def block(kind: str, *deltas: str, **metadata: Metadata) -> list[Part]:
    """A block of text or reasoning, always with the same id. The metadata is that of its `start`, of its `end`, or of
    its last delta (`delta`)."""
    pieces = [("start", None), *(("delta", delta) for delta in deltas), ("end", None)]
    stream: list[Part] = [
        {"type": f"{kind}-{piece}", "id": "0"} | ({"delta": delta} if piece == "delta" else {})
        for piece, delta in pieces
    ]
    for place, sent in metadata.items():
        stream[{"start": 0, "delta": -2, "end": -1}[place]]["providerMetadata"] = sent
    return stream


# ── 1. Lines ─────────────────────────────────────────────────────────────────────────────────────────────

SEPARATORS = {"U+2028": "\u2028", "U+2029": "\u2029", "U+0085": "\x85"}
"""Line ends for `str.splitlines()`, but not for server-sent events. A JavaScript encoder leaves them raw."""

ODD = "one\u2028two\u2029three\x85four \ufeff gr\u00fc\u00dfe \U0001f600"
STREAM = [*text_parts(ODD, " end."), finish("stop")]
DONE = b"data: [DONE]\n\n"

FRAMES: dict[str, bytes] = {
    "LF": b"".join(map(event, STREAM)) + DONE,
    "CRLF": b"".join(event(part, "\r\n") for part in STREAM) + b"data: [DONE]\r\n\r\n",
    "CR": b"".join(event(part, "\r") for part in STREAM) + b"data: [DONE]\r\r",
    "no end of the last line": b"".join(event(part, "\r") for part in STREAM),
    "no space after the colon": b"".join(event(part, field="data:") for part in STREAM) + b"data:[DONE]\n\n",
    "byte order mark": b"\xef\xbb\xbf" + b"".join(map(event, STREAM)) + DONE,
    "comments": b": ping\n\n" + b":\n".join(map(event, STREAM)) + b"\n:\n\n" + DONE,
    "other fields": b"".join(
        b"event: part\nid: %d\nretry: 10\nnonsense\n" % i + event(part) for i, part in enumerate(STREAM)
    )
    + b"event: end\n\n"
    + DONE,
    "events over several lines": b"".join(
        b"".join(b"data: %s\n" % line.encode() for line in json.dumps(part, indent=1, ensure_ascii=False).split("\n"))
        + b"\n"
        for part in STREAM
    )
    + DONE,
    "events without data": b"data\n\ndata:\n\n" + b"\n\n\n".join(map(event, STREAM)) + DONE,
}


@pytest.mark.parametrize("separator", SEPARATORS.values(), ids=SEPARATORS)
async def test_1_separators_that_end_no_line_arrive_in_text(start: Start, standin: StandIn, separator: str) -> None:
    standin.play(unescaped(*text_parts(f"first line{separator}second", " end."), finish("stop")))
    assert (await result_of(await start(agents.SendWorkflow, ASK))).text == f"first line{separator}second end."


@pytest.mark.parametrize("separator", SEPARATORS.values(), ids=SEPARATORS)
async def test_1_separators_that_end_no_line_arrive_in_tool_arguments(
    start: Start, standin: StandIn, separator: str
) -> None:
    arguments = json.dumps({"legs": [], "note": f"a{separator}b"}, ensure_ascii=False)
    standin.play(unescaped(*tool_call("1", "count_legs", arguments), finish("tool-calls")), text("done"))
    await result_of(await start(agents.OtherWorkflow, "go"))
    [result] = standin.calls[1].tool_results
    assert result["output"] == {"type": "json", "value": {"legs": 0, "ends": [], "note": f"a{separator}b"}}


@pytest.mark.parametrize("chunks", ["whole", "byte by byte"])
@pytest.mark.parametrize("frame", FRAMES)
async def test_1_a_stream_is_read_as_its_standard_says(start: Start, standin: StandIn, frame: str, chunks: str) -> None:
    data = FRAMES[frame]
    standin.play(raw(data) if chunks == "whole" else raw(*(bytes([byte]) for byte in data)))
    assert (await result_of(await start(agents.SendWorkflow, ASK))).text == f"{ODD} end."


async def test_1_events_are_utf_8_whatever_the_header_says(standin: StandIn) -> None:
    standin.play(raw(FRAMES["LF"], media_type="text/event-stream; charset=iso-8859-1"))
    assert (await GatewayModel("m").buffer(ASK.messages)).text == f"{ODD} end."


# ── 2. Blocks with one id ────────────────────────────────────────────────────────────────────────────────


async def test_2_blocks_with_one_id_are_all_kept_in_order(converse: Converse) -> None:
    kinds = ["reasoning", "reasoning", "text", "text", "reasoning", "text"]
    stream = [part for i, kind in enumerate(kinds) for part in block(kind, f"{i}", "!")]
    _, assistant, _ = await converse(*stream, *tool_call("1", "count_legs", {"legs": []}))
    assert assistant["content"][:-1] == [{"type": kind, "text": f"{i}!"} for i, kind in enumerate(kinds)]


# ── 3. Odd things ────────────────────────────────────────────────────────────────────────────────────────


def with_line(line: str) -> Reply:
    return raw(*map(event, text_parts("?")), f"data: {line}\n\n".encode(), event(finish("stop")), DONE)


MALFORMED: dict[str, tuple[Reply, str]] = {
    "no JSON": (with_line('{"type": "text-delta", "id"'), 'a part is no JSON (Expecting .*): {"type": "text-delta", "'),
    "NaN": (with_line('{"type": "text-delta", "id": "t", "delta": NaN}'), "a part is no JSON (NaN is no JSON): {"),
    "nothing but brackets": (with_line("[" * 100_000), r"a part is no JSON (.*): [[["),
    "a list": (with_line('["text"]'), 'a part has no type: ["text"]'),
    "a string": (with_line('"text"'), 'a part has no type: "text"'),
    "null": (with_line("null"), "a part has no type: null"),
    "no type": (with_line('{"id": "t", "delta": "?"}'), 'a part has no type: {"id": "t", "delta": "?"}'),
    "type null": (with_line('{"type": null}'), 'a part has no type: {"type": null}'),
    "type of a list": (with_line('{"type": ["text-delta"]}'), 'a part has no type: {"type": ["text-delta"]}'),
    **{
        f"delta {delta}": (
            with_line(json.dumps({"type": "text-delta", "id": "t", "delta": delta})),
            f"the delta of a text-delta is no text: {json.dumps(delta)}",
        )
        for delta in ({"text": "a"}, ["a"], 7, 1.5, False)
    },
    "no delta": (with_line('{"type": "text-delta", "id": "t"}'), "a text-delta has no delta"),
    "no delta of arguments": (
        parts({"type": "tool-input-start", "id": "1", "toolName": "t"}, {"type": "tool-input-delta", "id": "1"}),
        "a tool-input-delta has no delta",
    ),
    "never begun": (with_line('{"type": "reasoning-delta", "id": "t", "delta": "?"}'), "a reasoning-delta of a block"),
    "a file of nothing": (with_line('{"type": "file", "mediaType": "image/png"}'), "a file has no data"),
    "JSON instead of a stream": (page({"text": "whole"}), "Content-Type .*text/event-stream.*application/json"),
    "a page instead of a stream": (raw(b"<h1>Hello</h1>", media_type="text/html"), "Content-Type .*text/html"),
}


@pytest.mark.parametrize("fault", MALFORMED)
async def test_3_an_answer_that_cannot_be_read_is_asked_for_again_and_then_reported(
    start: Start, standin: StandIn, fault: str
) -> None:
    reply, problem = MALFORMED[fault]
    standin.play(reply, text("whole"), reply, reply, reply)
    assert await result_of(await start(agents.ImpatientWorkflow, "go")) == "whole"
    error = await failure_of(await start(agents.ImpatientWorkflow, "go"))
    assert (error.type, error.non_retryable, len(standin.calls)) == ("MalformedAnswer", True, 2 + 3)
    message = error.message.removeprefix("the model's stream is malformed: ")
    for piece in problem.split(".*"):
        assert piece in message
    assert not any(blunder in message for blunder in BLUNDERS)
    assert len(message) < 300


def ended(finish_reason: object, usage: object) -> list[Part]:
    return [*text_parts("whole"), {"type": "finish", "finishReason": finish_reason, "usage": usage}]


STOP = {"unified": "stop"}
COUNTED = {"inputTokens": {"total": 10}, "outputTokens": {"total": 5}}
NO_COUNTS: list[object] = ["10", -1, None, True, {}, [10]]
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
    "null delta": (
        [*(text_parts("who")[:-1]), {"type": "text-delta", "id": "t", "delta": None}]
        + [{"type": "text-delta", "id": "t", "delta": "le"}, finish("stop", 10, 5)],
        "stop",
        (10, 5),
    ),
    **{
        f"{part['type']} part": ([part, *text_parts("whole")[:2], part, *ended(STOP, COUNTED)[2:]], "stop", (10, 5))
        for part in IGNORED
    },
    **{
        f"finish reason {reason}": (ended(reason, COUNTED), "other", (10, 5))
        for reason in (None, {}, {"unified": None}, {"unified": 7}, {"raw": "stop"}, [], 7, "")
    },
    "no finish reason": ([*text_parts("whole"), {"type": "finish", "usage": COUNTED}], "other", (10, 5)),
    "fractional count": (
        ended(STOP, {"inputTokens": {"total": 9.5}, "outputTokens": {"total": 5.0}}),
        "stop",
        (10, 5),
    ),
    **{
        f"count {count}": (ended(STOP, COUNTED | {"inputTokens": {"total": count}}), "stop", (0, 5))
        for count in NO_COUNTS
    },
    **{f"counts {count}": (ended(STOP, COUNTED | {"inputTokens": count}), "stop", (0, 5)) for count in ("10", None)},
    **{f"usage {usage}": (ended(STOP, usage), "stop", None) for usage in (None, [], "10", 10)},
    **{
        f"metadata {sent}": (
            [{**part, "providerMetadata": sent} for part in ended(STOP, COUNTED)],
            "stop",
            (10, 5),
        )
        for sent in (None, "odd", ["odd"], {"odd": "odd"}, {"odd": None}, {"odd": [1]})
    },
}


@pytest.mark.parametrize("oddity", KEPT)
async def test_3_an_answer_is_kept_where_what_is_odd_is_none_of_it(start: Start, standin: StandIn, oddity: str) -> None:
    stream, reason, counts = KEPT[oddity]
    standin.play(parts(*stream), parts(*stream))
    model = GatewayModel("m")
    plain = await model.buffer(ASK.messages)
    durable = await result_of(await start(agents.SendWorkflow, ASK))
    for message in (plain, durable):
        assert [part.text for part in message.parts] == ["whole"]
        assert (message.usage and (message.usage.input_tokens, message.usage.output_tokens)) == counts
    assert model.finish_reason == reason
    assert len(standin.calls) == 2


LONE = "a\ud800b"
"""JSON can write half of a surrogate pair, as an escape, but UTF-8 cannot hold it."""

UNSPEAKABLE: dict[str, list[Part]] = {
    "text": block("text", LONE),
    "reasoning": block("reasoning", LONE),
    "metadata": block("reasoning", "hm", end={"anthropic": {"signature": LONE, LONE: [LONE]}}),
    "metadata by a name": block("text", "hm", end={LONE: {"a": 1}}),
    "metadata, infinite": block("reasoning", "hm", end={"anthropic": {"n": "1e999"}}),
    "usage": [{"type": "finish", "finishReason": {"unified": "stop"}, "usage": {"raw": {"tier": LONE}}}],
    "usage, infinite": [{"type": "finish", "finishReason": {"unified": "stop"}, "usage": {"inputTokens": "1e999"}}],
    "finish reason": [{"type": "finish", "finishReason": {"unified": LONE}}],
    "tool id and name": list(tool_call(LONE, LONE, "{}")),
    "tool arguments": list(tool_call("2", "count_legs", {"legs": [], "note": LONE})),
    "file": [{"type": "file", "mediaType": LONE, "data": "aGVsbG8="}],
    "a provider's tool": [
        {"type": "tool-call", "toolCallId": LONE, "toolName": LONE, "input": {"q": LONE}, "providerExecuted": True},
        {"type": "tool-result", "toolCallId": LONE, "toolName": LONE, "result": {LONE: LONE}},
    ],
    "a provider's tool, escaped": [
        {"type": "tool-call", "toolCallId": "s", "toolName": "s", "input": '{"q": "\\ud800"}', "providerExecuted": True}
    ],
    "a provider's result, infinite": [
        {"type": "tool-result", "toolCallId": "s", "toolName": "s", "result": {"n": "1e999"}}
    ],
}


@pytest.mark.parametrize("where", UNSPEAKABLE)
async def test_3_what_no_request_can_hold_does_not_end_a_run(start: Start, standin: StandIn, where: str) -> None:
    stream = [*UNSPEAKABLE[where], *tool_call("1", "count_legs", {"legs": []})]
    if stream[0]["type"] == "finish":
        stream.reverse()  # the call of the tool comes out backwards, too: only its last part counts
        stream = [*tool_call("1", "count_legs", {"legs": []}), stream[-1]]
    else:
        stream.append(finish("tool-calls"))
    lines = [f"data: {json.dumps(part)}\n\n".replace('"1e999"', "1e999").encode() for part in stream]
    standin.play(raw(*lines, DONE), text("done"))
    assert await result_of(await start(agents.ImpatientWorkflow, "go")) == "done"
    assert standin.calls[1].tool_results[-1]["toolCallId"] == "1"


# ── 4. Metadata ──────────────────────────────────────────────────────────────────────────────────────────


def signature(value: str) -> Metadata:
    return {"anthropic": {"signature": value}}


THOUGHT: Metadata = {"google": {"thoughtSignature": "Q2/+=="}}
ITEM: Metadata = {"openai": {"itemId": "rs_1", "reasoningEncryptedContent": None}}
ITEM_WHOLE: Metadata = {"openai": {"itemId": "rs_1", "reasoningEncryptedContent": "gAAA"}}


def streamed(id: str, **metadata: Metadata) -> list[Part]:
    """A tool call with metadata on its first part or its last."""
    first, *deltas, last = tool_call(id, "count_legs", {"legs": []})
    places = {"start": first, "call": last}
    for place, sent in metadata.items():
        places[place]["providerMetadata"] = sent
    return [first, *deltas, last]


def called(id: str) -> Part:
    return {"type": "tool-call", "toolCallId": id, "toolName": "count_legs", "input": {"legs": []}}


SIGNED: list[tuple[list[Part], Part]] = [
    (block("reasoning", "a", "b", delta=signature("1")), {"type": "reasoning", "text": "ab"} | {"o": signature("1")}),
    (block("reasoning", "c", "", delta=signature("2")), {"type": "reasoning", "text": "c"} | {"o": signature("2")}),
    (block("reasoning", "d", end=signature("3")), {"type": "reasoning", "text": "d"} | {"o": signature("3")}),
    (
        block("reasoning", start={"anthropic": {"redactedData": "x"}}),
        {"type": "reasoning", "text": ""} | {"o": {"anthropic": {"redactedData": "x"}}},
    ),
    (block("reasoning", "e", start=ITEM), {"type": "reasoning", "text": "e", "o": ITEM}),
    (block("reasoning", "f", start=ITEM, end=ITEM_WHOLE), {"type": "reasoning", "text": "f", "o": ITEM_WHOLE}),
    (block("reasoning", "g"), {"type": "reasoning", "text": "g"}),
    (block("text", "h", end=THOUGHT), {"type": "text", "text": "h", "o": THOUGHT}),
    (block("text", end=THOUGHT), {"type": "text", "text": "", "o": THOUGHT}),
    (streamed("1", call=THOUGHT), {**called("1"), "o": THOUGHT}),
    (block("text", "after the call"), {"type": "text", "text": "after the call"}),
    (streamed("2"), called("2")),
    (streamed("3", start=THOUGHT, call=ITEM), {**called("3"), "o": THOUGHT | ITEM}),
    (
        [{"type": "file", "mediaType": "image/png", "data": "aGVsbG8=", "providerMetadata": THOUGHT}],
        {"type": "file", "mediaType": "image/png", "data": "data:image/png;base64,aGVsbG8=", "o": THOUGHT},
    ),
    (block("reasoning", "last", end=signature("4")), {"type": "reasoning", "text": "last", "o": signature("4")}),
]
