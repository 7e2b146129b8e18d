"""Text of an error that code from outside raised. Stdlib only: verifier processes import it."""

from __future__ import annotations


def error_text(error: BaseException) -> str:
    """Write type and text of ``error``. Never raises, whatever the error's own ``__str__`` does.

    The text is whole: a secret that is cut in two would not be known as one.
    """
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001 - __str__ is code from outside, too
        return f"{type(error).__name__}, whose text cannot be made"
