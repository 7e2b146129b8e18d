"""Sources of prompts: files and generators."""
