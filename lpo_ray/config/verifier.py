"""Combinations of the verifier section that cannot be meant."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from jsonschema.validators import validator_for

from lpo_ray.config.ranges import LARGEST, require
from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError
from lpo_ray.verifiers.calling.weighted_sum import NotASum, terms

FIELDS = ("prompt", "response", "answer", "prompt+response", "row")
"""fields of a case that a request may hold"""


def check_verifier_section(config: Config) -> None:
    """Raise ConfigError for values of the section that do not go together, or with the task's."""
    verifier = config.verifier
    sandbox, http, overlong = verifier.sandbox, verifier.http, verifier.overlong
    deadline, most = verifier.deadline_seconds, config.sampling.max_tokens
    require(
        sandbox.seconds is None or 0 < sandbox.seconds < deadline,
        "verifier.sandbox.seconds",
        sandbox.seconds,
        f"above 0 and below verifier.deadline_seconds ({deadline:g}), which kills without a verdict",
    )
    require(
        sandbox.total_memory_mib is None or sandbox.memory_mib <= sandbox.total_memory_mib <= LARGEST,
        "verifier.sandbox.total_memory_mib",
        sandbox.total_memory_mib,
        f"null, or verifier.sandbox.memory_mib ({sandbox.memory_mib}) at least",
    )
    require(
        0 <= overlong.buffer_tokens <= most,
        "verifier.overlong.buffer_tokens",
        overlong.buffer_tokens,
        f"0 to sampling.max_tokens ({most})",
    )
    for key, name in http.request.items():
        known = name in FIELDS or name.startswith("row.")
        require(known, f"verifier.http.request.{key}", name, f"one of {', '.join(FIELDS)}, or row.COLUMN")
    if http.reply_schema:
        _check_schema(http.reply_schema)
    if config.task.verifier is None:
        return
    try:
        names = [term.name for term in terms(config.task.verifier)]
    except NotASum as error:
        raise ConfigError(str(error)) from error
    if "judge" in names:
        require(bool(verifier.judge.model), "verifier.judge.model", verifier.judge.model, "the name of the judge")


def _check_schema(schema: dict[str, Any]) -> None:
    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        raise ConfigError(
            f"verifier.http.reply_schema is no JSON schema: {error.message} at {error.json_path}; expected one as "
            "json-schema.org has them, such as {required: [reward]}"
        ) from error
