"""`Retry-After`: a service that refuses for now may name the time of the next attempt."""

import random
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

MAX_DELAY = timedelta(minutes=5)
"""A service may well name tomorrow. But the fault may be mended sooner, and a person may wait."""

SPREAD = timedelta(seconds=3)
"""What chance adds to the delay, at most: no more than thrice the delay, and no less than a quarter of it. A thousand
runs that are refused must not come back in the same moment. Where a gateway takes 100 of them a second and names one
second, each is refused twice on average; with a quarter alone, four times."""


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
    return delay + max(delay / 4, min(3 * delay, SPREAD)) * random.random() if delay else None
