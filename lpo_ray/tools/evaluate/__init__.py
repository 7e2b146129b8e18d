"""`lpo-ray evaluate`: a model, a run or a checkpoint on held-out prompts."""
