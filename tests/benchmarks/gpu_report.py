"""What a machine makes of lpo-ray, in at most a quarter of an hour: one JSON file and one page.

    make gpu-report ACCEL=cuda          (one GPU, which a learner rank and an engine share)
    PYTHONPATH=. .venv/bin/python tests/benchmarks/gpu_report.py FOLDER [--parts quickstart,model] [--scale 1.0]

Each part has a time budget and a process of its own; one that fails, or is late, is reported as failed, and the others
go on. Without a GPU the same parts run at sizes for two cores, but for those that make no sense there. The exit code
is 0 when no part failed.

FLOPs of a trained token: 3 (forward, and twice for backward) x (2 x parameters it is multiplied with, head included + 2
x layers x heads x head size x context, causal attention). Recomputation and prompts are not counted, so MFU is a lower
bound: FLOPs of a step's response tokens / seconds of its projection / the device's dense peak in the dtype
(``lpo_ray/tools/plan/devices.py``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from lpo_ray.policy.saving import save_model
from lpo_ray.run.builds import vllm_build
from lpo_ray.tools.plan.architecture import Architecture, read_architecture
from lpo_ray.tools.plan.devices import device_reported
from lpo_ray.training.ledger_audit import audit
from tests.benchmarks.faults import FAULTS, one
from tests.benchmarks.smollm2 import random_smollm2
from tests.support.live_runs import DIGITS, Run

Figures = dict[str, float | int | str]
ROOT = Path(__file__).parents[2]
WARM_UP = 2
"""steps whose times do not count"""
SHARED = (
    "learner.world_size=1", "learner.gpus_per_rank=0.5", "rollout.num_workers=1", "rollout.gpus_per_worker=0.5",
    "rollout.gpu_memory_utilization=0.4",
)  # fmt: skip
"""one GPU for a rank and an engine"""
KEPT = re.compile(r"loss|rate|seconds$|pass_rate|publish_(seconds|gb|bytes|difference)|tokens_per|response_length$")


@dataclass(frozen=True)
class Part:
    """``work``: (folder, on a GPU, scale of the sizes) -> figures; it raises when the part fails."""

    what: str
    seconds: float
    """that it may take with a GPU"""
    work: Callable[[Path, bool, float], Figures]
    without_gpu: str = ""
    """why it is left out on a machine without a GPU; empty: it is not"""

    def budget(self, on_gpu: bool) -> float:
        """Return seconds at scale 1."""
        if on_gpu:
            return self.seconds
        return 0.0 if self.without_gpu else 1.4 * self.seconds  # CPUs are shared by what else runs


@dataclass
class Outcome:
    """What became of a part."""

    what: str
    status: str
    """ok, failed, left out"""
    seconds: float = 0.0
    budget: float = 0.0
    why: str = ""
    figures: Figures = field(default_factory=dict)


class Failed(Exception):
    """A part that did not do what it should; the text is for the page."""


# The parts


def gpu_tests(folder: Path, on_gpu: bool, scale: float) -> Figures:
    """Tests marked gpu; none of them may skip itself."""
    report = folder / "junit.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}"]
    subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    wrong = [case.get("name") for case in suite.iter("testcase") if any(n.tag != "properties" for n in case)]
    if wrong or not counts["tests"]:
        raise Failed(f"{counts}: {', '.join(map(str, wrong)) or 'no test was found'}")
    return dict(counts)


def quickstart(folder: Path, on_gpu: bool, scale: float) -> Figures:
    """The quickstart, cut short: pass rate before and after, seconds of a step and where they go."""
    own = ROOT / "configs" / "quickstart_gpu.yaml"
    config = own if on_gpu and own.exists() else ROOT / "configs" / "quickstart.yaml"
    steps = max(WARM_UP + 2, int((24 if on_gpu else 6) * scale))
    prompts = max(4, int((64 if on_gpu else 32) * scale))
    run = trained(
        folder, config, f"run.steps={steps}", f"evaluation.num_prompts={prompts}", "evaluation.samples_per_prompt=8",
        "evaluation.ks=[1,8]", *(SHARED if on_gpu else ()),
    )  # fmt: skip
    return {"steps": steps, **pass_rates(json.loads((run / "summary.json").read_text())), **medians(run)}


def model_run(folder: Path, on_gpu: bool, scale: float) -> Figures:
    """A model of SmolLM2-135M's shape with random weights: tokens a second of engine and learner, MFU, the publish."""
    path = random_smollm2(folder / "model")
    prompts, group, tokens = (32, 16, 512) if on_gpu else (2, 4, max(8, int(32 * scale)))
    run = trained(
        folder, ROOT / "configs" / "quickstart.yaml", f"model.path={path}", "run.steps=6", DIGITS,
        "model.dtype=bfloat16", "rollout.dtype=bfloat16", "evaluation.num_prompts=0", "checkpoint.every=100",
        f"pipeline.groups_per_step={prompts}", f"sampling.group_size={group}", f"sampling.max_tokens={tokens}",
        "learner.lr=1e-6", "pipeline.updates_per_step=1", "learner.world_size=1", *(SHARED if on_gpu else ()),
    )  # fmt: skip
    figures = medians(run)
    model, rows = read_architecture(str(path)), counted(run)
    device = torch.cuda.get_device_name(0) if on_gpu else "a CPU"
    flops = 3 * median(trained_flops(model, row["tokens"], row["response_length"]) for row in rows)
    per_second = flops / median(row["seconds_project"] for row in rows)
    known = device_reported(device) if on_gpu else None
    peak = f"no peak is known for {device}" if known is None else f"{known.bf16 / 1e12:.0f} TFLOP/s ({known.name})"
    mfu = peak if known is None else per_second / known.bf16
    return {"parameters": model.parameters, **figures, "TFLOP/s of the update": per_second / 1e12, "MFU": mfu,
            "peak": peak}  # fmt: skip


