"""An agent framework, unmodified: smolagents' CodeAgent, which writes Python and sees what it prints.

pip install smolagents
lpo-ray train configs/smollm2_countdown.yaml task.agent=configs/agents/smolagents_code.py:solve \
    sampling.max_tokens=96 sampling.max_turns=3 rollout.max_model_len=4096 evaluation.num_prompts=0 run.steps=2
"""

from typing import Any

from smolagents import CodeAgent, OpenAIServerModel


def solve(row: dict[str, Any], client: Any) -> str:  # noqa: ANN401 - an openai.OpenAI
    """Run it for two steps; the task's verifier reads its final answer."""
    model = OpenAIServerModel("policy", api_base=str(client.base_url), api_key=client.api_key)
    agent = CodeAgent(tools=[], model=model, max_steps=2, verbosity_level=0)
    return str(agent.run(row["prompt"]))
