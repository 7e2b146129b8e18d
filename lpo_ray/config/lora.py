"""Whether an adapter is trained in place of the policy's weights, and combinations that cannot be meant."""

from __future__ import annotations

from lpo_ray.config.ranges import require
from lpo_ray.config.schema import Config, Inflight
from lpo_ray.errors import ConfigError
from lpo_ray.policy.lora import ALL_LINEAR, AdapterSettings


def has_adapter(config: Config) -> bool:
    """Whether an adapter is trained, and all other weights stay as they are."""
    return config.model.lora.rank is not None


def adapter_settings(config: Config) -> AdapterSettings | None:
    """Settings of the adapter that is trained, sent and served; None where all weights are."""
    lora = config.model.lora
    if lora.rank is None:
        return None
    return AdapterSettings(lora.rank, lora.alpha, tuple(lora.targets), lora.rslora, config.run.seed, lora.path)


def versions_alive(config: Config) -> int:
    """Count the versions of an adapter that an engine may have at once."""
    return config.pipeline.max_staleness + 1 if config.pipeline.inflight is Inflight.keep_version else 1


def check_lora(config: Config) -> None:
    """Raise ConfigError for an adapter that PEFT or vLLM does not have, or that the learner's numbers forbid."""
    lora = config.model.lora
    if config.pipeline.inflight is Inflight.keep_version:
        require(
            has_adapter(config),
            "pipeline.inflight",
            "keep_version",
            "another mode, or model.lora.rank: an engine has one version of all weights, and several of adapters only",
        )
        require(config.pipeline.max_staleness > 0, "pipeline.max_staleness", config.pipeline.max_staleness,
                "1 at least with pipeline.inflight=keep_version: what ends later would be too old")  # fmt: skip
    if not has_adapter(config):
        if lora.path is not None:
            raise ConfigError(
                f"model.lora.path is {lora.path!r} without model.lora.rank; expected the rank of that adapter (r in "
                "its adapter_config.json)"
            )
        return
    targets = lora.targets
    require(bool(targets) and all(name.strip() for name in targets), "model.lora.targets", targets,
            f"names of linear layers, such as [q_proj, v_proj], or [{ALL_LINEAR}]")  # fmt: skip
    require(len(set(targets)) == len(targets), "model.lora.targets", targets, "each name once")
    require(ALL_LINEAR not in targets or len(targets) == 1, "model.lora.targets", targets,
            f"names of layers, or {ALL_LINEAR} alone")  # fmt: skip
    if lora.dropout:
        raise ConfigError(
            f"model.lora.dropout is {lora.dropout}; expected 0: with dropout the log-probs of equal weights differ "
            "between forwards, which would be taken for a change of the policy"
        )
    if lora.modules_to_save:
        raise ConfigError(
            f"model.lora.modules_to_save is {lora.modules_to_save}; expected []: vLLM serves no module that is trained "
            "in full beside an adapter. Train all weights (model.lora.rank=null), or adapters only"
        )
    quantization = config.rollout.engine_args.get("quantization")
    if quantization is not None:
        raise ConfigError(
            f"rollout.engine_args.quantization is {quantization!r} with model.lora.rank={lora.rank}; expected none: a "
            "quantised base under an adapter (QLoRA) has not been tried on a GPU here, and on CPUs neither vLLM nor "
            "the learner has one"
        )
