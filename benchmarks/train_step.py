"""One training step of stage one: the published loop, each of our savings alone, ours, and ours at larger batches.

Images a second, the largest memory of the device, and the share of its peak that goes into operations a step needs
(`infd.training.plan.model_flops`, counted; the peak is named in the table, or measured by a large matrix product). Needs
neither Ray nor a network: data is random, or read from a dataset; LPIPS has random weights, which is as much work.

    python -m benchmarks.train_step --preset ffhq_1024 --batches 8 16 32 64 --profile step.txt
    python -m benchmarks.train_step --dataset DATASET          # batches of a dataset, through the loader
    python -m benchmarks.train_step --stage two                # the denoiser: diffusion_step.py
"""

import argparse
import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from benchmarks import diffusion_step
from benchmarks.measuring import WARM_UP, Candidate, settle, table
from benchmarks.published_loop import Published
from infd.config import AutoencoderTrainingConfig
from infd.data.loader import Batch, Loader
from infd.data.order import Order
from infd.data.snapshot import open_dataset
from infd.losses.perceptual import Lpips
from infd.presets import AUTOENCODER, DIFFUSION
from infd.training.autoencoder import AutoencoderStage
from infd.training.plan import model_flops
from infd.training.world import World

Batches = Callable[[AutoencoderTrainingConfig], Iterator[Batch]]


@dataclass(frozen=True, kw_only=True)
class Way:
    """One row: what is switched on."""

    name: str
    published: bool = False
    reuse_fake: bool = False
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    channels_last: bool = False
    compiled: bool = False
    fused: bool = False
    """Adam in one call."""


PLAIN = [
    Way(name="published: float32, eager", published=True),
    Way(name="adaptive weight from one backward of each loss, alone"),
    Way(name="fake reused, alone", published=True, reuse_fake=True),
    Way(name="Adam in one call, alone", published=True, fused=True),
    Way(name="channels last, alone", published=True, channels_last=True),
    Way(name="bfloat16, alone", published=True, precision="bfloat16"),
    Way(name="compiled, alone", published=True, compiled=True),
    Way(name="ours, float32, eager", reuse_fake=True, fused=True),
]
ON_GPU = [
    Way(name="TF32, alone", published=True, precision="tf32"),
    Way(name="ours, eager", reuse_fake=True, fused=True, precision="bfloat16", channels_last=True),
    Way(name="ours", reuse_fake=True, fused=True, precision="bfloat16", compiled=True),
    Way(name="ours, channels last", reuse_fake=True, fused=True, precision="bfloat16", compiled=True, channels_last=True),
]
ON_CPU = [Way(name="ours, channels last", reuse_fake=True, fused=True, channels_last=True),
          Way(name="ours, compiled", reuse_fake=True, fused=True, compiled=True),
          Way(name="ours, compiled, channels last", reuse_fake=True, fused=True, compiled=True, channels_last=True)]


def configured(base: AutoencoderTrainingConfig, way: Way, batch: int) -> AutoencoderTrainingConfig:
    loop = replace(base.loop, batch=batch, precision=way.precision, compiled=way.compiled, channels_last=way.channels_last)
    return replace(base, loop=loop, loss=replace(base.loss, gan_from_step=1, fresh_fake=not way.reuse_fake))


def random_batches(config: AutoencoderTrainingConfig) -> Iterator[Batch]:
    crop, count = config.crop, config.loop.batch
    sides = (crop.lowres_px, crop.patch_px)
    generator = torch.Generator().manual_seed(0)
    lowres, patch = (torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator) for side in sides)
    r = torch.full((count,), crop.r_max)
    return itertools.repeat(Batch(step=0, g=torch.arange(count), lowres=lowres, patch=patch, r=r, y=r // 3, x=r // 4,
                                  rows=[0] * count))


