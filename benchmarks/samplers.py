"""Quality against the number of steps, for each sampler of a stage-two checkpoint.

Quality is KID in the features of EfficientNet-lite0 (its real ImageNet weights, from a package) between renders of drawn
fields and the photographs' views and their mirror images, both at SIDE pixels; the same seeds in every row. No FID: its
network and its tens of thousands of images are another matter (docs/evaluation.md).

    python -m benchmarks.samplers --checkpoint RUN/checkpoints/best --dataset DATASET [--count 64] [--rows "ddim, eta 0" dpm]
"""

import argparse
import time
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import settle
from infd.data.snapshot import open_dataset
from infd.evaluation.features import FeatureNetwork, NetworkConfig, open_network
from infd.evaluation.kid import KidConfig, kid
from infd.generation.model import Model, load_model
from infd.generation.reconstruct import to_pixels

SIDE, BATCH = 224, 16
STEPS = (5, 10, 20, 50, 100, 200)
LEAST = {"ddpm": 100}
"""Samplers that need many steps."""
ROWS: dict[str, dict[str, Any]] = {
    "ddim, eta 1": {"sampler": "ddim", "eta": 1.0}, "ddim, eta 0": {"sampler": "ddim", "eta": 0.0},
    "dpm": {"sampler": "dpm"}, "unipc": {"sampler": "unipc"}, "ddpm": {"sampler": "ddpm"}}
FLOW: dict[str, dict[str, Any]] = {"euler": {"sampler": "euler"}, "heun": {"sampler": "heun"}}


def views(uri: str) -> np.ndarray:
    """uint8 (2 N, SIDE, SIDE, 3): every photograph's view, plain and mirrored."""
    dataset = open_dataset(uri)
    plain = np.stack([dataset.lowres(row, size=SIDE) for row in range(len(dataset))])
    return np.concatenate([plain, plain[:, :, ::-1]])


def features(network: FeatureNetwork, images: np.ndarray) -> np.ndarray:
    return np.concatenate([network(images[i:i + BATCH]) for i in range(0, len(images), BATCH)])


def drawn(model: Model, how: dict[str, Any], steps: int, count: int) -> tuple[np.ndarray, float]:
    """(renders of seeds 0 … count - 1, seconds that sampling one latent took)."""
    images, took = [], 0.0
    for first in range(0, count, BATCH):
        settle(model.device)
        begun = time.perf_counter()
        z = model.latents(range(first, min(first + BATCH, count)), steps=steps, **how)
        settle(model.device)
        took += time.perf_counter() - begun
        images += [to_pixels(model.field(one).render(SIDE, SIDE)) for one in z.split(1)]
    return np.stack(images), took / count


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.samplers")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--rows", nargs="*", choices=[*ROWS, *FLOW], help="these alone")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(args.checkpoint, device=device)
    network = open_network(NetworkConfig(name="efficientnet-lite0"), device=device)
    real = features(network, views(args.dataset))
    config = KidConfig(subsets=50, subset_size=min(len(real), args.count) // 2)
    print(f"{args.count} seeds at {SIDE} px against {len(real)} views; KID of {config.subset_size} at a time, standard error "
          "in brackets.\n\n| sampler | steps | s a latent | KID[efficientnet-lite0] |\n|---|---|---|---|")
    for name, how in (FLOW if model.diffusion.objective == "flow" else ROWS).items():
        if args.rows and name not in args.rows:
            continue
        for steps in (steps for steps in STEPS if steps >= LEAST.get(name, 0)):
            images, took = drawn(model, how, steps, args.count)
            found = kid(real, features(network, images), config)
            print(f"| {name} | {steps} | {took:.2f} | {found.mean:.3f} ({found.standard_error:.3f}) |", flush=True)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
