"""Plain functions from a response to a verdict. Nothing here imports a tensor library."""
