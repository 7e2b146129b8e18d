"""What of the verifier section cannot be meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from jsonschema.validators import validator_for

from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError
from lpo_ray.verifiers.calling.weighted_sum import NotAMixture, terms

Require = Callable[[bool, str, object, str], None]
FIELDS = ("prompt", "response", "answer", "prompt+response", "row")
"""of a case, that a request may hold"""


def check_verifier_section(config: Config, require: Require) -> None:
    """``require(condition, key, value, expected)`` raises ConfigError."""
    verifier = config.verifier
    sandbox, http, overlong = verifier.sandbox, verifier.http, verifier.overlong
    positive = {
        "verifier.num_processes": verifier.num_processes,
        "verifier.deadline_seconds": verifier.deadline_seconds,
        "verifier.slow_seconds": verifier.slow_seconds,
        "verifier.recycle_after": verifier.recycle_after,
        "verifier.memory_mib": verifier.memory_mib,
        "verifier.http.concurrency": http.concurrency,
        "verifier.judge.scale": verifier.judge.scale,
        "verifier.sandbox.memory_mib": sandbox.memory_mib,
        "verifier.sandbox.processes": sandbox.processes,
        "verifier.sandbox.files_mib": sandbox.files_mib,
        "verifier.sandbox.output_kib": sandbox.output_kib,
    }
    for key, value in positive.items():
        require(value > 0, key, value, "a number above 0")
    for key, value in {
        "verifier.max_retries": verifier.max_retries,
        "verifier.cached_verdicts": verifier.cached_verdicts,
        "verifier.overlong.penalty": overlong.penalty,
    }.items():
        require(value >= 0, key, value, "0 or more")
    deadline, most = verifier.deadline_seconds, config.sampling.max_tokens
    require(
        sandbox.seconds is None or 0 < sandbox.seconds < deadline,
        "verifier.sandbox.seconds",
        sandbox.seconds,
        f"above 0 and below verifier.deadline_seconds ({deadline:g}), which kills without a verdict",
    )
    require(
        sandbox.total_memory_mib is None or sandbox.total_memory_mib >= sandbox.memory_mib,
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
    except NotAMixture as error:
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
