"""One vLLM engine as an actor, and the pool's handle of it."""
