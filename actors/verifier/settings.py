"""From a plan to what the verifier service is made with."""

from __future__ import annotations

from actors.verifier.endpoint import RemoteSettings
from actors.verifier.process_pool import ProcessPoolSettings
from actors.verifier.service import ServiceSettings
from lpo_ray.run.spec import RunSpec

WHOLE = ("prompt", "response", "answer", "row")
"""what an endpoint gets when verifier.http.request says nothing"""


def verifier_settings(spec: RunSpec, num_processes: int) -> ServiceSettings:
    """For a service with so many processes."""
    verifier = spec.config.verifier
    http, judge = verifier.http, verifier.judge
    pool = ProcessPoolSettings(
        num_processes, verifier.deadline_seconds, verifier.slow_seconds, verifier.recycle_after, verifier.memory_mib
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
    return ServiceSettings(
        pool, remote, verifier.max_retries, verifier.cached_verdicts, spec.overlong(), spec.sandbox()
    )
