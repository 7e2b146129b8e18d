r"""Several answers in one text: joined by commas, semicolons, "and" or "or", or written as JSON."""

from __future__ import annotations

from collections.abc import Sequence

from lpo_ray.verifiers.mathematics.kinds import Interval, Items, Named, Reading, Union
from lpo_ray.verifiers.mathematics.token_parts import MAX_ITEMS, Inner, split, words_of

_JOINTS = frozenset((",", ", ", ";", '"or', '"and', "\\lor", "\\land", "\\&"))


_OR = frozenset(('"or', "\\lor"))


def quoted(found: tuple[str, ...], inner: Inner) -> Reading | None:
    """Read a list as JSON or Python writes it: ``["1", "2"]``."""
    if found[0] != "[" or found[-1] != "]" or not ('"' in found or "'" in found):
        return None
    parts, _ = split(found[1:-1], (",", ", "))
    if not all(len(part) > 2 and part[0] == part[-1] and part[0] in ('"', "'") for part in parts):
        return None
    items = tuple(inner(part[1:-1]) for part in parts)
    return items[0] if len(items) == 1 else Items("list", items)


def joined(found: tuple[str, ...], inner: Inner) -> Reading | None:
    """Read several answers, joined by commas, semicolons, "and" or "or"."""
    parts, between = split(found, _JOINTS)
    if not between:
        return None
    if parts[0][:1] == ('"either',):
        parts[0] = parts[0][1:]
    kept = []
    for number, part in enumerate(parts):
        if part:
            kept.append(part)
        elif number == 0 or number == len(parts) - 1 or between[number] not in ('"or', '"and'):
            return words_of(found)  # nothing before or after a comma; ", and" is one joint
    if len(kept) > MAX_ITEMS or len(kept) < 2:
        return words_of(found)
    items = [inner(part) for part in kept]
    items = one_name(items)
    if any(joint in _OR for joint in between) and all(isinstance(item, Interval | Union) for item in items):
        return Union(tuple(part for item in items for part in (item.parts if isinstance(item, Union) else (item,))))
    return Items("or" if any(joint in _OR for joint in between) else "list", tuple(flat(items)))


def one_name(items: list[Reading]) -> list[Reading]:
    """Read ``x = 1, 2`` and ``x = 1, x = 2`` as 1, 2; leave ``x = 1, y = 2`` as it is."""
    names = [item.name for item in items if isinstance(item, Named)]
    if names and isinstance(items[0], Named) and len(set(names)) == 1:
        return [item.value if isinstance(item, Named) else item for item in items]
    return items


def flat(items: Sequence[Reading]) -> list[Reading]:
    r"""Put what is a list of its own without brackets, such as ``\\pm 3``, into the list."""
    flat: list[Reading] = []
    for item in items:
        flat.extend(item.items if isinstance(item, Items) and item.kind == "or" else (item,))
    return flat
