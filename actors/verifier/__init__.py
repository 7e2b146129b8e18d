"""Verdicts apart from driver and learner: processes and endpoints."""
