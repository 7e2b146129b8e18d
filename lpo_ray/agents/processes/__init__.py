"""Child processes that host environments and functions of agents, each of many conversations."""
