"""Shortening: what to do when a conversation gets too long for the model. For `Conversation(…, shorten=…)`.

    Conversation(request, stay_open=True, shorten=keep_last(20))
    Conversation(request, stay_open=True, shorten=summarize("provider/model", over=100_000))

It is done in the workflow, before a turn. So it is replayed like the rest, and a summary is made once: it is the result
of an activity. What was left out is still in the histories, for as long as the namespace keeps them.
"""

from collections.abc import Sequence

import vercel_ai_sdk as ai

from bridge.wire import text_of
from durable import TemporalLanguageModel
from options.conversation import Shorten

SUMMARY_PROMPT = """\
Summarize the conversation so far for an assistant who is to go on with it without having read it. Keep names, figures,
decisions, and what is still open. Write nothing else."""


def keep_last(questions: int) -> Shorten:
    """Keep the last messages of the user, and all that was said from there on.

    Args:
        questions: How many messages of the user, at least 1.
    """
    _check(questions)

    async def shorten(messages: list[ai.Message]) -> list[ai.Message]:
        return messages[_start_of_last(messages, questions) :]

    return shorten


def summarize(model: str, *, over: int, keep: int = 4, prompt: str = SUMMARY_PROMPT) -> Shorten:
    """Replace what is old by a summary that a model writes, whenever the conversation is long.

    If the model call fails for good, the turn fails, and the next one tries again.

    Args:
        model: The model's name, as for `TemporalLanguageModel`.
        over: From how many characters on, tool results included. A token is three to four of them.
        keep: How many messages of the user, and all that was said from there on, stay as they are. At least 1.
        prompt: What to ask the model for.
    """
    _check(keep)

    async def shorten(messages: list[ai.Message]) -> list[ai.Message]:
        start = _start_of_last(messages, keep)
        if start == 0 or sum(len(message.model_dump_json()) for message in messages) <= over:
            return messages
        summary = ""
        async for message in ai.run(_ask_for_summary, TemporalLanguageModel(model), messages[:start], prompt):
            summary = text_of(message)
        text = f"Summary so far: {summary}"
        return [
            # An id that stays the same in a replay.
            ai.Message(id=f"summary-before-{messages[start].id}", role="user", parts=[ai.TextPart(text=text)]),
            *messages[start:],
        ]

    return shorten


async def _ask_for_summary(llm: ai.LanguageModel, old: Sequence[ai.Message], prompt: str) -> ai.StreamResult:
    [question] = ai.make_messages(user=prompt)
    return await ai.stream_step(llm, [*old, question], label="summary")


def _check(questions: int) -> None:
    if questions < 1:
        raise ValueError(f"a conversation cannot go on from {questions} messages of the user")


def _start_of_last(messages: Sequence[ai.Message], questions: int) -> int:
    asked = [i for i, message in enumerate(messages) if message.role == "user"]
    return asked[-questions] if len(asked) > questions else 0
