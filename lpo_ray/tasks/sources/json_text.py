"""JSON of a data set, where a name that stands twice in an object is an error, and every error names its place."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

from lpo_ray.errors import DataError
from lpo_ray.tasks.sources.columns import shown


class _Twice(ValueError):
    """Error of an object that has a name twice."""


def parsed_json(text: str, where: str) -> Any:  # noqa: ANN401 - JSON
    """Parse a text. DataError that begins with ``where``, also for an object that has a name twice."""
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except _Twice as error:
        raise DataError(f"{where} has the name {shown(error.args[0])} twice; expected each once") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}): {shown(text.strip())}") from error
    except ValueError as error:  # of Python's limit, as reading one takes time that grows with its square
        raise DataError(
            f"{where} has an integer of more than {sys.get_int_max_str_digits()} digits; expected it as a text"
        ) from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = Counter(name for name, _ in pairs)
        raise _Twice(names.most_common(1)[0][0])
    return found
