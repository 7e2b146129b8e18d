"""A text environment as SkyRL-gym has them (there a subclass of BaseTextEnv): init, step, close.

lpo-ray train configs/countdown_turns.yaml task.environment=configs/environments/skyrl_style.py:ShortEnv
"""


class ShortEnv:
    """Two turns, each with a reward for few characters."""

    def __init__(self, env_config=None, extras=None):
        self.answer, self.turns = extras["reward_spec"]["ground_truth"], 0

    def init(self, prompt):
        return prompt, {}

    def step(self, action):
        self.turns += 1
        observations = [{"role": "user", "content": f"={len(action)}\n"}]
        return {
            "observations": observations,
            "reward": float(len(action) < 10),
            "done": self.turns == 2,
            "metadata": {},
        }

    def close(self):
        self.turns = 0
