"""Options of ZeRO, checked by DeepSpeed's own model of them before anything starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pydantic import ValidationError

from lpo_ray.errors import ConfigError


def check_zero(options: Mapping[str, object]) -> None:
    """Check a value of learner.zero. Raises ConfigError."""
    stage = options.get("stage", 3)
    if stage != 3 or isinstance(stage, bool):
        raise ConfigError(
            f"learner.zero.stage is {stage!r}; expected 3, which is set without it: checkpoints and transports take "
            "the weights from the shards of ZeRO-3"
        )
    logging.disable(logging.WARNING)  # the import and deprecated options are told on standard output
    try:
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

        DeepSpeedZeroConfig(**{**options, "stage": 3})
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors())
        raise _refused(options, reasons) from error
    except (TypeError, ValueError, AssertionError) as error:
        raise _refused(options, str(error)) from error
    finally:
        logging.disable(logging.NOTSET)


def _refused(options: Mapping[str, object], reason: str) -> ConfigError:
    return ConfigError(
        f"learner.zero is {dict(options)}, which DeepSpeed refuses ({reason}); expected options of its section "
        "zero_optimization"
    )
