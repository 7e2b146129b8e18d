"""What a run says to people: panel, report, watchdog, why."""
