"""Keeps secrets out of the history: a server may echo a key, and a database driver quotes its URL."""

import os
import re
from collections.abc import Callable, Iterator
from urllib.parse import unquote

from pydantic_core import to_jsonable_python

MIN_SECRET = 8
"""Characters. A shorter value of an environment variable is no secret, and may be part of any word."""

_kept: dict[str, str] = {}
"""The names of the secrets that `keep_secret()` was given, by value."""


def keep_secret(name: str, value: str) -> None:
    """Have this value replaced by `$name` in all errors, as if it were in the environment."""
    if len(value) >= MIN_SECRET:
        _kept[value] = name


def redacted(text: str) -> str:
    """The text without the user part of URLs, and without the values of secrets.

    A secret is what `keep_secret()` was given, the value of an environment variable whose name ends in `KEY`, `TOKEN`,
    `SECRET` or `PASSWORD`, and the password in a URL there, or its user where there is no password.
    """
    return re.sub(r"(\w://)[^\s/]+@", r"\1…@", _replaced(text, [*_kept.items(), *_secrets()]))


def without_kept(text: str) -> str:
    """The text without what `keep_secret()` was given, and otherwise as it is: for results, which are no errors."""
    return _replaced(text, [*_kept.items()])


def redacted_detail(detail: object, redact: Callable[[str], str] = redacted) -> object:
    """The same for a detail of an `ApplicationError`, or anything else that can become JSON."""
    match detail if isinstance(detail, bytes) else to_jsonable_python(detail, fallback=str):
        case str(text):
            return redact(text)
        case list(items):
            return [redacted_detail(item, redact) for item in items]
        case dict(items):
            return {redacted_detail(key, redact): redacted_detail(value, redact) for key, value in items.items()}
        case other:
            return other


def _replaced(text: str, secrets: list[tuple[str, str]]) -> str:
    for secret, name in sorted(secrets, key=lambda found: -len(found[0])):  # one may be the beginning of another
        text = text.replace(secret, f"${name}")
    return text


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
