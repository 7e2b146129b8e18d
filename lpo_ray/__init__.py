"""LPO on Ray: the library. Never imports ray, vllm or deepspeed."""
