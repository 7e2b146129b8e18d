"""A multi-turn environment of the `verifiers` library (pip install "verifiers<0.2"), with its own rollout and rubric.

lpo-ray train configs/countdown_turns.yaml task.environment=configs/environments/verifiers_style.py:load_environment
"""

import verifiers as vf
from datasets import Dataset


class Longer(vf.MultiTurnEnv):
    """Asks for more until there are two turns."""

    async def env_response(self, messages, state, **kwargs):
        return [{"role": "user", "content": f"={len(messages[-1].content)}\n"}]


def turns(completion) -> float:
    """1 for two answers of different length."""
    lengths = {len(message.content) for message in completion if message.role == "assistant"}
    return float(len(lengths) == 2)


def load_environment():
    """The data set of a verifiers environment is not used: prompts are lpo-ray's."""
    unused = Dataset.from_list([{"question": "", "answer": ""}])
    return Longer(dataset=unused, rubric=vf.Rubric(funcs=[turns]), max_turns=2)
