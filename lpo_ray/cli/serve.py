"""``lpo-ray serve``, once the request is known to be good."""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import replace
from typing import cast

from rich.console import Console

from lpo_ray.agents.endpoint.settings import LOOPBACK
from lpo_ray.cli.backend import backend_of, check_engine_args
from lpo_ray.cli.console import model_of
from lpo_ray.config.schema import ClusterKind, Config
from lpo_ray.errors import ConfigError, Interrupted
from lpo_ray.interfaces import TurnEngine
from lpo_ray.run import settings
from lpo_ray.run.day import dated
from lpo_ray.run.signals import run_until_signal
from lpo_ray.run.spec import make_spec
from lpo_ray.telemetry.captured_log import CapturedLog
from lpo_ray.tools.evaluate.target import EvaluationRequest

KEY = "LPO_RAY_SERVE_KEY"
LEAST_KEY = 16
"""letters of a key that is given"""


def serve_command(request: EvaluationRequest, host: str, port: int) -> None:
    """Answer agents by engines with the request's model, until a signal."""
    console = Console(stderr=True)
    key = os.environ.get(KEY) or secrets.token_urlsafe(24)
    if len(key) < LEAST_KEY or "/" in key:
        raise ConfigError(f"{KEY} has {len(key)} letters; expected at least {LEAST_KEY}, and no /")
    spec = make_spec(dated(_without_environment(request.config), None), for_training=False)
    if spec.config.cluster.kind is not ClusterKind.ray:
        raise ConfigError("cluster.kind=inprocess has no engine that ends answers at stop strings; expected ray")
    check_engine_args(spec)
    spec = spec.with_room_for(spec.context)
    with CapturedLog():
        model_path = model_of(spec, console)
        backend = backend_of(spec.config)
        as_training = settings.endpoint_settings(spec, model_path)
        sampling = replace(as_training.sampling, seed=secrets.randbelow(2**31))
        made = replace(as_training, sampling=sampling, host=host, port=port, patience_seconds=0.0)

        async def serve() -> None:
            from actors.agents.standalone import Standalone

            async with backend.open_engines(spec, model_path) as (engine, _):
                served = Standalone(made, cast("TurnEngine", engine), key, request.step)
                _say(console, request.model, await served.start(), key, host)
                try:
                    await served.run()
                finally:
                    await served.close()

        with contextlib.suppress(Interrupted), backend.cluster():
            run_until_signal(lambda _: serve())
    console.print("ended", highlight=False)


def _without_environment(config: Config) -> Config:
    """Return a configuration whose responses are single turns: the agent is whoever asks."""
    return replace(config, task=replace(config.task, environment=None, tools=[], agent=None))


def _say(console: Console, model: str, address: str, key: str, host: str) -> None:
    if host != LOOPBACK:
        console.print(
            f"Warning: it listens at {host}, without TLS: whoever reaches it and reads the traffic has the key",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    shown = f"${KEY}" if os.environ.get(KEY) else key
    console.print(
        f"{model} answers at {address}; Ctrl-C ends it\n"
        f"export OPENAI_BASE_URL={address}/v1 OPENAI_API_KEY={shown}\n"
        f"export ANTHROPIC_BASE_URL={address} ANTHROPIC_API_KEY={shown}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
