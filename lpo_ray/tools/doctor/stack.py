"""The compiled stack: whether it can be imported together, and whether a real engine decodes. In processes of their
own, since a wrong build ends in a signal, and an engine can hang.
"""

from __future__ import annotations

from lpo_ray.tools.doctor.deadlines import ENGINE_SECONDS, IMPORT_SECONDS
from lpo_ray.tools.doctor.findings import Finding, State, Surroundings, judge
from lpo_ray.tools.doctor.probe import failed, run

PROBES = "actors.doctor.probes"
"""module whose processes import vllm, ray and deepspeed, which this library does not"""
TOKENS = 10
TOLERANCE = 1e-3
"""largest log-prob difference between the engine and transformers, float32; 3e-6 was measured over whole runs"""


def check_imports(_: Surroundings) -> list[Finding]:
    """Check that the stack can be imported together."""
    return [imports(IMPORT_SECONDS)]


def check_extension(_: Surroundings) -> list[Finding]:
    """Check vLLM's compiled operators."""
    return [extension(IMPORT_SECONDS)]


def check_engine(_: Surroundings) -> list[Finding]:
    """Check that a real engine decodes."""
    return [engine(ENGINE_SECONDS)]


def imports(seconds: float, module: str = PROBES) -> Finding:
    """Judge the import of Ray, DeepSpeed and transformers in one process, as a learner rank has them."""
    name, expected = "imports", "torch, ray, deepspeed and transformers in one process"
    outcome = run([module, "imports"], seconds)
    if not outcome.succeeded:
        return failed(name, outcome, seconds, expected, "reinstall what the last line names, or make setup")
    return Finding(name, State.ok, f"imported in {outcome.seconds:.1f} s", expected)


def extension(seconds: float, module: str = PROBES) -> Finding:
    """Judge whether vLLM's compiled operators load against this torch: they are built for one version of it."""
    name, expected = "vllm's extension", "its operators load against this torch"
    outcome = run([module, "extension"], seconds)
    advice = "vllm was built for another torch: install the pair of the lock file, or make setup"
    if not outcome.succeeded:
        return failed(name, outcome, seconds, expected, advice)
    return judge(name, None, f"loaded for {outcome.result.get('platform')}", expected, advice)


def engine(seconds: float, module: str = PROBES) -> Finding:
    """Judge a vLLM engine with a tiny random model: ten tokens, whose log-probs transformers confirms."""
    name = "engine"
    expected = f"{TOKENS} tokens, log-probs within {TOLERANCE:g} of transformers"
    advice = "run it by itself to see all it says: python -m actors.doctor.probes engine"
    outcome = run([module, "engine"], seconds)
    if not outcome.succeeded:
        return failed(name, outcome, seconds, expected, advice)
    tokens, difference = int(str(outcome.result["tokens"])), float(str(outcome.result["difference"]))
    found = f"{tokens} tokens in {outcome.seconds:.0f} s, largest difference {difference:.1g}"
    right = tokens == TOKENS and difference <= TOLERANCE
    return judge(name, None if right else State.fail, found, expected, advice)
