"""How a verifier is called: its arguments, its time, its weighted sums, foreign signatures."""
