"""The model of another project: calls each tool that it is offered, in turn, and then says what came of it."""

from collections.abc import AsyncGenerator, Sequence
from typing import override

import pydantic
import vercel_ai_sdk as ai

ARGUMENTS = {
    "quote": '{"legs": [{"start": "Oslo", "end": "Rome", "day": "2026-05-01"}], "options": {"luggage": ["skis"]}}',
    "book": '{"price": 165}',
    "charge": '{"price": 165}',
}


class ScriptedModel(ai.LanguageModel):
    def __init__(self, name: str) -> None:
        assert name == "scripted"

    @override
    async def stream(
        self,
        messages: list[ai.Message],
        tools: Sequence[ai.ToolLike] | None = None,
        output_type: type[pydantic.BaseModel] | None = None,
    ) -> AsyncGenerator[ai.Message]:
        done = [part for message in messages for part in message.tool_calls]
        left = [tool.name for tool in tools or ()][len(done) :]
        if left:
            part: ai.Part = ai.ToolPart(tool_call_id=left[0], tool_name=left[0], tool_args=ARGUMENTS[left[0]])
        else:
            part = ai.TextPart(text="; ".join(f"{part.tool_name}: {part.result}" for part in done))
        yield ai.Message(role="assistant", parts=[part])
