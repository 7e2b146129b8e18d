"""The openai client by hand: an agent that asks twice, with its own first answer before it.

lpo-ray train configs/quickstart.yaml task.agent=configs/agents/by_hand.py:solve \
    sampling.max_tokens=24 evaluation.num_prompts=0 run.steps=2
"""

from typing import Any


async def solve(row: dict[str, Any], client: Any) -> None:  # noqa: ANN401 - an openai.AsyncOpenAI
    """Ask, ask again, and leave the verdict to the task's verifier, which reads the last answer."""
    messages = [{"role": "user", "content": row["prompt"]}]
    first = await client.chat.completions.create(model="policy", messages=messages)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": f"\n{row['prompt']}"},
    ]
    await client.chat.completions.create(model="policy", messages=messages)
