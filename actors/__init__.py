"""The Ray side: the only importer of ray, vllm and deepspeed."""