def killed_engine(folder: Path, on_gpu: bool, scale: float) -> Figures:
    """SIGKILL to the only engine of a run: seconds until the run is whole again, and what the books say."""
    policy = random_small(folder / "policy")
    overrides = (DIGITS, "supervision.backoff_seconds=0", "telemetry.progress=quiet", *(SHARED if on_gpu else ()))
    with Run(folder, policy, *overrides) as run:
        run.wait_for_step(2)
        found = one(run, FAULTS[0])
        run.process.terminate()
        run.process.wait(60)
        books, steps = audit(run.folder), run.steps()
    if books.violations:
        raise Failed(f"the books do not balance: {'; '.join(books.violations)}")
    if steps != list(range(1, len(steps) + 1)):
        raise Failed(f"the steps are not contiguous: {steps}")
    return {**{f"{name} (s)" if name != "attempts_issued_again" else name: value for name, value in found.items()},
            "groups trained": books.attempts["trained"], "books": "balance"}  # fmt: skip


PARTS = {
    "tests": Part("tests marked gpu", 240, gpu_tests, "they need a GPU"),
    "quickstart": Part("the quickstart, cut short", 210, quickstart),
    "model": Part("SmolLM2-135M's shape: rates, MFU, publish", 210, model_run),
    "killed": Part("a killed engine", 210, killed_engine),
}
"""together at most 14.5 minutes, and 14.7 without a GPU"""


# What the parts are made of


