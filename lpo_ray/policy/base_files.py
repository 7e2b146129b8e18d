"""Digest of the model that an adapter is beside. It is loaded from files on each machine and never sent, so that
learner and engines compare what they have read.
"""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3
from safetensors import SafetensorError

from lpo_ray.errors import ConfigError
from lpo_ray.policy.loading import folder_identity, identity
from lpo_ray.policy.tensor_digest import tensor_digest
from lpo_ray.policy.tensor_file import open_tensors
from lpo_ray.policy.whole import safetensors_of


def base_digest(path: str) -> str:
    """Compute the identity of a model's weights, 32 hexadecimal digits: names, shapes, dtypes and values in its files.

    It does not depend on how they are divided among files. Of weights that are no safetensors it is that of the files,
    and of a hub's name its commit. Reads all of them, a tensor at a time. Raises ConfigError for damaged files.
    """
    folder = Path(path)
    if not folder.is_dir():
        return identity(path)
    files = safetensors_of(folder)
    if not files:
        return folder_identity(folder)
    digest = blake3()
    try:
        tensors = {name: tensor for file in files for name, tensor in open_tensors(file).tensors.items()}
        for name, tensor in sorted(tensors.items()):
            line = f"{name} {tuple(tensor.shape)} {tensor.dtype} {tensor_digest(tensor[...])}\n"
            digest.update(line.encode())
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"weights of model {path!r} cannot be read: {error}; expected its safetensors whole: copy it again"
        ) from error
    return digest.hexdigest(16)
