"""Reading a model's weights a piece at a time, so that no process ever holds the whole.

``from_pretrained`` builds a model without memory and reads all of its weights; under ``in_pieces`` it reads some, hands
them to whoever keeps a share of them, and goes on. Its own loader for ZeRO-3 would do without our checks: it says
nothing of weights that are unexpected or of another shape, and makes all of a mixture's experts in every process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    dot_natural_key,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig, load_state_dict
from transformers.utils import logging

from lpo_ray.policy.tensor_file import StoredTensor, open_tensors

Take = Callable[[Sequence[nn.Parameter]], None]
"""keeps a share of parameters in the place of the whole"""
LOADER = "_load_pretrained_model"
"""method of transformers' models that reads all weights, of which ``in_pieces`` takes the place"""
PIECE_ELEMENTS = 1 << 25
"""of the weights that are read at once; a tensor that has more, or several that are made into one, come alone"""


@contextmanager
def in_pieces(take: Take) -> Iterator[None]:
    """Have ``from_pretrained`` hand parameters to ``take`` as they are read: in an order that the model decides, once.

    What ``take`` leaves in a parameter is what the model has then.
    """

    def load(model: PreTrainedModel, _: object, files: Sequence[str], how: LoadStateDictConfig, *__: object) -> Any:  # noqa: ANN401 - transformers' own
        return _load(model, _opened(files, how), how, take), None

    before, bars = PreTrainedModel.__dict__[LOADER], logging.is_progress_bar_enabled()
    setattr(PreTrainedModel, LOADER, staticmethod(load))
    logging.disable_progress_bar()  # there would be one for each piece
    try:
        yield
    finally:
        setattr(PreTrainedModel, LOADER, before)
        if bars:
            logging.enable_progress_bar()


def _opened(files: Sequence[str], how: LoadStateDictConfig) -> dict[str, Any]:
    """Map the names in the files to what reads a tensor when it is asked for."""
    sources: dict[str, Any] = {}
    for file in files:
        if file.endswith(".safetensors"):
            sources |= open_tensors(Path(file)).tensors
        else:
            sources |= load_state_dict(file, map_location="cpu", weights_only=how.weights_only)
    return sources


def _load(model: PreTrainedModel, sources: Mapping[str, Any], how: LoadStateDictConfig, take: Take) -> Any:  # noqa: ANN401 - transformers' own
    """Load all pieces. Returns what transformers says of a loading."""
    every = set(model.state_dict())
    tied = {name for pair in model.all_tied_weights_keys.items() for name in pair}
    whole, missing = None, set(every)
    for names in _pieces(model, sources, how, tied):
        found, _ = convert_and_load_state_dict_in_model(model, {name: sources[name] for name in names}, how, None)
        read = every - found.missing_keys
        missing -= read
        if read & tied:
            missing |= _twice(model, missing)
        take([p for name in sorted(read - missing, key=dot_natural_key) if (p := _parameter(model, name)) is not None])
        whole = found if whole is None else _merged(whole, found)
    if whole is None:
        whole, _ = convert_and_load_state_dict_in_model(model, {}, how, None)
    whole.missing_keys = missing
    return whole


def _pieces(
    model: PreTrainedModel, sources: Mapping[str, Any], how: LoadStateDictConfig, tied: set[str]
) -> Iterator[list[str]]:
    """Divide the names in the files. What becomes one parameter is in one piece; what is tied is in the last."""
    mapping, state = how.weight_mapping or [], model.state_dict()
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    groups: dict[str, list[str]] = {}
    for name in sorted(sources, key=dot_natural_key):
        target, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        groups.setdefault(target if target in state or name not in state else name, []).append(name)
    piece: list[str] = []
    size, last = 0, [name for target, names in groups.items() if target in tied for name in names]
    for target, names in groups.items():
        if target in tied:
            continue
        more = sum(_elements(sources[name]) for name in names)
        if piece and size + more > PIECE_ELEMENTS:
            yield piece
            piece, size = [], 0
        piece += names
        size += more
    yield from (names for names in (piece, last) if names)


def _elements(source: Tensor | StoredTensor) -> int:
    return source.numel() if isinstance(source, Tensor) else math.prod(source.get_shape())


def _twice(model: PreTrainedModel, missing: set[str]) -> set[str]:
    """Compare tied weights that the files have twice, while they are there. Returns the names of those that are equal,
    to be tied as if they were missing. The others are not tied, which ``check_tied`` refuses.
    """
    equal = set()
    for target, source in list(model.all_tied_weights_keys.items()):
        if target in missing or source in missing:
            continue
        left, right = (model.get_parameter_or_buffer(name) for name in (target, source))
        if left.is_meta or right.is_meta:
            continue
        if torch.equal(left, right):
            equal.add(target)
        else:
            del model.all_tied_weights_keys[target]
    return equal


def _parameter(model: PreTrainedModel, name: str) -> nn.Parameter | None:
    """Look up a parameter that has been read; None for a buffer, and for one whose shape was another."""
    with suppress(AttributeError):
        found = model.get_parameter(name)
        return None if found.is_meta else found
    return None


def _merged(whole: Any, more: Any) -> Any:  # noqa: ANN401 - transformers' own
    whole.unexpected_keys |= more.unexpected_keys
    whole.mismatched_keys |= more.mismatched_keys
    whole.conversion_errors |= more.conversion_errors
    whole.error_msgs += more.error_msgs
    whole.skipped_pp_keys |= more.skipped_pp_keys
    return whole
