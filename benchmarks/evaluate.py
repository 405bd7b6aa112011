"""Images a second through crops and features: ours, and torch-fidelity's own loop, on the same files in one run.

One random 256 x 256 crop of each PNG of 1024 x 1024 through the Inception of FID, weights drawn at random (their values change
no time). A core: both are held to one, with one torch thread; the peer without loader processes and with them. Then ours on
Ray with one worker and with two, without their start; of these PNG, which threads beside the network decode, and of PNG no
larger than the crop, where the network is the bound.

    python -m benchmarks.evaluate [--images 64] [--rounds 3]
"""

import argparse
import copy
import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.photographs import origin, photograph
from infd.compat import torchvision_ready
from infd.evaluation.collect import block_features
from infd.evaluation.crops import OneCrop, plan
from infd.evaluation.features import FeatureNetwork, NetworkConfig, inception, placed
from infd.evaluation.protocols import Distances
from infd.evaluation.sources import FolderSource
from pipelines import cluster
from pipelines import evaluation_work as units
from pipelines.evaluation_work import Settings, SourceSpec, engine, feature_tasks

P, R, BATCH = 256, 1024, 32
RAY_BATCH, RAY_BLOCK, RAY_TIMES = 8, 16, 4
"""Images through the network at once; of a task, where an evaluation's has 128; how often a worker's run takes all images."""


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(list(argv))
    if args.images < 2 * RAY_BLOCK or args.images % RAY_BLOCK:
        parser.error(f"--images {args.images}: expected whole blocks of {RAY_BLOCK}, two or more")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="infd-bench-") as folder:
        images, small = (make_images(Path(folder) / str(side), args.images, side) for side in (R, P))
        network = placed(inception(random_state()), "cpu")
        rows = in_turns({
            "ours, one core": ours(images, network),
            "torch-fidelity's loop, one core, no loader processes": peer(images, network, processes=False),
            "torch-fidelity's loop, one core, its 4 loader processes": peer(images, network, processes=True)}, args)
        with cluster.connect():
            rows += ray_in_turns(((images, R), (small, P)), folder, args.rounds)
    print(f"{args.images} PNG of {R} x {R} ({origin()}), one crop of {P} each, batch {BATCH}; on Ray {RAY_BATCH} in "
          f"blocks of {RAY_BLOCK}, torchvision's Inception; medians of {args.rounds} rounds, in turns.\n\n"
          "| what | images/s |\n|---|---|")
    for name, rate in rows:
        print(f"| {name} | {rate:.2f} |")
    print(f"\nOurs against the peer on a core: {rows[0][1] / max(rows[1][1], rows[2][1]):.2f} times its better way; two "
          f"workers against one: {rows[4][1] / rows[3][1]:.2f} times, and {rows[6][1] / rows[5][1]:.2f} times of small PNG.")


def make_images(folder: Path, count: int, side: int) -> str:
    folder.mkdir()
    for index in range(count):
        photograph(side, side, seed=index).save(folder / f"image-{index:04d}.png")
    return str(folder)


def random_state() -> dict[str, torch.Tensor]:
    """Weights of FID's Inception, drawn."""
    torchvision_ready()
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    model = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    return {name: value.detach() for name, value in model.state_dict().items()}


@contextmanager
def one_core() -> Iterator[None]:
    """This process, and what it starts, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def in_turns(ways: dict[str, Callable[[], object]], args: argparse.Namespace) -> list[tuple[str, float]]:
    """Images a second of each, on one core: medians over rounds in turns, because a shared machine's speed changes."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with one_core():
        for _ in range(args.rounds):
            for name, work in ways.items():
                begun = time.perf_counter()
                work()
                rates[name].append(args.images / (time.perf_counter() - begun))
    return [(name, statistics.median(found)) for name, found in rates.items()]


