"""From cuts to features and their moments, in fixed blocks; kept by what they were made of.

A block of BLOCK cuts is computed alone, in batches from its own start, and blocks add up in order: whoever computes them,
one process or many, has the same bits. Shapes: N cuts, D features.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError

import infd
from infd import storage
from infd.evaluation import moments
from infd.evaluation.crops import Cut, pixels
from infd.evaluation.errors import EvaluationError
from infd.evaluation.features import FeatureNetwork
from infd.evaluation.moments import Moments
from infd.evaluation.sources import Source, in_order

logger = logging.getLogger(__name__)

FORMAT = "infd-statistics-3"
DISTRIBUTIONS = ("infd", "torch", "numpy", "pillow-simd", "imagecodecs", "torch-fidelity")
BLOCK = 128
READ_THREADS = 2


class Statistics(NamedTuple):
    """Of one side of a comparison."""

    moments: Moments
    features: np.ndarray | None
    """float32 (N, D) where kept; what needs only moments keeps none, and memory does not grow with N."""


def statistics(
    source: Source, cuts: Sequence[Cut], network: FeatureNetwork, *, batch: int, keep: bool, cache: str = "",
) -> Statistics:
    """Moments of the features of all cuts, and the features where `keep`; taken from the folder or prefix `cache` if they
    are there, else computed and put there; "": no cache.

    Law: what comes out of the cache are the bits that went in. Raises EvaluationError naming a cached file that is damaged.
    """
    if not cache:
        return compute(source, cuts, network, batch=batch, keep=keep)
    key = cache_key(source, cuts, network, batch=batch)
    where, beside = (storage.join(cache, f"{key}.{part}.safetensors") for part in ("moments", "features"))
    if storage.exists(where) and (not keep or storage.exists(beside)):
        kept = load_features(beside) if keep else None
        return Statistics(moments.from_bytes(storage.read_bytes(where), name=where), kept)
    made = compute(source, cuts, network, batch=batch, keep=keep)
    keep_at(where, beside, made, source, network)
    return made


def keep_at(where: str, beside: str, made: Statistics, source: Source, network: FeatureNetwork) -> None:
    """Put moments at `where`, and the features, if kept, at `beside` before them."""
    if made.features is not None:
        storage.put_atomic(beside, safetensors.numpy.save({"features": made.features}))
    storage.put_atomic(where, moments.to_bytes(made.moments, {"source": source.describe(), "network": network.describe()}))


def compute(source: Source, cuts: Sequence[Cut], network: FeatureNetwork, *, batch: int, keep: bool) -> Statistics:
    """Block by block, in order."""
    summed, kept = Moments.empty(network.dim), []
    for block in blocks(cuts):
        found = block_features(source, block, network, batch=batch)
        summed = summed + Moments.of(found)
        if keep:
            kept.append(found)
        logger.info("%s: features of %d of %d", source.uri, summed.count, len(cuts))
    empty = np.zeros((0, network.dim), np.float32)
    return Statistics(summed, np.concatenate(kept or [empty]) if keep else None)


def blocks(cuts: Sequence[Cut]) -> list[Sequence[Cut]]:
    """The units of work."""
    return [cuts[start:start + BLOCK] for start in range(0, len(cuts), BLOCK)]


def block_features(source: Source, cuts: Sequence[Cut], network: FeatureNetwork, *, batch: int) -> np.ndarray:
    """float32 (N, D). Law: it depends on these cuts and `batch` alone."""
    if not cuts:
        return np.zeros((0, network.dim), np.float32)
    images = patches(source, cuts)
    found = [network(np.stack([next(images) for _ in cuts[start:start + batch]])) for start in range(0, len(cuts), batch)]
    return np.concatenate(found)


def patches(source: Source, cuts: Sequence[Cut]) -> Iterator[np.ndarray]:
    """The pixels of every cut, in order, a few read ahead."""
    return in_order(lambda index: pixels(source, cuts[index]), range(len(cuts)), threads=READ_THREADS)


# ---------------------------------------------------------------- cache


def cache_key(source: Source, cuts: Sequence[Cut], network: FeatureNetwork, *, batch: int) -> str:
    """sha256 over all that features depend on: the images' content, the cuts, the network, the batch, the machinery."""
    cut_sha256 = hashlib.sha256(np.array(cuts, np.float64).tobytes()).hexdigest()
    facts = {
        "format": FORMAT, "images": source.fingerprint(), "cuts": cut_sha256,
        "network": network.describe(), "batch": batch, "device": network.device, "block": BLOCK, "versions": versions(),
        "tensor_float_32": network.device != "cpu" and torch.backends.cudnn.allow_tf32}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """Of what turns files, seeds and weights into features; of infd its very source, because who works on it changes that
    and not the number of its version."""
    found = {name: importlib.metadata.version(name) for name in DISTRIBUTIONS}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):     # of infd[heic]
        found["pillow-heif"] = importlib.metadata.version("pillow-heif")
    return found | {"infd_source": source_sha256()[:16]}


def source_sha256() -> str:
    """Over the names and bytes of the package's Python files."""
    root, digest = Path(infd.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def load_features(uri: str) -> np.ndarray:
    try:
        return safetensors.numpy.load(storage.read_bytes(uri))["features"]
    except (SafetensorError, KeyError) as error:
        raise EvaluationError(f"{uri}: cannot be read as features ({type(error).__name__}); expected a safetensors file; "
                              "delete it, and it is made anew") from error
