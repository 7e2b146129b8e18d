"""The generation config that comes with a model: which tokens end a response; and what of it must not reach sampling.

transformers fills what a caller leaves open from the model's own generation config: a repetition penalty there changes
what ``generate`` samples, and no log-prob of the policy knows of it.
"""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from lpo_ray.errors import ConfigError

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def without_sampling(model: PreTrainedModel) -> None:
    """Leave nothing but token ids of the model's generation config."""
    own = model.generation_config
    model.generation_config = GenerationConfig(**{name: getattr(own, name, None) for name in TOKENS})


def check_generation_config(path: str) -> None:
    """Check that transformers takes the generation config of a folder or hub's model, if there is one to be read.

    Raises ConfigError.
    """
    try:
        GenerationConfig.from_pretrained(path)
    except OSError:
        return
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"model {path!r} has a generation_config.json that transformers does not take: "
            f"{str(error).splitlines()[0]}; repair or remove it"
        ) from error


def end_tokens(model: PreTrainedModel, eos_token_id: int) -> tuple[int, ...]:
    """List the tokens that end a response: the tokenizer's, and those of the generation config, as vLLM has them."""
    found: Any = getattr(model.generation_config, "eos_token_id", None)
    others = [] if found is None else [found] if isinstance(found, int) else list(found)
    return (eos_token_id, *(token for token in others if token != eos_token_id))


def savable(values: dict[str, Any]) -> dict[str, Any]:
    """Make a generation config that transformers would save of ``values``, the fields of a generation_config.json.

    Values of sampling without do_sample, as in Llama-2's, are refused when they are saved: do_sample is set then. When
    that is not what is wrong, only the token ids are left.
    """
    for repaired in (values, {**values, "do_sample": True}):
        try:
            GenerationConfig(**repaired).validate(strict=True)
        except (ValueError, TypeError):
            continue
        return repaired
    return {name: values[name] for name in TOKENS if name in values}
