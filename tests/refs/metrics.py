"""Slow and obvious versions of the metrics: one pair, one window, one pixel at a time."""

import numpy as np


def mmd(x: np.ndarray, y: np.ndarray, *, degree: int = 3, gamma: float, coef: float = 1.0) -> float:
    """Unbiased squared MMD, pair by pair."""

    def kernel(p: np.ndarray, q: np.ndarray) -> float:
        return (gamma * float(sum(s * t for s, t in zip(p, q, strict=True))) + coef) ** degree

    m, n = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    xy = sum(kernel(p, q) for p in x for q in y) / (m * n)
    return xx + yy - 2 * xy


def covered_share(points: np.ndarray, centres: np.ndarray, k: int) -> float:
    """Share of points inside a ball around any centre that reaches to the centre's k-th nearest other centre."""
    radii = []
    for i, centre in enumerate(centres):
        others = sorted(float(np.sqrt(((centre - other) ** 2).sum())) for j, other in enumerate(centres) if j != i)
        radii.append(others[k - 1])
    inside = 0
    for point in points:
        inside += any(np.sqrt(((point - centre) ** 2).sum()) <= radius
                      for centre, radius in zip(centres, radii, strict=True))
    return inside / len(points)


def gaussian_window(size: int, sigma: float) -> np.ndarray:
    """(size, size), sum 1."""
    weights = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            weights[i, j] = np.exp(-((i - (size - 1) / 2) ** 2 + (j - (size - 1) / 2) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def ssim(a: np.ndarray, b: np.ndarray, *, size: int = 11, sigma: float = 1.5) -> tuple[float, float]:
    """(SSIM, its contrast-structure part) of two planes (H, W) in 0 to 255, window by window, where it fits whole."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    weights = gaussian_window(size, sigma)
    values, parts = [], []
    for y in range(a.shape[0] - size + 1):
        for x in range(a.shape[1] - size + 1):
            p, q = a[y:y + size, x:x + size], b[y:y + size, x:x + size]
            mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
            var_p, var_q = (weights * (p - mean_p) ** 2).sum(), (weights * (q - mean_q) ** 2).sum()
            cov = (weights * (p - mean_p) * (q - mean_q)).sum()
            part = (2 * cov + c2) / (var_p + var_q + c2)
            parts.append(part)
            values.append(part * (2 * mean_p * mean_q + c1) / (mean_p**2 + mean_q**2 + c1))
    return float(np.mean(values)), float(np.mean(parts))


def halved(a: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 blocks; a last odd row or column counts twice."""
    height, width = a.shape
    out = np.empty(((height + 1) // 2, (width + 1) // 2))
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            rows, columns = [2 * y, min(2 * y + 1, height - 1)], [2 * x, min(2 * x + 1, width - 1)]
            out[y, x] = np.mean([a[i, j] for i in rows for j in columns])
    return out


def radial_power(plane: np.ndarray) -> np.ndarray:
    """Mean of |DFT|^2 / N^2 over the frequencies whose distance from 0 rounds to 0, 1, … N // 2; by the sum itself."""
    n = len(plane)
    index = np.arange(n)
    rings: dict[int, list[float]] = {}
    for u in range(n):
        for v in range(n):
            wave = np.exp(-2j * np.pi * (u * index[:, None] + v * index) / n)
            fu, fv = min(u, n - u), min(v, n - v)
            rings.setdefault(int(np.sqrt(fu * fu + fv * fv) + 0.5), []).append(abs((plane * wave).sum()) ** 2 / n**2)
    return np.array([np.mean(rings[ring]) for ring in range(n // 2 + 1)])
