"""What `lpo-ray doctor` tries with vLLM, Ray and DeepSpeed."""
