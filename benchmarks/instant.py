"""The model and the tools of work.py for the Vercel AI SDK."""

from collections.abc import AsyncGenerator, Sequence
from typing import override

import pydantic
import vercel_ai_sdk as ai
import work


def message(calls: list[work.Call]) -> ai.Message:
    """A message of the model with these calls, or the answer. Has the fields that the SDK's `GatewayModel` sets."""
    parts: list[ai.Part] = [
        ai.ToolPart(tool_call_id=call.id, tool_name=call.tool, tool_args=call.arguments, state="done") for call in calls
    ]
    return ai.Message(
        role="assistant",
        parts=parts or [ai.TextPart(text=work.ANSWER, state="done")],
        usage=ai.Usage(input_tokens=work.TOKENS_IN, output_tokens=work.TOKENS_OUT),
    )


class InstantModel(ai.LanguageModel):
    """Answers from the transcript, at once."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.finish_reason: str | None = None

    @override
    async def stream(
        self,
        messages: list[ai.Message],
        tools: Sequence[ai.ToolLike] | None = None,
        output_type: type[pydantic.BaseModel] | None = None,
    ) -> AsyncGenerator[ai.Message]:
        query = next(message.text for message in messages if message.role == "user")
        calls = messages[-1].tool_calls
        next_calls = work.next_calls(query, calls[-1].tool_call_id if calls else None)
        self.finish_reason = "tool-calls" if next_calls else "stop"
        yield message(next_calls)


get_weather = ai.tool(work.get_weather)
get_population = ai.tool(work.get_population)
