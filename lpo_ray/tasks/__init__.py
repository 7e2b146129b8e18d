"""Where prompts come from, and what checks the responses to them."""
