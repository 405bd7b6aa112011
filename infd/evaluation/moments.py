"""Mean and covariance of features in one pass, float64, in pieces that merge in any order.

Shapes: N images, D features.
"""

import io
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from infd.evaluation.errors import EvaluationError, require_images

FORMAT = "infd-moments-1"


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and scatter of N feature vectors; pieces add up: `a + b`.

    Law: any split of the features, added in any order, gives the same mean and covariance within 1e-9 of their size.
    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    count: int
    mean: np.ndarray
    """float64 (D,)."""
    scatter: np.ndarray
    """float64 (D, D): sum over images of (x - mean)(x - mean)^T."""

    @classmethod
    def empty(cls, dim: int) -> "Moments":
        """Of no image."""
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """Of features (N, D) of any float type. Raises EvaluationError: not finite."""
        x = np.asarray(features, np.float64)
        if x.ndim != 2:
            raise ValueError(f"features of shape {x.shape}: expected (images, features)")
        if not np.isfinite(x).all():
            bad = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
            raise EvaluationError(f"features: image {bad} of {len(x)} has one that is not finite; expected numbers; "
                                  "check the network's weights and precision")
        if not len(x):
            return cls.empty(x.shape[1])
        mean = x.mean(axis=0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred)

    def __add__(self, other: "Moments") -> "Moments":
        if self.dim != other.dim:
            raise ValueError(f"moments of {self.dim} and of {other.dim} features do not add up")
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        scatter = self.scatter + other.scatter + np.outer(shift, shift * (self.count * other.count / count))
        return Moments(count, mean, scatter)

    @property
    def dim(self) -> int:
        """D."""
        return len(self.mean)

    def covariance(self, *, ddof: int = 1) -> np.ndarray:
        """float64 (D, D): scatter / (N - ddof); 1 as np.cov (INFD), 0 as AnyRes-GAN. Raises EvaluationError: N too small."""
        require_images(self.count, ddof + 1, what="covariance", rule=f"a divisor of N - {ddof}")
        return self.scatter / (self.count - ddof)


def total(pieces: Iterable[Moments], *, dim: int) -> Moments:
    """The sum of pieces in the order given. Law: the same pieces in the same order give the same bits."""
    result = Moments.empty(dim)
    for piece in pieces:
        result = result + piece
    return result


# ---------------------------------------------------------------- files


def to_bytes(moments: Moments, about: dict[str, object] | None = None) -> bytes:
    """A safetensors file. Law: `from_bytes` gives the same bits; equal moments and `about` give equal bytes."""
    facts = {"format": FORMAT, "count": moments.count, "about": about or {}}
    return safetensors.numpy.save(
        {"mean": moments.mean, "scatter": moments.scatter}, metadata={"infd": json.dumps(facts, sort_keys=True)})


def from_bytes(data: bytes, *, name: str = "moments") -> Moments:
    """The moments of `to_bytes`. Raises EvaluationError naming `name`: another kind of file, or a damaged one."""
    try:
        length = int.from_bytes(data[:8], "little")
        facts = json.loads(json.loads(data[8:8 + length])["__metadata__"]["infd"])
        tensors = safetensors.numpy.load(data)
        found = facts["format"], tensors["mean"], tensors["scatter"], int(facts["count"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{name}: cannot be read as moments ({type(error).__name__}); expected a file of {FORMAT}; "
                              "delete it, and it is made anew") from error
    if found[0] != FORMAT:
        raise EvaluationError(f"{name}: format {found[0]}; expected {FORMAT}; delete it, and it is made anew")
    return Moments(found[3], found[1], found[2])


def to_npz(moments: Moments) -> bytes:
    """The file that other tools read: `mu`, `sigma` (divided by N - 1) and, for us, `count`."""
    buffer = io.BytesIO()
    np.savez(buffer, mu=moments.mean, sigma=moments.covariance(), count=np.int64(moments.count))
    return buffer.getvalue()


def from_npz(data: bytes, *, count: int | None = None, name: str = "statistics") -> Moments:
    """The moments in an .npz of `mu` and `sigma` (divided by N - 1), such as published statistics; never unpickles.

    `count` is N where the file does not say it. Raises EvaluationError: unreadable, or N is not known.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            mean, sigma = file["mu"].astype(np.float64), file["sigma"].astype(np.float64)
            found = int(file["count"]) if "count" in file else count
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise EvaluationError(f"{name}: cannot be read ({type(error).__name__}); expected an .npz of arrays mu and sigma; "
                              "check the file") from error
    if found is None or found < 2:
        raise EvaluationError(f"{name}: the number of images is {found}; at least 2 are needed; say how many it was made of")
    if mean.ndim != 1 or sigma.shape != (len(mean), len(mean)):
        raise EvaluationError(f"{name}: mu has shape {mean.shape}, sigma {sigma.shape}; expected (D,) and (D, D); "
                              "check the file")
    return Moments(found, mean, sigma * (found - 1))
