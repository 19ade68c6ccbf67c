"""The state of a workflow run: objects of the bridge that belong to the run, and go with it."""

from collections.abc import Callable
from typing import Any, cast

from temporalio import workflow


def of_run[T](make: Callable[[], T]) -> T:
    """The one object of this class that belongs to the current workflow run; the first call makes it."""
    kept: dict[Callable[[], Any], Any] = vars(workflow.instance()).setdefault("__durable_agents__", {})
    if make not in kept:
        kept[make] = make()
    return cast(T, kept[make])
