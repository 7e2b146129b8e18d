"""Tools that the policy calls: typed functions, their schemas, and the environment that answers their calls."""

from lpo_ray.agents.tools.environment import ToolEnvironment

__all__ = ["ToolEnvironment"]
