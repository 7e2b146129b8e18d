"""Datasets and generators -> Prompt."""
