"""Radially averaged power spectra: how much detail there is at each frequency, whatever its direction.

A plane of N x N pixels: power |DFT|^2 / N^2 of Y in [0, 1], mean removed, under a Hann window scaled to keep white noise.
Rings hold the frequencies whose distance from 0 rounds to 0, 1, … N // 2 cycles an image; the corners beyond are left out.
"""

from dataclasses import dataclass

import numpy as np

from infd.evaluation.errors import EvaluationError
from infd.evaluation.pixels import luma


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Sum of the spectra of `count` planes of one side; pieces add up: `a + b`.

    Law: white noise of variance v has power v at every frequency but 0, a wave of k cycles all of its power near ring k.
    """

    side: int
    count: int
    total: np.ndarray
    """float64 (side // 2 + 1,)."""

    @classmethod
    def empty(cls, side: int) -> "Spectrum":
        return cls(side, 0, np.zeros(side // 2 + 1))

    @classmethod
    def of(cls, image: np.ndarray) -> "Spectrum":
        """Of one image uint8 (N, N, 3). Raises EvaluationError: it is not square."""
        if image.shape[0] != image.shape[1]:
            raise EvaluationError(f"image of {image.shape[1]}x{image.shape[0]}: a spectrum needs a square; cut it first")
        plane = (luma(image) - 16) / 219
        return cls(len(plane), 1, radial(windowed(plane - plane.mean())))

    def __add__(self, other: "Spectrum") -> "Spectrum":
        if self.side != other.side:
            raise ValueError(f"spectra of sides {self.side} and {other.side} do not add up")
        return Spectrum(self.side, self.count + other.count, self.total + other.total)

    @property
    def power(self) -> np.ndarray:
        """float64 (side // 2 + 1,): mean power at 0, 1, … side // 2 cycles an image."""
        return self.total / max(self.count, 1)


def windowed(plane: np.ndarray) -> np.ndarray:
    """Under a Hann window of mean square 1, so that the power of noise stays."""
    window = np.sin(np.pi * (np.arange(len(plane)) + 0.5) / len(plane)) ** 2
    window /= np.sqrt(np.mean(window**2))
    return plane * window[:, None] * window


def radial(plane: np.ndarray) -> np.ndarray:
    """(N, N) -> (N // 2 + 1,): mean of |DFT|^2 / N^2 over each ring."""
    side = len(plane)
    power = np.abs(np.fft.fft2(plane)) ** 2 / side**2
    frequency = np.minimum(np.arange(side), side - np.arange(side))
    ring = (np.sqrt(frequency[:, None] ** 2 + frequency**2) + 0.5).astype(np.int64)
    inside = ring <= side // 2
    sums = np.bincount(ring[inside], weights=power[inside])
    return sums / np.bincount(ring[inside])


def distance_db(a: Spectrum, b: Spectrum) -> float:
    """Mean over the frequencies above 0 of the absolute difference of level, decibels. Law: 0 for equal spectra.

    A level is taken as that of rounding to 8 bits where it lies below: less than that no file can show.
    """
    least = 1 / 219**2 / 12
    levels = [10 * np.log10(np.maximum(side.power[1:], least)) for side in (a, b)]
    return float(np.abs(levels[0] - levels[1]).mean())
