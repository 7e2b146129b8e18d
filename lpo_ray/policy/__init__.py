"""The language model: load, tokenise, lay out, score, name its weights."""
