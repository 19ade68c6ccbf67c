"""The conversations of conversation.py: the sample's, the same with shortening, and the floor."""

import asyncio

import pydantic
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    import vercel_ai_sdk as ai
    from worker import WorkerOptions

    from activities import tool_call_activity
    from bridge.heartbeats import heartbeats
    from bridge.tools import specs_of
    from bridge.wire import ModelReply, ToolCall, WireMessage, text_of
    from durable import MODEL_OPTIONS, TOOL_OPTIONS
    from options.conversation import MEMO, SAY, Conversation, Status, UserMessage
    from options.gateway import GatewayModel
    from options.shortening import keep_last
    from plugin import DurableAgents
    from tools import get_population

from workflow import AgentWorkflow
from workflow_types import AgentAnswer, AgentRequest

KEPT = 20


@workflow.defn
class ShortenedWorkflow(AgentWorkflow):
    """`AgentWorkflow` with a conversation that forgets."""

    @workflow.init
    def __init__(self, request: AgentRequest) -> None:
        self._conversation = Conversation(request, stay_open=True, shorten=keep_last(KEPT))

    @workflow.run
    async def run(self, request: AgentRequest) -> AgentAnswer:
        return await super().run(request)


# ── The floor ────────────────────────────────────────────────────────────────────────────────────────────


class Asked(pydantic.BaseModel):
    messages: list[WireMessage]


@activity.defn
async def floor_model_activity(asked: Asked) -> ModelReply:
    with heartbeats():
        model = GatewayModel("test/model")
        *_, message = [said async for said in model.stream(asked.messages, specs_of([get_population]))]
        return ModelReply(message=message, finish_reason=model.finish_reason)


@workflow.defn
class FloorConversation:
    """Signals and the same activities, written by hand. The model is sent the question alone: there is no transcript,
    and nothing to carry over."""

    @workflow.init
    def __init__(self, turn: int) -> None:
        self._waiting: list[UserMessage] = []
        self._turn = turn

    @workflow.run
    async def run(self, turn: int) -> None:
        while True:
            await workflow.wait_condition(lambda: bool(self._waiting))
            message = self._waiting.pop(0)
            self._turn += 1
            workflow.upsert_memo({MEMO: Status(turn=self._turn)})
            messages = ai.make_messages(system="", user=message.text)
            while True:
                reply = await workflow.execute_activity(
                    floor_model_activity, Asked(messages=messages), **MODEL_OPTIONS | {"summary": "test/model, call 1"}
                )
                messages.append(reply.message)
                if not reply.message.tool_calls:
                    break
                await asyncio.gather(*(self._tool(call) for call in reply.message.tool_calls))
            workflow.upsert_memo({MEMO: Status(turn=self._turn, working=False, answered=[message.id])})
            if workflow.info().is_continue_as_new_suggested() and text_of(reply.message):
                workflow.continue_as_new(self._turn)

    async def _tool(self, call: ai.ToolPart) -> None:
        reply = await workflow.execute_activity(
            tool_call_activity,
            ToolCall(tool=call.tool_name, arguments={"city": "Tokyo"}),
            **TOOL_OPTIONS | {"summary": 'get_population(city="Tokyo")'},
        )
        call.set_result(reply.result)

    @workflow.signal(name=SAY)
    def say(self, message: UserMessage) -> None:
        self._waiting.append(message)


async def connect(address: str) -> Client:
    return await Client.connect(address, plugins=[DurableAgents(GatewayModel)])


def make_worker(client: Client, options: WorkerOptions) -> Worker:
    return Worker(
        client,
        **options,
        workflows=[AgentWorkflow, ShortenedWorkflow, FloorConversation],
        activities=[floor_model_activity],
    )
