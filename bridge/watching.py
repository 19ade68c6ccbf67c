"""Who waits for the heartbeats of a run: the text of an answer so far is sent only while somebody reads it.

A watcher calls `watch()` every few seconds. It is a Temporal query: it tells the worker that has the run in its cache,
and the history knows nothing of it.
"""

import time
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.client import WorkflowHandle

WATCH_QUERY = "watch_model_text"
"""Name of the Temporal query. Its argument is for how many seconds from now the run is watched at least; its answer is
for how many it is. No workflow is likely to have a query of this name for itself."""

WATCH_SECONDS = 15.0
"""For how long one call of `watch()` lasts. A query may be lost with its worker, so a watcher calls every
`WATCH_AGAIN_SECONDS`."""

WATCH_AGAIN_SECONDS = 5.0

QUERY_TIMEOUT = timedelta(seconds=5)
"""For one query. The next one comes soon."""

_watched_until: dict[str, float] = {}
"""On the monotonic clock, by workflow id: those that this process was told of."""


_hurried = set[str]()
"""Workflows whose calls are to be cancelled, by their ids."""


async def watch(handle: WorkflowHandle[Any, Any], seconds: float = WATCH_SECONDS) -> None:
    """Have the model calls of a run show their text in their heartbeats for a while: see `LiveText` of bridge/wire.py.

    Args:
        handle: The run.
        seconds: For how long.

    Raises:
        RPCError: The server, or every worker, is lost.
        WorkflowQueryFailedError: The run has made no model call yet.
    """
    await handle.query(WATCH_QUERY, seconds, rpc_timeout=QUERY_TIMEOUT)


def answer_watchers() -> None:
    """In a workflow: answer the query."""
    workflow.set_query_handler(WATCH_QUERY, _watched)


def is_watched(workflow_id: str) -> bool:
    """Whether somebody watches a run, as far as this process was told."""
    return _watched_until.get(workflow_id, 0.0) > time.monotonic()


def hurry(wanted: bool) -> None:
    """In a workflow: have its calls heartbeat all the time, or no longer. An activity is told that it is cancelled when
    it heartbeats, which otherwise is every few seconds. It is for the calls in this process, where most of them are."""
    id = workflow.info().workflow_id
    _hurried.add(id) if wanted else _hurried.discard(id)


def is_hurried(workflow_id: str) -> bool:
    """Whether calls of this workflow are to be cancelled, as far as this process knows."""
    return workflow_id in _hurried


async def ask_elsewhere() -> None:
    """In an activity whose workflow run is in the cache of another process: ask that one, and remember the answer."""
    info = activity.info()
    assert info.workflow_id is not None
    handle = activity.client().get_workflow_handle(info.workflow_id, run_id=info.workflow_run_id)
    seconds = await handle.query(WATCH_QUERY, 0.0, result_type=float, rpc_timeout=QUERY_TIMEOUT)
    _remember(info.workflow_id, seconds)


def _watched(seconds: float) -> float:
    return _remember(workflow.info().workflow_id, seconds)


def _remember(workflow_id: str, seconds: float) -> float:
    now = time.monotonic()
    for id in [id for id, until in list(_watched_until.items()) if until < now]:
        _watched_until.pop(id, None)
    until = max(now + seconds, _watched_until.get(workflow_id, now))
    if until > now:
        _watched_until[workflow_id] = until
    return until - now
