from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from lpo_ray.config import load_config
from lpo_ray.config.load import config_of, read_layer
from lpo_ray.config.ranges import BOUNDS, LARGEST, NOT_NEGATIVE, POSITIVE, value_at
from lpo_ray.config.schema import Config
from lpo_ray.config.typed import hints_of, is_section, members_of
from lpo_ray.errors import ConfigError
from lpo_ray.tasks.table import check_task

CHECKED_BY_RULES = {
    "learner.min_world_size", "verifier.overlong.buffer_tokens", "verifier.sandbox.seconds",
    "verifier.sandbox.total_memory_mib", "task.num_train", "evaluation.temperature",
    "objective.temperature_scale",
}  # fmt: skip
"""numbers whose range depends on other values, or has two parts"""
NUMBERS = (int, float)


def keys_of(section: type = Config, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield every key of the schema with its type."""
    for name, hint in hints_of(section).items():
        if is_section(hint):
            yield from keys_of(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def cannot_be_meant(hint: object) -> Iterator[str]:
    """Yield texts that no key of this type takes."""
    members = members_of(hint)
    yield from ("{b: [.nan]}", "[[1, {c: .inf}]]") if get_origin(hint) in (list, dict) else ()
    if get_origin(hint) is list:
        yield from ("7", "word", "{a: 1}", "null", "[{a: 1}]", "[[]]")
        yield from (
            () if str in get_args(hint) else ("[word]", "[.nan]", "[.inf]", "[-1e300]", "[1e300]", f"[{10**400}]")
        )
    elif get_origin(hint) is dict:
        yield from ("7", "word", "[a]", "null", "{a: .nan}" if get_args(hint)[1] is Any else "{a: [1]}")
    elif str not in members:  # text takes all texts; what a name means is for its own table to say
        yield from (
            "word",
            "[1]",
            "{a: 1}",
            ".nan",
            ".inf",
            "-.inf",
            "nan",
            "1e300",
            "-1e300",
            f"{10**400}",
            "12:30:00",
        )
        yield from ("0x1f", "on", "true", "'x'") if members[0] in NUMBERS else ("17", "-1")
        yield from ("1.5",) if members == (int,) else ()
        yield from ("null", "") if type(None) not in get_args(hint) and hint is not Any else ()


QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def test_the_smallest_values_are_taken() -> None:
    config = load_config(QUICKSTART, ["learner.warmup_steps=0", "pipeline.refill_groups=null"])
    assert (value_at(config, "learner.warmup_steps"), value_at(config, "pipeline.refill_groups")) == (0, None)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [*((key, 0, "a number above 0") for key in POSITIVE), *((key, -1, "0 or more") for key in NOT_NEGATIVE)],
)
def test_a_value_below_its_range_is_named(key: str, value: int, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(QUICKSTART, [f"{key}={value}"])
    assert str(caught.value) in (f"{key} is {value}; expected {expected}", f"{key} is {value}.0; expected {expected}")


@pytest.mark.parametrize(("key", "hint"), [*keys_of()], ids=[key for key, _ in keys_of()])
def test_nothing_that_cannot_be_meant_is_taken(key: str, hint: object) -> None:
    for text in cannot_be_meant(hint):
        with pytest.raises(ConfigError, match=re.escape(key)):
            check_task(load_config(QUICKSTART, [f"{key}={text}"]).task, 0)


@pytest.mark.parametrize(("key", "hint"), [*keys_of()], ids=[key for key, _ in keys_of()])
def test_every_number_has_a_range(key: str, hint: object) -> None:
    members = members_of(hint)
    if str in members or not set(members) & {int, float}:
        return
    ranges = [key in table for table in (POSITIVE, NOT_NEGATIVE, BOUNDS, CHECKED_BY_RULES)]
    assert ranges.count(True) == 1, f"{key} is in no table of ranges, or in two"


@pytest.mark.parametrize("key", [*POSITIVE, *NOT_NEGATIVE])
def test_a_value_far_beyond_its_range_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{re.escape(key)} is {LARGEST + 1}.*expected"):
        load_config(QUICKSTART, [f"{key}={LARGEST + 1}"])


@pytest.mark.parametrize(("key", "hint"), [*keys_of()], ids=[key for key, _ in keys_of()])
def test_a_text_key_takes_no_list_or_mapping_of_a_file(key: str, hint: object, tmp_path: Path) -> None:
    if str not in members_of(hint):
        return
    section, *inner, name = key.split(".")
    for value in ([1], {"a": 1}):
        tree: object = {name: value}
        for step in reversed(inner):
            tree = {step: tree}
        with pytest.raises(ConfigError, match=rf"{re.escape(key)} is .*; expected"):
            config_of([read_layer(QUICKSTART), ("a layer", {section: tree})])
