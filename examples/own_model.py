"""Shows a model class of your own, in the place of GatewayModel: it raises when the stream breaks off in the middle."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from itertools import count
from typing import override

import httpx
import pydantic
import vercel_ai_sdk as ai
from shared import QUEUE, make_worker, run
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from temporalio import workflow
from temporalio.client import Client

from app import demo
from bridge.failures import MalformedStream
from durable import TemporalLanguageModel


class LineModel(ai.LanguageModel):
    """Reads lines of JSON. The worker makes one for every call, so it may keep what belongs to the call."""

    def __init__(self, name: str) -> None:
        self.finish_reason: str | None = None  # optional: passed on to `TemporalLanguageModel.finish_reason`

    @override
    async def stream(
        self,
        messages: list[ai.Message],
        tools: Sequence[ai.ToolLike] | None = None,
        output_type: type[pydantic.BaseModel] | None = None,
    ) -> AsyncGenerator[ai.Message]:
        answer = ai.TextPart(text="")
        message = ai.Message(role="assistant", parts=[answer])
        async with httpx.AsyncClient() as http, http.stream("POST", URL, json=messages[-1].text) as response:
            response.raise_for_status()  # final, or tried again: by the status
            async for line in response.aiter_lines():
                try:
                    part = json.loads(line)
                except ValueError as error:  # tried again, but at most three times
                    raise MalformedStream(f"no JSON: {line}") from error
                if "end" in part:
                    self.finish_reason = part["end"]
                    message.usage = ai.Usage(input_tokens=2, output_tokens=part["tokens"])  # `max_tokens` counts these
                else:
                    answer.text += part["word"]
                    yield message  # the text so far, shown live; the last message counts
        if self.finish_reason is None:  # without this, half an answer would be taken for all of it
            raise ConnectionError("the stream broke off")
        yield message


@workflow.defn
class AskWorkflow:
    @workflow.run
    async def run(self, query: str) -> str:
        async def ask(llm: ai.LanguageModel) -> None:
            await ai.stream_step(llm, ai.make_messages(user=query))

        return [message.text async for message in ai.run(ask, TemporalLanguageModel("lines"))][-1]


URL = ""
LINES = ['{"word": "All is"}', '{"word": " well."}', '{"end": "stop", "tokens": 4}']
streams = count(1)


async def service(request: Request) -> StreamingResponse:
    async def stream(number: int) -> AsyncIterator[str]:
        for line in LINES[:1] if number == 1 else LINES:  # the first one breaks off
            print(f"  stream {number}: {line}")
            yield f"{line}\n"

    return StreamingResponse(stream(next(streams)))


async def main(client: Client) -> None:
    async with make_worker(client, AskWorkflow):
        print(await client.execute_workflow(AskWorkflow.run, "How is it?", id=QUEUE, task_queue=QUEUE))


if __name__ == "__main__":
    with demo.serve([Route("/", service, methods=["POST"])]) as URL:
        run(main, LineModel)
