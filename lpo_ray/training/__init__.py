"""The training loop and what it leans on: sample lane, group selection, staleness, ledger, checkpoints."""
