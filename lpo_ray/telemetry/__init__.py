"""What a run tells: stage times, metrics, samples, summary, report, live progress."""
