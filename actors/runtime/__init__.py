"""Ray as this project uses it: calls with deadlines, placement, supervised actors, inspection."""
