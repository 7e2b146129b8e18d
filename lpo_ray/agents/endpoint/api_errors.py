"""Errors of the endpoint, in the shapes of the two APIs, so that their clients behave as they do elsewhere.

OpenAI's and Anthropic's clients ask again after 408, 409, 429 and 5xx, and give up after any other status.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Dialect = Literal["openai", "anthropic"]

OPENAI_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
    500: "server_error", 503: "server_error",
}  # fmt: skip
ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 500: "api_error", 503: "overloaded_error",
}  # fmt: skip
OTHERWISE = "invalid_request_error"
"""type of every other status, in both APIs"""
CONTEXT_LENGTH = "context_length_exceeded"
"""code by which agents know that their history is too long"""


@dataclass(eq=False)
class ApiError(Exception):
    """Error that an agent's client is told."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None
    """seconds"""

    def __str__(self) -> str:
        return self.message

    def body(self, dialect: Dialect) -> dict[str, Any]:
        """Write it in the shape of an API."""
        if dialect == "anthropic":
            kind = ANTHROPIC_TYPES.get(self.status, OTHERWISE)
            return {"type": "error", "error": {"type": kind, "message": self.message}}
        kind = OPENAI_TYPES.get(self.status, OTHERWISE)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def unknown_key() -> ApiError:
    """Make the error for a key that no session has."""
    return ApiError(401, "the API key is unknown; expected the key of a session that runs", "invalid_api_key")


def ended_session() -> ApiError:
    """Make the error for a key whose session has ended. Asking again is of no use."""
    return ApiError(403, "the session of this API key has ended; nothing is answered any more", "session_ended")


def too_long(length: int, most: int) -> ApiError:
    """Make the error for a history that leaves no room for an answer."""
    return ApiError(
        400,
        f"This model's maximum context length is {most} tokens. However, the request has {length} tokens. Please "
        "reduce the length of the messages.",
        CONTEXT_LENGTH,
        "messages",
    )
