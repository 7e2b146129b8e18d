"""Weights on the wire: staging, senders, receivers."""
