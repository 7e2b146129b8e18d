"""From a configuration to what the verifier service is made with."""

from __future__ import annotations

from actors.verifier.endpoint import RemoteSettings
from actors.verifier.process_pool import ProcessPoolSettings
from actors.verifier.service import ServiceSettings
from lpo_ray.config.schema import VerifierConfig
from lpo_ray.verifiers.calling.overlong import Overlong
from lpo_ray.verifiers.sandbox.limits import Limits

WHOLE = ("prompt", "response", "answer", "row")
"""what an endpoint gets when verifier.http.request says nothing"""


def verifier_settings(verifier: VerifierConfig, overlong: Overlong, sandbox: Limits) -> ServiceSettings:
    """Make the settings of the verifier service."""
    http, judge = verifier.http, verifier.judge
    pool = ProcessPoolSettings(
        verifier.num_processes,
        verifier.deadline_seconds,
        verifier.slow_seconds,
        verifier.recycle_after,
        verifier.memory_mib,
    )
    remote = RemoteSettings(
        seconds=verifier.deadline_seconds,
        concurrency=http.concurrency,
        request=dict(http.request) or {name: name for name in WHOLE},
        reward=http.reward,
        reply_schema=http.reply_schema,
        batched=http.batched,
        key_env=http.key_env,
        judge_url=judge.url,
        judge_model=judge.model,
        judge_key_env=judge.key_env,
        rubric=judge.rubric,
        scale=judge.scale,
    )
    return ServiceSettings(pool, remote, verifier.max_retries, verifier.cached_verdicts, overlong, sandbox)
