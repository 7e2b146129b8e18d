"""Records of a run: stage times, metrics, samples, summary, report, live progress."""
