"""Samples a second of `lpo-ray train` beside TRL's GRPOTrainer, which samples by transformers' generate.

    pip install --no-deps --target SITE trl==1.16.0 datasets pandas xxhash multiprocess python-dateutil pytz tzdata six
    PYTHONPATH=. .venv/bin/python tests/benchmarks/trl.py OUT.json --site SITE [--steps 6] [section.key=value ...]

One after the other, they sample, score and train the same prompts of configs/smollm2_countdown.yaml: same model, group
size, length, reward function and updates a step, two threads. TRL has no shared prompts, and its micro-batches are of
MICRO responses, so that 24 GB hold them. It runs in fp32 and in pure bf16. A step is the median of those after the
first; checkpoints and evaluations are left out, publishing the weights to the engine is in ours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lpo_ray.config import load_config
from lpo_ray.run.spec import RunSpec, make_spec
from lpo_ray.telemetry.sinks import MetricsLog

CONFIG = Path(__file__).parent.parent.parent / "configs" / "smollm2_countdown.yaml"
THREADS = 2
MICRO = 32
STAGES = ("sample", "verify", "anchor", "project", "publish", "wait")


def plan_of(overrides: list[str]) -> RunSpec:
    return make_spec(load_config(CONFIG, overrides), for_training=False)


def ours(overrides: list[str], steps: int) -> dict[str, object]:
    """Seconds of each step, and of its stages, by the run's own clock."""
    with tempfile.TemporaryDirectory(prefix="lpo-ray-trl-") as folder:
        fixed = [f"run.dir={folder}", "run.name=ours", f"run.steps={steps}", "evaluation.num_prompts=0"]
        command = [sys.executable, "-m", "lpo_ray", "train", str(CONFIG), *overrides, *fixed, "checkpoint.every=0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = MetricsLog(Path(folder) / "ours" / "metrics.jsonl").read()
    return {
        "seconds": [row["seconds"] for row in rows],
        "tokens": [row["tokens"] for row in rows],
        "stages": {stage: statistics.median(row[f"seconds_{stage}"] for row in rows[1:]) for stage in STAGES},
    }


def theirs(overrides: list[str], steps: int, dtype: str, out: Path) -> None:
    """The same with GRPOTrainer, which is imported here only. Runs in a process of its own."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from lpo_ray.verifiers.calling.call import verify
    from lpo_ray.verifiers.calling.case import Case

    torch.set_num_threads(THREADS)
    spec = plan_of(overrides)
    config = spec.config
    assert spec.model_path is not None, "configs/smollm2_countdown.yaml has a model.path"
    groups, size = config.pipeline.groups_per_step, config.sampling.group_size
    updates = config.pipeline.updates_per_step
    tokenizer = spec.tokenizer(spec.model_path)
    source = spec.source(tokenizer)
    prompts = [source.train(number) for number in range(groups * steps)]
    texts = [tokenizer.show(prompt.token_ids) for prompt in prompts]
    assert all(tokenizer.encode(text).tolist() == p.token_ids.tolist() for text, p in zip(texts, prompts, strict=True))
    tokens, lengths = 0, []

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], answer: list[str], **_):
        nonlocal tokens
        tokens += sum(map(len, completion_ids))
        cases = [Case(*row) for row in zip(prompts, completions, answer, strict=True)]
        return [verdict.reward for verdict in verify(spec.verifier, cases)]

    class Clock(TrainerCallback):
        """A step of ours is ``updates`` of theirs, the first of which samples for all."""

        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_train_begin(self, *_, **__) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, args, state, control, **_) -> None:
            nonlocal tokens
            if state.global_step % updates == 0:
                self.seconds.append(time.perf_counter() - self.started)
                lengths.append(tokens)
                self.started, tokens = time.perf_counter(), 0

    per_update = groups * size // updates
    micro = min(MICRO, per_update)
    with tempfile.TemporaryDirectory(prefix="lpo-ray-trl-") as folder:
        settings = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=micro, gradient_accumulation_steps=per_update // micro,
            steps_per_generation=groups * size // micro, num_generations=size, max_steps=steps * updates,
            max_completion_length=config.sampling.max_tokens, temperature=config.sampling.temperature,
            learning_rate=config.learner.lr, beta=0.0, model_init_kwargs={"dtype": dtype}, bf16=False, use_cpu=True,
            gradient_checkpointing=False, save_strategy="no", report_to=[], logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        rows = [{"prompt": text, "answer": prompt.answer} for text, prompt in zip(texts, prompts, strict=True)]
        clock = Clock()
        trainer = GRPOTrainer(
            model=spec.model_path, reward_funcs=reward, args=settings, train_dataset=Dataset.from_list(rows),
            callbacks=[clock],
        )  # fmt: skip
        trainer.train()
    out.write_text(json.dumps({"seconds": clock.seconds, "tokens": lengths}))


def in_child(overrides: list[str], steps: int, dtype: str, site: Path) -> dict[str, object]:
    """``theirs``, with the packages of ``site``. By its module's name: this file's is that of their package."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        call = f"theirs({overrides!r}, {steps}, {dtype!r}, Path({out.name!r}))"
        environment = {
            **os.environ, "PYTHONPATH": f"{Path.cwd()}:{site}", "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        code = f"from pathlib import Path; from tests.benchmarks.trl import theirs; {call}"
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, env=environment)
        return json.loads(Path(out.name).read_text())


def summary(found: dict[str, object], responses: int) -> dict[str, object]:
    """The first step warms up: memory, optimiser state, caches."""
    seconds = statistics.median(found["seconds"][1:])
    return {**found, "median_seconds": seconds, "samples_per_second": responses / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--site", type=Path, required=True, help="folder of TRL and what it needs")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of TRL's model")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    if options.steps < 2:
        sys.exit(f"--steps is {options.steps}; expected 2 or more, for the first does not count")
    config = plan_of(options.overrides).config
    responses = config.pipeline.groups_per_step * config.sampling.group_size
    result: dict[str, object] = {"threads": THREADS, "responses_per_step": responses, "steps": options.steps}
    result["lpo-ray"] = mine = summary(ours(options.overrides, options.steps), responses)
    for dtype in options.dtypes.split(","):
        name = f"TRL {dtype}"
        result[name] = other = summary(in_child(options.overrides, options.steps, dtype, options.site), responses)
        result[f"lpo-ray to {name}"] = mine["samples_per_second"] / other["samples_per_second"]
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
