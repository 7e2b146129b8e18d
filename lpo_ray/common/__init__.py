"""Toolbox of the standard library only: every room may use it."""
