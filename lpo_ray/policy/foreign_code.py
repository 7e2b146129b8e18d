"""Models that bring Python code of their own (``auto_map``). It runs only when model.trust_remote_code says so.

Everything that loads a model or tokenizer passes the flag on, never None: transformers would then ask on the terminal.
"""

from __future__ import annotations

from lpo_ray.errors import ConfigError


def not_loaded(path: str, part: str, error: Exception) -> ConfigError:
    """What to raise when transformers could not load the ``part`` (config, tokenizer, weights) of the model at
    ``path``: in one line, and with the flag's name when only the flag is missing.
    """
    if "trust_remote_code" in str(error):
        return ConfigError(
            f"model.path is {path!r}, whose {part} needs Python code that comes with the model; expected a model that "
            "transformers knows by itself. Read that code, and if it may run on every machine of the run, set "
            "model.trust_remote_code=true"
        )
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ConfigError(f"model.path is {path!r}, whose {part} could not be loaded: {reason}")
