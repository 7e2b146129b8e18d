"""A reward function as TRL's GRPOTrainer takes it: lists in, a list out, columns by their names.

lpo-ray train configs/quickstart.yaml task.verifier=configs/rewards/trl_style.py:reward_func
"""

import json


def reward_func(completions, answer, **kwargs):
    """1 for a response that names every number of the problem, None (no verdict) where the problem has none."""
    problems = [json.loads(text)["numbers"] for text in answer]
    return [
        sum(str(number) in text for number in numbers) / len(numbers) if numbers else None
        for text, numbers in zip(completions, problems, strict=True)
    ]
