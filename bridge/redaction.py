"""Keeps secrets out of the history: a server may echo a key, and a database driver quotes its URL."""

import os
import re
from collections.abc import Iterator
from urllib.parse import unquote

from pydantic_core import to_jsonable_python

MIN_SECRET = 8
"""Characters. A shorter value of an environment variable is no secret, and may be part of any word."""


def redacted(text: str) -> str:
    """The text without the user part of URLs, and without the values of secrets in the environment.

    A secret is the value of a variable whose name ends in `KEY`, `TOKEN`, `SECRET` or `PASSWORD`, and the password
    in a URL, or its user where there is no password.
    """
    for secret, name in sorted(_secrets(), key=lambda found: -len(found[0])):  # one may be the beginning of another
        text = text.replace(secret, f"${name}")
    return re.sub(r"(\w://)[^\s/]+@", r"\1…@", text)


def redacted_detail(detail: object) -> object:
    """The same for a detail of an `ApplicationError`, as JSON."""
    match detail if isinstance(detail, bytes) else to_jsonable_python(detail, fallback=str):
        case str(text):
            return redacted(text)
        case list(items):
            return [redacted_detail(item) for item in items]
        case dict(items):
            return {redacted_detail(key): redacted_detail(value) for key, value in items.items()}
        case other:
            return other


def _secrets() -> Iterator[tuple[str, str]]:
    for name, value in os.environ.items():
        found: list[str] = []
        if name.upper().endswith(("KEY", "TOKEN", "SECRET", "PASSWORD")):
            found += [value, repr(value)[1:-1], " ".join(value.split())]  # as an error may quote it
        for url in re.split(r"[\s,;]+(?=\w+://)", value):
            if match := re.search(r"://([^\s/@:]*)(?::(\S*))?@", url) or re.search(r"://()(\S+)@", url):
                secret = match[2] or match[1]
                found += [secret, unquote(secret)]
        yield from ((secret, name) for secret in found if len(secret) >= MIN_SECRET)
