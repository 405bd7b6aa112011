"""Slow, obvious geometry in NumPy and exact fractions."""

from fractions import Fraction

import numpy as np


def centre(i: int, n: int) -> Fraction:
    """Centre of pixel i of n on [-1, 1]."""
    return Fraction(2 * i + 1, n) - 1


def nearest_feature(i: int, n: int, features: int) -> int:
    """Of `features` centres on [-1, 1] the nearest to pixel i of n; of two as near, the later."""
    place = centre(i, n)
    distances = [abs(place - centre(k, features)) for k in range(features)]
    least = min(distances)
    return max(k for k in range(features) if distances[k] == least)


def query(phi: np.ndarray, rows: list[int], columns: list[int], height: int, width: int) -> np.ndarray:
    """phi (C, Fr, Fc) -> (C + 4, h, w): features, rel_coord, rel_cell, one pixel at a time."""
    channels, feature_rows, feature_columns = phi.shape
    out = np.zeros((channels + 4, len(rows), len(columns)))
    for a, i in enumerate(rows):
        for b, j in enumerate(columns):
            k, m = nearest_feature(i, height, feature_rows), nearest_feature(j, width, feature_columns)
            out[:channels, a, b] = phi[:, k, m]
            out[channels, a, b] = (centre(i, height) - centre(k, feature_rows)) * feature_rows
            out[channels + 1, a, b] = (centre(j, width) - centre(m, feature_columns)) * feature_columns
            out[channels + 2, a, b] = 2 * feature_rows / height
            out[channels + 3, a, b] = 2 * feature_columns / width
    return out
