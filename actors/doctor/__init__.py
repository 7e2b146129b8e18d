"""Probes of `lpo-ray doctor` that need vLLM, Ray or DeepSpeed."""