def trained(folder: Path, config: Path, *overrides: str) -> Path:
    """Train, and return the run's folder. Raises Failed with the last lines of what it said."""
    command = [
        sys.executable, "-m", "lpo_ray", "train", str(config), f"run.dir={folder}", "run.name=run",
        "telemetry.progress=quiet", *overrides,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    sys.stderr.write(done.stdout)
    if done.returncode:
        raise Failed(" | ".join(done.stdout.strip().splitlines()[-5:])[-1500:] or f"exit code {done.returncode}")
    return folder / "run"


def counted(run: Path) -> list[dict[str, float]]:
    """Metrics of the steps that count."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][WARM_UP:]


def pass_rates(summary: Mapping[str, Any]) -> Figures:
    """Return pass@1 before and after the run, as far as they were measured, with 95 % intervals."""
    found: Figures = {}
    for when, scored in summary["evaluation"].items():
        if scored is None:
            continue
        low, high = scored["ci95"]["pass@1"]
        found |= {f"pass@1 {when}": scored["pass@1"], f"pass@1 {when}, 95 %": f"{low:.3f} to {high:.3f}"}
    return found


def medians(run: Path) -> Figures:
    """Medians over the steps of what the page shows."""
    rows = counted(run)
    numbers = {name for name in rows[0] if KEPT.search(name) and isinstance(rows[0][name], int | float)}
    numbers |= {name for name in rows[0] if name.startswith("seconds_")}
    return {name: median(row[name] for row in rows) for name in sorted(numbers) if all(name in row for row in rows)}


def trained_flops(model: Architecture, tokens: float, length: float) -> float:
    """FLOPs of a forward pass over ``tokens`` of responses of this length; see the top of this file."""
    attention = 2 * model.num_layers * model.num_heads * model.head_dim * length
    return (2 * (model.body + model.embedding) + attention) * tokens


def random_small(folder: Path) -> Path:
    """Write a model of the quickstart's kind, untrained."""
    from lpo_ray.tasks.base_policy import character_tokenizer, make_model

    tokenizer = character_tokenizer()
    save_model(make_model(tokenizer, seed=0), folder)
    tokenizer.save(folder)
    return folder


# Running them


def run_part(name: str, folder: Path, on_gpu: bool, scale: float) -> Outcome:
    """Run one part in a process of its own."""
    part = PARTS[name]
    if part.without_gpu and not on_gpu:
        return Outcome(part.what, "left out", why=part.without_gpu)
    folder.mkdir(parents=True)
    budget = part.budget(on_gpu)
    command = [sys.executable, __file__, str(folder), "--part", name, "--scale", str(scale)]
    started, found = time.monotonic(), folder / "figures.json"
    why = run_within(command, budget, folder / "output.txt")
    seconds = time.monotonic() - started
    if why or not found.exists():
        return Outcome(part.what, "failed", seconds, budget, why or "it left no figures")
    outcome = json.loads(found.read_text())
    return Outcome(part.what, outcome["status"], seconds, budget, outcome["why"], outcome["figures"])


def run_within(command: Sequence[str], budget: float, output: Path) -> str:
    """Run a command for ``budget`` seconds at most, and end what it leaves behind; returns why it failed, if so."""
    with output.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        below: set[psutil.Process] = set()
        deadline = time.monotonic() + budget
        try:
            while process.poll() is None and time.monotonic() < deadline:
                below |= _children(process.pid)
                time.sleep(0.5)
            late = process.poll() is None
        finally:
            _end({*below, *_children(process.pid)}, process)
    if late:
        return f"it was not done within its {budget:.0f} s: {_last_words(output)}"
    return f"its process ended with {process.returncode}: {_last_words(output)}" if process.returncode else ""


def _children(pid: int) -> set[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return set(psutil.Process(pid).children(recursive=True))
    return set()


def _end(below: set[psutil.Process], process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end, and kill what of it and of those below is there after 20 seconds."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    _, alive = psutil.wait_procs(list(below), timeout=5)
    for child in alive:  # psutil knows a process by its start, too: never another with the same number
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(alive, timeout=5)
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()


def _last_words(file: Path) -> str:
    return " | ".join(file.read_text(errors="replace").strip().splitlines()[-3:])[-1500:]


def as_part(name: str, folder: Path, on_gpu: bool, scale: float) -> None:
    """Be the process of one part: write its figures, or why there are none."""
    try:
        result = {"status": "ok", "why": "", "figures": PARTS[name].work(folder, on_gpu, scale)}
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the page says
        result = {"status": "failed", "why": f"{type(error).__name__}: {error}", "figures": {}}
    (folder / "figures.json").write_text(json.dumps(result))


# What comes of it


def machine(on_gpu: bool) -> Figures:
    """What the figures are of."""
    found: Figures = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(0) if on_gpu else "CPU only",
        "cpu": next(
            (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")), platform.processor(),
        ),
        "cores": os.cpu_count() or 1,
        "memory (GiB)": round(psutil.virtual_memory().total / 2**30, 1),
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip(),
    }  # fmt: skip
    vllm = vllm_build()
    packages = {package: version(package) for package in ("torch", "ray", "deepspeed", "transformers")}
    return {**found, **packages, "vllm": "missing" if vllm is None else vllm[0]}


def page(content: Mapping[str, Any]) -> str:
    """Write the page of a report, in Markdown."""
    about, parts, on_gpu = content["machine"], content["parts"], content["accelerator"] == "cuda"
    title = f"{about['device']}" if on_gpu else "CPU"
    lines = [f"# Report of a machine: {title}"]
    if not on_gpu:
        lines += ["", "**Measured on a CPU, at sizes for one. No figure on this page is from a GPU.**"]
    lines += [
        "",
        "Made by [`gpu_report.py`](../gpu_report.py), which says how FLOPs are counted. Medians over a run's steps.",
    ]
    lines += ["", "| machine | |", "|---|---|", *(f"| {name} | {value} |" for name, value in about.items())]
    lines += ["", "| part | | seconds of its budget | |", "|---|---|---|---|"]
    for part in parts.values():
        took = f"{part['seconds']:.0f} of {part['budget']:.0f}" if part["budget"] else ""
        lines.append(f"| {part['what']} | **{part['status']}** | {took} | {_one_line(part['why'])} |")
    for part in parts.values():
        if part["figures"]:
            rows = [f"| {name} | {_number(value)} |" for name, value in part["figures"].items()]
            lines += ["", f"## {part['what'][0].upper()}{part['what'][1:]}", "| | |", "|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:600]


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def report(folder: Path, names: Sequence[str], on_gpu: bool, scale: float) -> bool:
    """Run the parts and write FOLDER/report.json and report.md after each; returns whether none failed."""
    work = folder / f"parts-{datetime.now():%Y%m%d-%H%M%S}"
    parts: dict[str, dict[str, object]] = {}
    for name in names:
        sys.stdout.write(f"{PARTS[name].what} ...\n")
        outcome = run_part(name, work / name, on_gpu, scale)
        sys.stdout.write(f"  {outcome.status} after {outcome.seconds:.0f} s {outcome.why}\n")
        sys.stdout.flush()
        parts[name] = asdict(outcome)
        content = {"accelerator": "cuda" if on_gpu else "cpu", "machine": machine(on_gpu), "parts": parts}
        (folder / "report.json").write_text(json.dumps(content, indent=2) + "\n")
        (folder / "report.md").write_text(page(content))
    sys.stdout.write(f"{folder / 'report.md'}\n")
    return all(part["status"] != "failed" for part in parts.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--scale", type=float, default=1.0, help="of the sizes; a test takes less")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if arguments.part:
        return as_part(arguments.part, arguments.folder, on_gpu, arguments.scale)
    names = arguments.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--parts has {', '.join(unknown)}; expected of {', '.join(PARTS)}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    sys.exit(0 if report(arguments.folder.absolute(), names, on_gpu, arguments.scale) else 1)


if __name__ == "__main__":
    main()
