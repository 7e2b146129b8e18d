"""`lpo-ray plan`: memory, throughput and placement of a run before anything starts."""
