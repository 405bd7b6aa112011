"""Files of weights made elsewhere, read without running anything that is in them.

A source is one file (safetensors, or torch's own) or a folder in diffusers' layout: config.json beside
diffusion_pytorch_model.safetensors or .bin, or a pipeline's folder that holds such a folder as vae/ or vqvae/.
"""

import json
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from infd import storage
from infd.errors import CheckpointError
from infd.importers.mapping import NAMED, plain, some

CONFIG = "config.json"
STEM = "diffusion_pytorch_model"
ENDINGS = ("safetensors", "bin", "fp16.safetensors", "fp16.bin")
"""Of the weights in a diffusers folder, in the order they are looked for: full precision first."""
SUBFOLDERS = ("", "vae", "vqvae")
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Weights:
    """The tensors of a source as they are named there; those that nobody looks at are not read from the disk."""

    uri: str
    """Of the file of weights."""
    sha256: str
    tensors: dict[str, Tensor]
    config: dict[str, Any] | None
    """Content of config.json, where the layout has one."""


def read(uri: str) -> Weights:
    """The weights at `uri`, a file or a folder. Raises CheckpointError: none there, or more than plain tensors."""
    file, config_uri = locate(uri)
    config = None if config_uri is None else read_config(config_uri)
    with local_copy(file) as path:
        return Weights(file, storage.file_sha256(path), read_tensors(path, source=file), config)


def locate(uri: str) -> tuple[str, str | None]:
    """Addresses of the file of weights and of its config.json, None where there is none."""
    uri = uri.rstrip("/")
    if storage.exists(uri):
        beside = storage.join(storage.parent(uri), CONFIG)
        named = uri.rsplit("/", 1)[-1].startswith(STEM)
        return uri, beside if named and storage.exists(beside) else None
    for folder in (storage.join(uri, part) if part else uri for part in SUBFOLDERS):
        if storage.exists(storage.join(folder, CONFIG)):
            files = [storage.join(folder, f"{STEM}.{ending}") for ending in ENDINGS]
            for file in files:
                if storage.exists(file):
                    return file, storage.join(folder, CONFIG)
            raise CheckpointError(f"{folder}: no file of weights; {STEM}.safetensors or .bin was expected beside {CONFIG}; "
                                  "fetch the whole folder")
    raise CheckpointError(f"{uri}: no such file, and no folder with {CONFIG}; a file of weights or a folder in diffusers' "
                          "layout was expected; check the address")


def read_config(uri: str) -> dict[str, Any]:
    """A config.json as a dict. Raises CheckpointError."""
    try:
        config = json.loads(storage.read_bytes(uri))
    except ValueError as error:
        raise CheckpointError(f"{uri}: not JSON ({type(error).__name__}); diffusers' config was expected; "
                              "fetch it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{uri}: a {type(config).__name__}; a JSON object was expected; fetch it again")
    return config


@contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """A path where the bytes of `uri` lie: its own, or that of a temporary copy."""
    if not storage.is_remote(uri):
        path = storage.local_path(uri)
        try:
            open(path, "rb").close()
        except OSError as error:
            raise CheckpointError(f"{uri}: {error.strerror}; a file of weights was expected; check the address") from error
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "weights")
        storage.get_file(uri, path)
        yield path


def read_tensors(path: str, *, source: str) -> dict[str, Tensor]:
    """The flat dict of tensors in a safetensors or torch file, by its content; `state_dict` is unwrapped.

    The tensors are mapped from the file: they stay valid when it is removed, and cost memory only where they are used.
    """
    with open(path, "rb") as file:
        head = file.read(64)
    if head.startswith(LFS_POINTER):
        raise CheckpointError(f"{source}: a git-lfs pointer; the file itself was expected; run git lfs pull")
    tree = safetensors_tree(path, source=source) if head[8:9] == b"{" else torch_tree(
        path, source=source, expected="weights alone were expected; use the model's .safetensors file, or fetch it again")
    if isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict):
        tree = tree["state_dict"]
    if not isinstance(tree, dict) or not tree:
        raise CheckpointError(f"{source}: no dict of tensors, or an empty one; a state dict was expected; "
                              "use a file of weights")
    odd = [str(name) for name, value in tree.items() if not isinstance(value, Tensor)]
    if odd:
        raise CheckpointError(f"{source}: {some('entries that are no tensors', odd)}; a state dict was expected; "
                              "use a file of weights")
    return {str(name): tensor.detach() for name, tensor in tree.items()}


def safetensors_tree(path: str, *, source: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises CheckpointError where it is cut or damaged."""
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{source}: a broken safetensors file ({plain(str(error))}); whole tensors were "
                              "expected; fetch it again") from error


def torch_tree(path: str, *, source: str, expected: str) -> Any:
    """What torch saved at `path`: containers, numbers, strings and tensors. Raises CheckpointError for anything else."""
    try:
        # torch raises UnpicklingError, RuntimeError, EOFError, KeyError …, by what the bytes happen to be
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        size = Path(path).stat().st_size
        raise CheckpointError(f"{source}: {size} bytes that torch cannot load as plain tensors "
                              f"({reason(path, error)}); {expected}") from error


def reason(path: str, error: Exception) -> str:
    """Why a file was refused: the code that it asks for, found without running it, else the kind of error."""
    try:
        asked = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the file is no zip, or broken, in any way
        asked = []
    names = ", ".join(plain(name) for name in sorted(asked)[:NAMED])
    return f"it wants to run {names}" if names else type(error).__name__
