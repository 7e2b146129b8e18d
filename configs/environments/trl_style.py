"""An environment as TRL's environment_factory takes it: methods are tools, get_reward is the verdict.

lpo-ray train configs/countdown_turns.yaml task.environment=configs/environments/trl_style.py:Counter
"""


class Counter:
    """The tiny policy calls the only tool between brackets, as in [3+4]."""

    def reset(self, **row):
        self.calls = []

    def note(self, text: str) -> str:
        """
        Note a text.

        Args:
            text: what to note

        """
        self.calls.append(text)
        return f"noted {len(self.calls)}"

    def get_reward(self) -> float:
        return min(len(self.calls), 2) / 2
