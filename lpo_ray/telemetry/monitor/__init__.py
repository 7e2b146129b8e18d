"""A run as people see it: panel, report, watchdog, why."""
