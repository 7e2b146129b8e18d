"""The sandbox, which runs programs that nobody trusts. Standard library only: verifier processes import it."""