def ours(images: str, network: FeatureNetwork) -> Callable[[], object]:
    source = FolderSource(images)
    cuts = plan(OneCrop(p=P, r=R), source, source).b
    return lambda: block_features(source, cuts, network, batch=BATCH)


def peer(images: str, network: FeatureNetwork, *, processes: bool) -> Callable[[], object]:
    """The package's loop over a dataset that reads and crops as INFD's script does."""
    from torch_fidelity.utils import get_featuresdict_from_dataset

    paths = sorted(Path(images).iterdir())

    class Crops(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            with Image.open(paths[index]) as image:
                y, x = np.random.default_rng(index).integers(0, R - P + 1, 2)
                crop = image.convert("RGB").crop((x, y, x + P, y + P))
            return torch.from_numpy(np.array(crop)).permute(2, 0, 1)

    ours_of = network.trunk.module  # pyright: ignore[reportFunctionMemberAccess]
    assert isinstance(ours_of, nn.Module)
    extractor = copy.deepcopy(ours_of).to(memory_format=torch.contiguous_format)        # as the package makes it
    return lambda: get_featuresdict_from_dataset(Crops(), extractor, BATCH, False, not processes, False)


def ray_in_turns(sets: Sequence[tuple[str, int]], folder: str, rounds: int) -> list[tuple[str, float]]:
    """Images a second of each set on one worker and on two: medians over rounds in turns."""
    found: dict[str, list[float]] = {}
    for turn in range(rounds):
        for images, side in sets:
            for workers in (1, 2):
                name = f"ours on Ray, PNG of {side}, {workers} worker{'s' * (workers > 1)}"
                found.setdefault(name, []).append(on_ray(images, side, workers, Path(folder) / f"turn-{turn}"))
    return [(name, statistics.median(rates)) for name, rates in found.items()]


def on_ray(images: str, side: int, workers: int, folder: Path) -> float:
    """Images a second while all workers are at work: from a quarter of the blocks and one more until one is idle."""
    torch.manual_seed(0)
    path = folder.parent / "network.pt"
    if not path.exists():
        torch.jit.trace(Traced(), torch.zeros(BATCH, 3, P, P)).save(str(path))  # pyright: ignore
    config = NetworkConfig(name="torchscript", weights=str(path), label="bench", input_px=P,
                           sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    protocol = Distances(name="pfid_infd", crops=OneCrop(p=P, r=side), network=config, batch=RAY_BATCH)
    spec = SourceSpec(uri=images)
    source = FolderSource(images)
    cuts = plan(protocol.crops, source, source).b
    work = folder / f"work-{side}-{workers}"
    tasks = [task for k in range(RAY_TIMES) for start in range(0, len(cuts), RAY_BLOCK)
             for task in feature_tasks(0, f"{k}-{start}", cuts[start:start + RAY_BLOCK], str(work))]
    with engine(ray=True, workers=workers, device="cpu") as made:
        made.run(Settings(protocol=protocol, specs=(spec, spec), work=str(work), device="cpu"), units.missing(tasks))
    return RAY_BLOCK * steady_rate([Path(task["out"]).stat().st_mtime for task in tasks], workers)


def steady_rate(written: Sequence[float], workers: int) -> float:
    """Blocks a second, from the times at which they were written: whole turns of all workers, started before and none idle."""
    times = sorted(written)
    first = len(times) // 4
    turns = (len(times) - workers - first) // workers
    last = first + turns * workers
    return turns * workers / (times[last] - times[first])


class Traced(nn.Module):
    """torchvision's Inception up to its pooled features, at 299, which a TorchScript file can hold."""

    def __init__(self) -> None:
        super().__init__()
        torchvision_ready()
        from torchvision.models import inception_v3

        self.model = inception_v3(weights=None, aux_logits=False, init_weights=False).eval()
        self.model.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, rgb: torch.Tensor) -> torch.Tensor:
        return self.model(nn.functional.interpolate(rgb, (299, 299), mode="bilinear"))


if __name__ == "__main__":
    main(sys.argv[1:])
