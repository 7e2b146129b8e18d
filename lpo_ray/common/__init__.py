"""Tools that need the standard library only; every package may use them."""
