"""The environments of conversations, apart from driver and engines."""
