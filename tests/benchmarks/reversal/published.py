"""A few steps of TPO's published code (github.com/JeanKaddour/tpo at 73473b9), to hold ours against.

In an environment with torch, jax, flax and optax 0.2.8, beside a clone of theirs:
PYTHONPATH=.:CLONE/src python tests/benchmarks/reversal/published.py tests/data/tpo_steps.json

Their model, losses and optimiser start from weights that a formula gives, so that nobody has to keep them; each step
samples, and trains four epochs on what it sampled. The file has the responses and their log-probs before and after.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.reversal.model import Policy

HORIZON, PROMPTS, GROUP, STEPS = 3, 24, 8, 4


def weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Of one of their parameters, by its path: of full rank, and different for each."""
    place = np.arange(np.prod(shape), dtype=np.float64)
    values = 0.15 * np.cos(0.7 * place**2 + zlib.crc32(name.encode()) % 100)
    return (values + name.endswith("scale")).reshape(shape).astype(np.float32)


def load(policy: Policy) -> None:
    """Give ours the weights of theirs."""
    with torch.no_grad():
        for parameter, values in _pairs(policy):
            parameter.copy_(values.reshape(parameter.shape))


def _pairs(policy: Policy) -> Iterator[tuple[Tensor, Tensor]]:
    width, heads, inner = policy.shape.width, policy.shape.heads, policy.shape.feed_forward * policy.shape.width

    def theirs(name: str, *shape: int) -> Tensor:
        return torch.from_numpy(weights(name, shape))

    yield policy.tokens, theirs("Embed_0/embedding", policy.shape.vocabulary, width).T
    yield policy.positions, theirs("pos_emb", policy.shape.context, width).T
    for number, layer in enumerate(policy.layers):
        attention, split = f"SelfAttention_{number}", (heads, width // heads)
        for part, name in enumerate(("query", "key", "value")):
            kernel = theirs(f"{attention}/{name}/kernel", width, *split)
            yield layer.qkv[part], kernel.reshape(width, width).T
            yield layer.qkv_bias[part], theirs(f"{attention}/{name}/bias", *split).T
        yield layer.out, theirs(f"{attention}/out/kernel", *split, width).reshape(width, width).T
        yield layer.out_bias, theirs(f"{attention}/out/bias", width)
        for dense, matrix, bias, shape in (
            (2 * number, layer.up, layer.up_bias, (width, inner)),
            (2 * number + 1, layer.down, layer.down_bias, (inner, width)),
        ):
            yield matrix, theirs(f"Dense_{dense}/kernel", *shape).T
            yield bias, theirs(f"Dense_{dense}/bias", shape[1])
        for norm, at in ((layer.norm1, 2 * number), (layer.norm2, 2 * number + 1)):
            yield norm.weight, theirs(f"LayerNorm_{at}/scale", width)
            yield norm.bias, theirs(f"LayerNorm_{at}/bias", width)
    last = 2 * len(policy.layers)
    yield policy.norm.weight, theirs(f"LayerNorm_{last}/scale", width)
    yield policy.norm.bias, theirs(f"LayerNorm_{last}/bias", width)
    yield policy.head, theirs(f"Dense_{last}/kernel", width, policy.shape.vocabulary).T
    yield policy.head_bias, theirs(f"Dense_{last}/bias", policy.shape.vocabulary)


def main() -> None:
    """Run theirs and write what it did."""
    import jax
    import jax.numpy as jnp
    import optax
    from tpo.algorithms import grpo_loss, tpo_target
    from tpo.models import CausalTransformer

    model = CausalTransformer(max_seq_len=2 * HORIZON)
    empty = model.init(jax.random.PRNGKey(0), jnp.zeros((1, 2 * HORIZON), jnp.int32))
    start = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(weights("/".join(part.key for part in path[1:]), leaf.shape)), empty
    )

    def logprobs(params, prompts, actions):  # [P, H], [P, K, H] -> [P, K, H]
        rows = jnp.concatenate([jnp.repeat(prompts, GROUP, 0), actions.reshape(-1, HORIZON)], 1)
        table = model.apply(params, rows)[:, HORIZON - 1 : -1]
        return jnp.take_along_axis(table, rows[:, HORIZON:, None], -1)[..., 0].reshape(actions.shape)

    def sampled(params, prompts, key):
        rows = jnp.pad(jnp.repeat(prompts, GROUP, 0), ((0, 0), (0, HORIZON)))
        for place in range(HORIZON, 2 * HORIZON):
            token = jax.random.categorical(jax.random.fold_in(key, place), model.apply(params, rows)[:, place - 1])
            rows = rows.at[:, place].set(token)
        return rows[:, HORIZON:].reshape(PROMPTS, GROUP, HORIZON)

    def steps(name):
        params, optimiser = start, optax.contrib.muon(learning_rate=1e-3)
        state = optimiser.init(params)
        for step in range(STEPS):
            key = jax.random.PRNGKey(step)
            prompts = jax.random.randint(key, (PROMPTS, HORIZON), 0, 2)
            actions = sampled(params, prompts, key)
            rewards = (actions == prompts[:, None, ::-1]).all(-1).astype(jnp.float32)
            before = logprobs(params, prompts, actions)
            old = before.sum(-1)
            advantages = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, keepdims=True) + 1e-8)
            target = tpo_target(old, rewards)

            def loss(params, prompts=prompts, actions=actions, old=old, advantages=advantages, target=target):
                scores = logprobs(params, prompts, actions).sum(-1)
                if name == "tpo":
                    return -(target * jax.nn.log_softmax(scores)).sum(-1).mean()
                return grpo_loss(scores, old, advantages, beta=0.04 if name == "grpo_kl" else 0.0)

            for _ in range(4):
                updates, state = optimiser.update(jax.grad(loss)(params), state, params)
                params = optax.apply_updates(params, updates)
            after = logprobs(params, prompts, actions)
            yield {
                "prompts": prompts.tolist(),
                "responses": actions.tolist(),
                "before": np.asarray(before, np.float64).round(4).tolist(),
                "after": np.asarray(after, np.float64).round(4).tolist(),
            }

    found = {name: list(steps(name)) for name in ("tpo", "grpo_kl", "grpo_no_kl")}
    Path(sys.argv[1]).write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
