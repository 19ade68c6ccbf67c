"""Hooks: `ai.Hook`, the SDK's own way to ask a person, in a workflow, which waits for as long as it takes.

    temporal_hooks()    # when the module is imported; the loop and its hooks stay as they are

The SDK keeps its hooks in the process, by label. So two runs of one worker that wait for the same label would get each
other's answers. Here each workflow run has hooks of its own. While one waits, no timer and no process runs. The open
hooks are in the run's memo, so that reading them needs no worker. The answer is the update `RESOLVE_HOOK`:

    for label, hook in open_hooks(await (await handle.describe()).memo()).items():
        await handle.execute_update(RESOLVE_HOOK, HookResolution(label=label, resolution={"granted": True}))
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, cast, override

import pydantic
import vercel_ai_sdk as ai
from pydantic_core import to_json
from temporalio import workflow
from temporalio.exceptions import ApplicationError
from vercel_ai_sdk.core import hooks
from vercel_ai_sdk.core.runtime import _runtime  # private: the `ai.run()` that a hook belongs to

from bridge.details import doing, shortened
from bridge.of_run import of_run
from durable import _Pump

RESOLVE_HOOK = "resolve_hook"
"""Name of the update that resolves an open hook."""

CANCEL_HOOK = "cancel_hook"
"""Name of the update that cancels an open hook: `await Hook.create()` raises a `CancelledError` in the loop, as it does
when `Hook.cancel()` is called."""

HOOK_MEMO = "waiting_for_hook."
"""Begins the keys of a run's memo under which the open hooks are."""

INVALID_RESOLUTION = "InvalidResolution"
"""Type of the error when an update `RESOLVE_HOOK` is refused by the hook's pydantic model."""

METADATA_BYTES = 8_000
"""Longest metadata in the memo. Long enough to show what is asked, and short enough for many hooks at once: the server
limits the size of a run's memo."""

SCHEMA_BYTES = 8_000
"""Longest schema in the memo, for the same reason."""


class HookResolution(pydantic.BaseModel):
    """Argument of the update `RESOLVE_HOOK`: the label of a hook, and the fields of its pydantic model."""

    label: str
    resolution: dict[str, Any]


class HookCancellation(pydantic.BaseModel):
    """Argument of the update `CANCEL_HOOK`: the label of a hook, and the message of the `CancelledError`."""

    label: str
    reason: str | None = None


class OpenHook(pydantic.BaseModel):
    """A hook that waits for its resolution, as it is in the memo."""

    label: str
    type: str
    """The name of its class."""
    metadata: str
    """JSON, cut to `METADATA_BYTES`."""
    resolution_schema: dict[str, Any]
    """The JSON schema of what resolves it. Empty if that is longer than `SCHEMA_BYTES`, or if pydantic has none."""


def open_hooks(memo: Mapping[str, Any]) -> dict[str, OpenHook]:
    """The hooks of a run that wait for their resolution: from its memo, by label. A run that failed may have left some
    there."""
    found = [OpenHook.model_validate(memo[key]) for key in memo if key.startswith(HOOK_MEMO)]
    return {hook.label: hook for hook in found}


def memo_key(label: str) -> str:
    """The key of the memo under which an open hook is. It has a hash, as keys are never encrypted and labels may be
    long."""
    return HOOK_MEMO + hashlib.sha256(label.encode()).hexdigest()[:16]


# ── In the workflow ──────────────────────────────────────────────────────────────────────────────────────

type _Hook = type[ai.Hook[pydantic.BaseModel]]

_create: Callable[..., Any] = vars(ai.Hook)["create"].__func__
"""The SDK's own, which `temporal_hooks()` replaces."""


