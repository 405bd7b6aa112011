"""Means of a metric over all samples, and over samples of a range of sides r, so that one sees which scales are poor."""

from math import ceil, log2

import torch
from torch import Tensor

from infd.config import CropConfig
from infd.training.world import World


def octaves(crop: CropConfig) -> list[int]:
    """Upper ends of the ranges of r, pixels: r_max halved while it is above r_min, rising."""
    count = max(1, ceil(log2(crop.r_max / crop.r_min)))
    return [round(crop.r_max / 2**k) for k in reversed(range(count))]


class ScaleMeans:
    """Sums of the metrics `names` over samples, by the octave of r; merged over the ranks at the end."""

    def __init__(self, names: list[str], crop: CropConfig, world: World) -> None:
        self.names, self.world, self.ends = names, world, octaves(crop)
        self.sums = torch.zeros(len(names) + 1, len(self.ends), dtype=torch.float64, device=world.device)

    def add(self, r: Tensor, metrics: dict[str, Tensor]) -> None:
        """r (B,) and each metric (B,) of a batch, on the world's device."""
        octave = torch.bucketize(r, torch.tensor(self.ends[:-1], device=r.device))    # r <= ends[i] falls in octave i
        one_hot = torch.nn.functional.one_hot(octave, len(self.ends)).double()
        rows = torch.stack([torch.ones_like(r), *(metrics[name] for name in self.names)])
        self.sums += rows.double() @ one_hot

    def means(self) -> dict[str, float]:
        """Each metric over all samples, and `NAME_r_to_END` for each octave that has any; {} without samples."""
        count, *sums = (self.world.mean(self.sums) * self.world.size).tolist()
        if not sum(count):
            return {}
        out = {name: sum(values) / sum(count) for name, values in zip(self.names, sums, strict=True)}
        return out | {f"{name}_r_to_{end}": values[i] / count[i] for name, values in zip(self.names, sums, strict=True)
                      for i, end in enumerate(self.ends) if count[i] and len(self.ends) > 1}
