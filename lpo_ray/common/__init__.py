"""Tools that need the standard library, and blake3 for digests; every package may use them."""