def temporal_hooks() -> None:
    """Give each workflow run hooks of its own. Call it where the file of a workflow is imported; it is for all
    workflows of the process. Outside of workflows hooks stay as they are.

    In a workflow:

    - `Hook.create()` waits, also where the class has `cancels_future = True`, as `ai.ToolApproval` has. That is for
      processes which cannot wait: `ai.run()` would cancel the branch, and somebody would have to run it again.
    - `Hook.resolve()` and `Hook.cancel()` mean the hooks of this run. The workflow's own signals may call them.
    - A label may be used again once its hook is resolved, also when the run has continued as new: the answers in the
      checkpoint come back in their order. Two hooks with one label at once fail the run.
    - A checkpoint has answers only: a hook that was cancelled is asked again when the run has continued as new.
    - An update for a hook that is not open is refused with an `ApplicationError` of the type `AlreadyResolved` or
      `UnknownHook`. One that came too early is to be sent again when the hook is in the memo. A resolution that the
      hook's pydantic model refuses is an `InvalidResolution`.
    """
    if type(hooks._live_hooks) is not dict:
        return  # done: the sandbox imports workflow files anew for every run
    # private: the hooks that wait, and what `Hook.resolve()` has for hooks that are not there yet
    hooks._live_hooks = cast(dict[str, Any], _OfRun(hooks._live_hooks, lambda: of_run(_Hooks).live))
    hooks._pending_resolutions = cast(dict[str, Any], _OfRun(hooks._pending_resolutions, lambda: of_run(_Hooks).early))
    init, track_hook_label = ai.Runtime.__init__, ai.Runtime.track_hook_label

    async def create(cls: _Hook, label: str, metadata: dict[str, Any] | None = None) -> pydantic.BaseModel:
        runtime = _runtime.get(None)
        if runtime is None or not workflow.in_workflow():
            return cast(pydantic.BaseModel, await _create(cls, label, metadata))
        return await of_run(_Hooks).create(runtime, cls, label, metadata)

    def begin(self: ai.Runtime, checkpoint: ai.Checkpoint | None = None) -> None:
        init(self, checkpoint)
        if workflow.in_workflow():
            of_run(_Hooks).begin(self)

    def track(self: ai.Runtime, label: str) -> None:
        # `ai.run()` forgets the hooks with these labels at its end, but another loop of the run may wait for the same
        # label by then. Here each hook is forgotten when it is over.
        if not workflow.in_workflow():
            track_hook_label(self, label)

    ai.Hook.create = classmethod(create)  # type: ignore[method-assign, assignment]  # as in the SDK, but for its type
    ai.Runtime.__init__ = begin  # type: ignore[method-assign]  # the same signature
    ai.Runtime.track_hook_label = track  # type: ignore[method-assign]  # the same signature


class _OfRun[V](MutableMapping[str, V]):
    """In a workflow a dictionary of the run, elsewhere that of the process."""

    def __init__(self, of_process: dict[str, V], of_this_run: Callable[[], dict[str, V]]) -> None:
        self._of_process, self._of_this_run = of_process, of_this_run

    @property
    def _current(self) -> dict[str, V]:
        return self._of_this_run() if workflow.in_workflow() else self._of_process

    @override
    def __getitem__(self, label: str) -> V:
        return self._current[label]

    @override
    def __setitem__(self, label: str, value: V) -> None:
        self._current[label] = value

    @override
    def __delitem__(self, label: str) -> None:
        del self._current[label]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._current)

    @override
    def __len__(self) -> int:
        return len(self._current)


