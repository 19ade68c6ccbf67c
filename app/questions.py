"""The questions of a run, approvals and hooks: the words to ask them with, and what a typed line means for each."""

import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, override

import pydantic
from pydantic_core import from_json

from options.approvals import APPROVAL, QUESTION_MEMO, Approval, open_questions
from options.hooks import RESOLVE_HOOK, HookResolution, OpenHook, memo_key, open_hooks


@dataclass(frozen=True)
class Answer:
    """The update that answers a question."""

    update: str
    argument: pydantic.BaseModel
    said: str = ""
    """A line for whoever follows the run, where its steps alone do not tell the answer."""


class NoAnswer(ValueError):
    """A line that does not answer the question. The message says why, or is empty where the prompt does."""


class Question(ABC):
    """A question that nobody has answered yet."""

    text: str
    prompt: str
    options: list[str]
    """The options of the command line that answer it, one way a line."""

    @abstractmethod
    def answer(self, line: str) -> Answer:
        """What the line means. NoAnswer: nothing."""


def questions_in(memo: Mapping[str, Any]) -> dict[str, Question]:
    """The open questions of a run, by their keys in its memo."""
    found: dict[str, Question] = {
        QUESTION_MEMO + call: ToolQuestion(call, summary) for call, summary in open_questions(memo).items()
    }
    return found | {memo_key(label): HookQuestion(hook) for label, hook in open_hooks(memo).items()}


def _yes_or_no(line: str) -> tuple[bool, str]:
    word, _, reason = line.strip().partition(" ")
    if word.lower() not in ("y", "yes", "n", "no"):
        raise NoAnswer
    return word.lower().startswith("y"), reason.strip()


class ToolQuestion(Question):
    """A tool call that waits for an approval."""

    prompt = "Allow it? (y, or n and why) "

    def __init__(self, call: str, summary: str) -> None:
        self._call, self._summary = call, summary
        self.text = f"{summary} waits for an approval"
        self.options = [f"--yes {call}", f'--no {call} --reason "…"']

    @override
    def answer(self, line: str) -> Answer:
        approved, reason = _yes_or_no(line)
        said = "" if approved else f"{self._summary} refused{reason and f': {reason}'}"
        return Answer(APPROVAL, Approval(call=self._call, approved=approved, reason=reason), said)


class HookQuestion(Question):
    """A hook that waits for its resolution: JSON, or yes or no if its schema has one boolean and needs nothing else."""

    def __init__(self, hook: OpenHook) -> None:
        self._label = hook.label
        self.text = f"hook {hook.label} ({hook.type}) waits for an answer: {hook.metadata}".removesuffix(": {}")
        schema, label = hook.resolution_schema, shlex.quote(hook.label)
        fields = {name: _without_null(field) for name, field in schema.get("properties", {}).items()}
        required: list[str] = schema.get("required", [])
        flags = [name for name, field in fields.items() if field.get("type") == "boolean"]
        texts = [name for name, field in fields.items() if field.get("type") == "string"]
        self._flag = flags[0] if len(flags) == 1 and required in ([], flags) else None
        self._reason = texts[0] if len(texts) == 1 else None
        if self._flag:
            self.prompt = f"{self._flag}? (y or n{f', and the {self._reason}' if self._reason else ''}) "
            self.options = [f"--yes {label}", f"--no {label}" + ' --reason "…"' * bool(self._reason)]
        else:
            types = (f'"{name}"{"" if name in required else "?"}: {_type_of(field)}' for name, field in fields.items())
            form = f"{{{', '.join(types) if schema else '…'}}}"
            self.prompt = f"Answer with JSON, {form}: "
            self.options = [f"--resolve {label} {shlex.quote(form)}"]

    @override
    def answer(self, line: str) -> Answer:
        if self._flag and not line.lstrip().startswith("{"):
            yes, reason = _yes_or_no(line)
            if reason and not self._reason:
                raise NoAnswer("it takes no reason")
            resolution = {self._flag: yes} | ({self._reason: reason} if self._reason and reason else {})
        else:
            try:
                resolution = from_json(line, allow_inf_nan=False)
            except ValueError as error:
                raise NoAnswer(f"that is no JSON: {error}") from error
            if not isinstance(resolution, dict):
                raise NoAnswer("that is no JSON object")
        return Answer(RESOLVE_HOOK, HookResolution(label=self._label, resolution=resolution))


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    """The schema of a field that may also be null, without that."""
    kinds = [kind for kind in field.get("anyOf", []) if kind != {"type": "null"}]
    return kinds[0] if len(kinds) == 1 else field


def _type_of(field: dict[str, Any]) -> str:
    return str(field.get("type") or field.get("$ref", "…").rpartition("/")[2])
