"""Shows conversations in a browser: the AI SDK's UI message stream over HTTP, for `useChat` and for web.html."""

import asyncio
import html
import os
import sys
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pydantic
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from temporalio.client import WorkflowUpdateFailedError

sys.path.append(str(Path(__file__).resolve().parent.parent))  # where durable.py and the rest of the sample are

from app.command_line import load_when_used

load_when_used()

from vercel_ai_sdk.ai_sdk_ui import UI_MESSAGE_STREAM_HEADERS

from app.output import title
from app.web import PROBLEMS, Site, launch
from options.access import body_of, policy_of
from options.approvals import APPROVAL, Approval, open_questions
from options.conversation import ConversationState, Status, UserMessage
from options.conversation_client import Handle, described, first_memo, say, status_of, stop, view
from options.ui_messages import Chunk, UIMessage, ui_messages
from options.ui_stream import conversation_stream, server_sent_events, turn_stream, wake
from workflow import AgentWorkflow
from workflow_types import AgentRequest

PAGE = (Path(__file__).parent / "web.html").read_text()
HEADERS = {"Content-Security-Policy": policy_of(PAGE), "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
IDLE_LIMIT = timedelta(days=1)  # then the run ends; the next message goes on with the conversation in another one
LONGEST, WORKER_SECONDS = 1_000_000, 10


class Posted(pydantic.BaseModel):
    """What `useChat` sends. With `approve`, an addition, a new conversation asks a person before each tool call."""

    id: str = pydantic.Field(max_length=1000)
    messages: list[dict[str, pydantic.JsonValue]] = pydantic.Field(min_length=1)
    trigger: Literal["submit-message", "regenerate-message"] = "submit-message"
    approve: bool = False


class Chat:
    """The routes. The name of a conversation's run is made of its user and its id with this user."""

    def __init__(self, site: Site) -> None:
        self.site, self.client = site, site.client
        self.html = PAGE.replace("<!-- notice -->", html.escape(site.notice))

    def of(self, request: Request, id: str) -> Handle:
        """The conversation that a request is about. HTTPException: it comes from nobody, or from another site."""
        name = self.site.access.name(self.site.access.user(request), f"{self.site.task_queue} {id}")
        return self.client.get_workflow_handle(f"web-{name}")

    async def page(self, request: Request) -> Response:
        return self.site.access.admit(request) or HTMLResponse(self.html, headers=HEADERS)

    async def post(self, request: Request) -> Response:
        """A message, or what a person says to tool calls. The response is the turn that comes of it."""
        self.site.access.user(request)  # before anything is read
        posted = Posted.model_validate_json(await body_of(request))
        handle, last = self.of(request, posted.id), UIMessage.model_validate(posted.messages[-1])
        description = await described(self.client, handle.id)
        status = await status_of(description) if description else Status(turn=0, working=False)
        if last.role != "user":
            await self.answer(handle, last)
            return _stream(turn_stream(self.client, handle.id, turn=status.turn, has=last.parts))
        if not 0 < len(last.text.strip().encode()) <= LONGEST:
            raise HTTPException(413 if last.text.strip() else 400, "A message has 1 to 1,000,000 bytes of text.")
        turns = (await view(handle)).turns if posted.trigger == "regenerate-message" and description else []
        if any(turn.outcome and turn.messages[0].id == last.id for turn in turns):
            raise HTTPException(400, "What was said stays. To ask again, send another message.")
        message = UserMessage(id=last.id, text=last.text, steers=status.turn if status.working else None)

        async def start(conversation: ConversationState | None) -> Handle:
            begun = AgentRequest(query=last.text, query_id=last.id, model=self.site.model, conversation=conversation)
            begun.stay_open, begun.idle_limit, begun.approve = True, IDLE_LIMIT, posted.approve
            memo, queue = await first_memo(description, title(last.text), conversation), self.site.task_queue
            return await self.client.start_workflow(AgentWorkflow.run, begun, id=handle.id, task_queue=queue, memo=memo)

        await say(self.client, handle.id, message, start)
        wake(handle.id)
        return _stream(turn_stream(self.client, handle.id, turn=status.turn, message=last.id))

    async def answer(self, handle: Handle, last: UIMessage) -> None:
        for asked in last.answers:
            approval = Approval(call=asked.id, approved=bool(asked.approved), reason=asked.reason or "")
            try:
                await asyncio.wait_for(handle.execute_update(APPROVAL, approval), WORKER_SECONDS)
            except WorkflowUpdateFailedError as error:
                if getattr(error.cause, "type", "") == "UnknownCall":  # else somebody was faster, or the clock
                    raise HTTPException(409, "Nothing waits for this answer.") from error
        wake(handle.id)

    async def messages(self, request: Request) -> Response:
        handle = self.of(request, request.path_params["id"])
        if (description := await described(self.client, handle.id)) is None:
            return JSONResponse([])
        messages = ui_messages(await view(handle), open_questions(await description.memo()))
        return JSONResponse([message.plain() for message in messages])

    async def stream(self, request: Request) -> Response:
        handle = self.of(request, request.path_params["id"])
        if (first := request.query_params.get("from", "")).isdecimal():  # an addition: see docs/web.md
            return _stream(conversation_stream(self.client, handle.id, int(first)))
        description = await described(self.client, handle.id)
        if description is None or not (status := await status_of(description)).working:
            return Response(status_code=204)
        return _stream(turn_stream(self.client, handle.id, turn=status.turn))

    async def stop(self, request: Request) -> Response:
        handle = self.of(request, request.path_params["id"])
        turn = await stop(handle)
        wake(handle.id)
        return JSONResponse({"stopped": turn})


def _stream(chunks: AsyncGenerator[Chunk]) -> Response:
    return StreamingResponse(server_sent_events(chunks), headers=UI_MESSAGE_STREAM_HEADERS)


def make_app(site: Site) -> Starlette:
    chat, one = Chat(site), "/api/chat/{id}"
    return Starlette(
        routes=[
            Route("/", chat.page),
            Route("/api/chat", chat.post, methods=["POST"]),
            Route(one, chat.messages),
            Route(f"{one}/stream", chat.stream),
            Route(f"{one}/stop", chat.stop, methods=["POST"]),
        ],
        exception_handlers=PROBLEMS,
    )


if __name__ == "__main__":
    os._exit(launch(AgentWorkflow, make_app))  # the Temporal runtime may crash an interpreter that takes itself down
