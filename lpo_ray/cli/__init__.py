"""The command line, and the only door to ``actors``."""

from lpo_ray.cli.app import main

__all__ = ["main"]