class _Hooks:
    """The hooks of one workflow run."""

    def __init__(self) -> None:
        self.live: dict[str, tuple[asyncio.Future[Any], dict[str, Any], ai.Runtime]] = {}
        self.early: dict[str, dict[str, Any]] = {}
        self._open: dict[str, _Hook] = {}
        self._resolved: set[str] = set()
        self._carried: dict[ai.Runtime, dict[str, deque[dict[str, Any]]]] = {}
        workflow.set_update_handler(RESOLVE_HOOK, self._resolve, validator=self._check_resolution)
        workflow.set_update_handler(CANCEL_HOOK, self._cancel, validator=self._check_open)

    def begin(self, runtime: ai.Runtime) -> None:
        """Take over the resolutions in the checkpoint of an `ai.run()`."""
        carried = self._carried[runtime] = {}
        for event in runtime.get_checkpoint().hooks:
            carried.setdefault(event.label, deque()).append(event.resolution)
        runtime._hook_replay.clear()  # private: would give a label that is used again its last resolution every time

    async def create(
        self, runtime: ai.Runtime, cls: _Hook, label: str, metadata: dict[str, Any] | None
    ) -> pydantic.BaseModel:
        if label in self._open:
            problem = f"two hooks have the label {label!r} at once: nobody could tell which of them an answer is for"
            raise ApplicationError(problem, type="HookLabel", non_retryable=True)
        if carried := self._carried[runtime].get(label):
            self._resolved.add(label)
            return _schema_of(cls)(**carried.popleft())  # not recorded again: it is in the checkpoint
        if label in self.early:
            answer: pydantic.BaseModel = await _create(cls, label, metadata)
        else:
            await _Pump.start()  # or `ai.run()` would write ten timers a second
            with self._opened(cls, label, metadata):
                waiting = type(cls.__name__, (cls,), {"cancels_future": False})
                answer = await _create(waiting, label, metadata)
        self._resolved.add(label)
        return answer

    @contextmanager
    def _opened(self, cls: _Hook, label: str, metadata: dict[str, Any] | None) -> Iterator[None]:
        self._open[label] = cls
        shown = to_json(metadata or {}, bytes_mode="base64", fallback=lambda value: type(value).__name__).decode()
        hook = OpenHook(
            label=label,
            type=cls.hook_type,
            metadata=shortened(shown, METADATA_BYTES),
            resolution_schema=_json_schema_of(cls),
        )
        # A key for each, since the server takes no more than 4 MB at once, which many hooks in one value would be.
        workflow.upsert_memo({memo_key(label): hook})
        try:
            with doing(f"waiting for a hook: {cls.hook_type} {label}"):
                yield
        finally:
            del self._open[label]
            self.live.pop(label, None)
            if workflow.in_workflow():  # not while the run is evicted from the worker's cache
                workflow.upsert_memo({memo_key(label): None})

    def _resolve(self, answer: HookResolution) -> None:
        self._open[answer.label].resolve(answer.label, answer.resolution)

    async def _cancel(self, wish: HookCancellation) -> None:
        await self._open[wish.label].cancel(wish.label, wish.reason)

    def _check_resolution(self, answer: HookResolution) -> None:
        self._check_open(answer)
        schema = _schema_of(self._open[answer.label])
        try:
            schema(**schema(**answer.resolution).model_dump())  # twice, as the SDK does
        except pydantic.ValidationError as error:
            problems = [f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors()]
            problem = f"that does not resolve hook {answer.label!r}: {'; '.join(problems)}"
            raise ApplicationError(problem, type=INVALID_RESOLUTION) from None

    def _check_open(self, wish: HookResolution | HookCancellation) -> None:
        future = self.live[wish.label][0] if wish.label in self.live else None
        if future is not None and not future.done():
            return
        if future is not None or wish.label in self._resolved:
            raise ApplicationError(f"hook {wish.label!r} is resolved already", type="AlreadyResolved")
        raise ApplicationError(f"no hook {wish.label!r} waits to be resolved", type="UnknownHook")


def _schema_of(hook: _Hook) -> type[pydantic.BaseModel]:
    return hook._schema  # private: the model that `@ai.hook` was put on


def _json_schema_of(hook: _Hook) -> dict[str, Any]:
    try:
        schema = _schema_of(hook).model_json_schema()
    except pydantic.errors.PydanticInvalidForJsonSchema:
        return {}
    return schema if len(to_json(schema)) <= SCHEMA_BYTES else {}
