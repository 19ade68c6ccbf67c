"""`Retry-After`: a service that refuses for now may name the time of the next attempt."""

import random
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

MAX_DELAY = timedelta(minutes=5)
"""A service may well name tomorrow. But the fault may be mended sooner, and a person may wait."""

JITTER = 0.25
"""Share of the delay that is added by chance: a thousand runs must not come back in the same moment."""


def retry_delay(error: BaseException) -> timedelta | None:
    """How long to wait before the next attempt; None leaves it to the retry policy.

    Args:
        error: Has the header's value as `retry_after`, or the `response` of the service, as the errors of httpx and of
            the providers' SDKs have it.
    """
    headers = getattr(getattr(error, "response", None), "headers", {})
    value = getattr(error, "retry_after", None) or headers.get("retry-after")
    if not isinstance(value, str):
        return None
    try:
        delay = timedelta(seconds=float(value))
    except (ValueError, OverflowError):  # nan and inf among them
        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return None
        delay = (when if when.tzinfo else when.replace(tzinfo=UTC)) - datetime.now(UTC)
    delay = min(max(delay, timedelta(0)), MAX_DELAY)
    return delay * (1 + JITTER * random.random()) if delay else None