def made(config: AutoencoderTrainingConfig, way: Way, device: torch.device) -> Callable[[Batch, int], object]:
    """What updates the networks of a stage with random LPIPS."""
    lpips = Lpips.untrained(config.loss.lpips_net) if config.loss.lpips > 0 else None
    stage = AutoencoderStage(config, world=World(device=device), lpips=lpips, validation=[])
    if not way.fused:
        stage.generator_adam = plain_adam(stage.generator_adam)
        stage.discriminator_adam = plain_adam(stage.discriminator_adam) if stage.discriminator_adam else None
    return Published(stage=stage, reuse_fake=way.reuse_fake).iteration if way.published else stage.step


def plain_adam(adam: torch.optim.Adam) -> torch.optim.Adam:
    """torch's default for the device."""
    group = adam.param_groups[0]
    return torch.optim.Adam(group["params"], lr=group["lr"], betas=group["betas"])


def candidate(base: AutoencoderTrainingConfig, way: Way, batch: int, device: torch.device, batches: Batches) -> Candidate:
    config = configured(base, way, batch)
    return Candidate(way.name, batch, lambda: (made(config, way, device), batches(config)))


def profile(base: AutoencoderTrainingConfig, way: Way, batch: int, device: torch.device, path: str) -> None:
    """Ten steps of `way`, its operations by their own time, to a text file."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    config = configured(base, way, batch)
    update = made(config, way, device)
    feed = random_batches(config)
    for step in range(1, WARM_UP + 1):
        update(next(feed), step)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profiled(activities=kinds) as found:
        for step in range(10):
            update(next(feed), WARM_UP + 1 + step)
        settle(device)
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    with open(path, "w", encoding="utf-8") as file:
        file.write(found.key_averages().table(sort_by=order, row_limit=40))


def main(argv: list[str] | None = None) -> None:
    """Without arguments: `tiny` on a CPU, `ffhq_1024` on a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step")
    gpu = torch.cuda.is_available()
    parser.add_argument("--stage", choices=["one", "two"], default="one", help="two: the denoiser on latents")
    parser.add_argument("--preset", choices=AUTOENCODER, default="ffhq_1024" if gpu else "tiny")
    parser.add_argument("--batches", type=int, nargs="*", default=[16, 32, 64] if gpu else [], help="more batches for ours")
    parser.add_argument("--dataset", default="", help="read batches from it; its loader then counts")
    parser.add_argument("--profile", default="", help="write the operations of ours, by time, to this file")
    args = parser.parse_args(argv or [])
    if args.stage == "two" and args.preset not in DIFFUSION:
        parser.error(f"--preset {args.preset}: stage two has {', '.join(DIFFUSION)}")
    base, device = AUTOENCODER[args.preset](), torch.device("cuda" if gpu else "cpu")
    if args.stage == "two":
        print(f"Stage two, preset {args.preset}, random data.\n")
        return diffusion_step.all_ways(DIFFUSION[args.preset](), base, args.batches, device)
    best = ON_GPU[-2] if gpu else PLAIN[-1]
    ways = [(way, base.loop.batch) for way in (*PLAIN, *(ON_GPU if gpu else ON_CPU))]
    ways += [(best, batch) for batch in args.batches]
    print(f"Preset {args.preset}, " + (f"data of {args.dataset}" if args.dataset else "random data") + ".\n")
    with contextlib.ExitStack() as held:
        def batches(config: AutoencoderTrainingConfig) -> Iterator[Batch]:
            if not args.dataset:
                return random_batches(config)
            dataset = open_dataset(args.dataset)
            order = Order(dataset.manifest, config.crop, batch=config.loop.batch, seed=0)
            loader = Loader(dataset, order, config.loader, slots=range(config.loop.batch), pin_memory=gpu)
            return iter(held.enter_context(loader))

        table([candidate(base, way, batch, device, batches) for way, batch in ways], flops=sum(model_flops(base).values()),
              device=device, unit="images")
    if args.profile:
        profile(base, best, base.loop.batch, device, args.profile)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
