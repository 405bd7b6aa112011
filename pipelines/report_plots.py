"""Plots of a report, as SVG in data URIs, and pictures as they are."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

COLOURS = ("#0b5fa5", "#d9822b", "#3f8f5f", "#8a5fb0", "#b3473f", "#6b7785")
REAL = "#1b1f24"


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def by_scale(curves: Mapping[str, tuple[str, Mapping[int, float]]], unit: str) -> str:
    """A line for each run, of its colour: a validation metric over the upper end of r. Columns that only some have are gaps."""
    figure, axes = canvas("Validation by side r of the whole view", "r up to, pixels", unit)
    ends = sorted({end for _, curve in curves.values() for end in curve})
    for name, (paint, curve) in curves.items():
        axes.plot(range(len(ends)), [curve.get(end, np.nan) for end in ends], marker="o", color=paint, label=name)
    axes.set_xticks(range(len(ends)), [str(end) for end in ends])
    if unit == "val/loss":
        axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return svg(figure)


def spectra(frequencies: Sequence[float], real: Sequence[float], others: Mapping[str, tuple[str, Sequence[float]]],
            side: int) -> str:
    """Power in decibels over frequency; the real set in black. Frequency 0 is left out."""
    figure, axes = canvas(f"Power spectra of {side} px crops", "cycles a pixel", "power, dB")
    lines = [("real", real, REAL, 2.2), *((name, power, paint, 1.5) for name, (paint, power) in others.items())]
    for name, power, paint, width in lines:
        levels = 10 * np.log10(np.maximum(np.array(power[1:]), 1e-12))
        axes.plot(np.array(frequencies[1:]) / side, levels, label=name, color=paint, linewidth=width)
    axes.set_xscale("log")
    axes.legend(frameon=False, fontsize=8)
    return svg(figure)


def over_images(values: Mapping[str, tuple[str, Sequence[float]]], name: str, *, over: str = "images") -> str:
    """How a metric of pairs is spread over the images, or pools of them: each run's values, sorted."""
    figure, axes = canvas(f"{name}: {'every image' if over == 'images' else 'every pool of images'}, sorted",
                          f"share of {over}", name)
    for run, (paint, found) in values.items():
        finite = np.sort(np.array([value for value in found if np.isfinite(value)]))
        places = np.linspace(0, 1, len(finite)) if len(finite) > 1 else [0.5] * len(finite)
        axes.plot(places, finite, color=paint, label=run, marker="." if len(finite) < 40 else None)
    axes.legend(frameon=False, fontsize=8)
    return svg(figure)


def canvas(title: str, across: str, up: str) -> tuple[Any, Any]:
    """(figure, its axes)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.3), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=across, ylabel=up)
    axes.grid(alpha=0.3)
    return figure, axes


def svg(figure: Any) -> str:
    """Law: equal figures give equal bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "infd"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def jpeg(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()
