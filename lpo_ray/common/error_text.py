"""Text of an error that code from outside raised. Stdlib only: verifier processes import it."""

from __future__ import annotations

LONGEST = 500
"""characters of an error's text"""


def error_text(error: BaseException) -> str:
    """Write type and text of ``error``, cut to LONGEST. Never raises, whatever the error's own ``__str__`` does."""
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001 - __str__ is code from outside, too
        return f"{type(error).__name__}, whose text cannot be made"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
