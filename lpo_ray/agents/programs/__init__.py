"""Agents' programs: functions and commands, what they are given, and how they end."""
