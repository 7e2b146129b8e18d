"""A reward function as verl's custom_reward_function.path takes it.

lpo-ray train configs/quickstart.yaml task.verifier=configs/rewards/verl_style.py:compute_score
"""

import json


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """1 when the target stands in the response, with what else should be kept beside the score."""
    target = json.loads(ground_truth)["target"]
    found = str(target) in solution_str
    return {"score": float(found), "length": len(solution_str), "source": data_source}
