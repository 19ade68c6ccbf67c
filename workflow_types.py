"""Input and result of `AgentWorkflow`.

The sandbox passes this file through. In workflow.py, pydantic would build these classes again for every run, which
takes a millisecond and 60 KB.
"""

from datetime import timedelta

import pydantic

from options.conversation import ConversationRequest, ConversationState


class AgentRequest(ConversationRequest):
    """Input of `AgentWorkflow`."""

    model: str
    max_model_calls: int = 50
    """See `TemporalLanguageModel`."""
    max_tokens: int | None = None
    """The same."""
    approve: bool = False
    """Whether a person is asked before each tool call."""
    stay_open: bool = False
    """Whether to wait for more messages when all are answered."""
    idle_limit: timedelta | None = None
    """For how long."""


class AgentAnswer(pydantic.BaseModel):
    """Result of `AgentWorkflow`. `finish_reason` tells why an answer was cut: `length`, `content-filter`, `stopped`."""

    text: str
    finish_reason: str | None = None
    conversation: ConversationState | None = None
    """All that was said, for a run that goes on from here."""
