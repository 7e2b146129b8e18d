"""A run asked, scaled, submitted and stopped from outside."""
