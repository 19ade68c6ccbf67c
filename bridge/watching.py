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


HURRY_SECONDS = 10.0
"""For how long the calls of a run are hurried. By then they know, and a run that is gone from here is forgotten."""

_hurried_until: dict[str, float] = {}
"""On the monotonic clock, by workflow id: those whose calls are to be cancelled."""


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


def hurry() -> None:
    """In a workflow: have its calls heartbeat all the time, for a while. An activity is told that it is cancelled when
    it heartbeats, which otherwise is every few seconds. It is for the calls in this process, where most of them are."""
    if not workflow.unsafe.is_replaying():
        _extend(_hurried_until, workflow.info().workflow_id, HURRY_SECONDS)


def is_hurried(workflow_id: str) -> bool:
    """Whether calls of this workflow are to be cancelled, as far as this process knows."""
    return _hurried_until.get(workflow_id, 0.0) > time.monotonic()


def noisy_runs() -> set[str]:
    """The ids of the workflows that are watched or hurried, or were so a short while ago."""
    return {*list(_watched_until), *list(_hurried_until)}


async def ask_elsewhere() -> None:
    """In an activity whose workflow run is in the cache of another process: ask that one, and remember the answer."""
    info = activity.info()
    assert info.workflow_id is not None
    handle = activity.client().get_workflow_handle(info.workflow_id, run_id=info.workflow_run_id)
    seconds = await handle.query(WATCH_QUERY, 0.0, result_type=float, rpc_timeout=QUERY_TIMEOUT)
    _extend(_watched_until, info.workflow_id, seconds)


def _watched(seconds: float) -> float:
    return _extend(_watched_until, workflow.info().workflow_id, seconds)


def _extend(until: dict[str, float], workflow_id: str, seconds: float) -> float:
    """Extend the time of a workflow, forget those whose time is over, and return for how many seconds it lasts."""
    now = time.monotonic()
    for id in [id for id, end in list(until.items()) if end < now]:
        until.pop(id, None)
    end = max(now + seconds, until.get(workflow_id, now))
    if end > now:
        until[workflow_id] = end
    return end - now
