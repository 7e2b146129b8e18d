"""Typed configuration: schema, loading, validation."""

from lpo_ray.config.load import dump_config, load_config
from lpo_ray.config.schema import Config

__all__ = ["Config", "dump_config", "load_config"]
