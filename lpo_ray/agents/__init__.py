"""Environments and tools of conversations: what a user writes, and the processes that it runs in.

``from lpo_ray.agents import Environment, Message, Step`` is all that a file of a user's own needs.
"""

from lpo_ray.agents.environment import Environment, Message, Step, Unavailable

__all__ = ["Environment", "Message", "Step", "Unavailable"]
