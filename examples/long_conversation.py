"""Shows a conversation that outlives its runs, and that a model sums up when it gets too long."""

import vercel_ai_sdk as ai
from pydantic import BaseModel
from shared import QUEUE, make_worker, run, says, scripted
from temporalio import workflow
from temporalio.client import Client

from bridge.wire import text_of
from options.conversation import (
    Conversation,
    ConversationRequest,
    ConversationState,
    ConversingModel,
    UserMessage,
)
from options.conversation_client import Handle, ask, first_memo
from options.shortening import summarize


async def agent(llm: ai.LanguageModel, query: str, earlier: list[ai.Message]) -> ai.StreamResult:
    return await ai.stream_loop(llm, [*earlier, *ai.make_messages(user=query)], [])


class Answer(BaseModel):
    conversation: ConversationState | None


@workflow.defn
class TalkWorkflow:
    @workflow.init
    def __init__(self, request: ConversationRequest) -> None:
        self.conversation = Conversation(request, shorten=summarize("summarizer", over=500, keep=1, prompt="Sum up."))

    @workflow.run
    async def run(self, request: ConversationRequest) -> Answer:
        while turn := await self.conversation.next_turn():
            llm = ConversingModel("scripted", turn)
            async with turn:
                earlier = await turn.earlier()
                async for message in ai.run(agent, llm, turn.question, earlier, checkpoint=llm.checkpoint):
                    turn.text = text_of(message)
        return Answer(conversation=self.conversation.state())


async def script(model: str, messages: list[ai.Message]) -> ai.Message:
    print(f"  {model}: {[text_of(message) for message in messages]}")
    return says("They spoke of whales." if model == "summarizer" else f"Answer {text_of(messages[-1])[-2]}.")


async def main(client: Client) -> None:
    async with make_worker(client, TalkWorkflow):
        for number in range(1, 5):
            message = UserMessage(id=f"message-{number}", text=f"Question {number}?")

            async def start(said: ConversationState | None, message: UserMessage = message) -> Handle:
                request = ConversationRequest(query=message.text, query_id=message.id, conversation=said)
                memo = await first_memo(None, "Whales", said)
                return await client.start_workflow(TalkWorkflow.run, request, id=QUEUE, task_queue=QUEUE, memo=memo)

            result = await ask(client, QUEUE, message, start)
            print(f"{message.text} {result.text}")


if __name__ == "__main__":
    run(main, scripted(script))
