"""One step of learning: targets, packing, loss, updates, norms."""
