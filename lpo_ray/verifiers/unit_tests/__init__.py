"""The fraction of unit tests that the program in a response passes: ``verifier.unit_tests``."""
