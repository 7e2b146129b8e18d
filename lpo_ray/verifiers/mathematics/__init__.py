"""Whether a mathematical answer is right: numbers first, symbols when needed, both bounded."""
