"""The same interfaces without Ray."""
