"""Tools around a run: one entry per command, named as the command."""
