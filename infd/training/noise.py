"""Noise of samples: a function of the seed and of the sample's number, so that no layout of workers changes it."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def sample_noise(seed: int, g: Sequence[int], shape: tuple[int, ...], *, purpose: str = "noise") -> Tensor:
    """Normal noise (B, *shape), each row a function of (purpose, seed, g) alone."""
    return torch.stack([torch.randn(shape, generator=generator_of(seed, number, purpose)) for number in g])


def sample_uniform(seed: int, g: Sequence[int], *, purpose: str) -> Tensor:
    """(B,) in [0, 1), likewise."""
    return torch.stack([torch.rand((), generator=generator_of(seed, number, purpose)) for number in g])


def generator_of(seed: int, number: int, purpose: str) -> torch.Generator:
    """A generator that knows nothing but its arguments."""
    key = hashlib.sha256(f"{purpose} {seed} {number}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)
