"""One training sample (lowres 256², one 256² patch at uniform r) from photographs of several sizes, on one core.

Reference way: decode the JPEG, Lanczos to 256 and to r, crop. webdataset and litdata: that same transform on the same
JPEG in their formats. All in one process, with the same PIL; every way reads every crop, the order turning with each
crop. Plain Pillow: the reference way in an environment of its own. Figures are medians over the crops, in ms.
"""

import gc
import importlib
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers, photographs, reference_way
from benchmarks.reference_way import PATCH_PX
from infd.config import IngestConfig
from infd.data.snapshot import write_dataset

CROPS = {1024: 25, 2048: 25, 4096: 15, 8192: 9}
"""Side → how many; r goes through as many equal parts of [256, side], so that few crops stand for a uniform r."""
BEFORE_OURS = 3
"""So many other crops are read, untimed, before each of ours: the ways before it leave the processor's caches full of
whole photos, which no training by ours has."""
PEERS = ("webdataset==1.0.2", "litdata==0.2.76", "braceexpand==0.1.7", "lightning-utilities==0.15.3")
PLAIN = ("pillow==12.1.1", "numpy==2.4.6")

Crop = tuple[int, int, int]
Way = Callable[[Crop], object]


def crops_of(side: int) -> list[Crop]:
    """(r, y, x): r at the middles of equal parts, in a random order; the place is random."""
    rng, count = np.random.default_rng(side), CROPS[side]
    crops = []
    for part in rng.permutation(count):
        r = int(PATCH_PX + (side - PATCH_PX) * (part + 0.5) / count)
        y, x = rng.integers(0, r - PATCH_PX + 1, 2)
        crops.append((r, int(y), int(x)))
    return crops


def milliseconds(way: Way, crop: Crop) -> float:
    begun = time.perf_counter()
    way(crop)
    return 1000 * (time.perf_counter() - begun)


def measured(ways: dict[str, Way], crops: list[Crop]) -> dict[str, list[float]]:
    """The time of every way for every crop; the order of the ways turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for way in ways.values():
        way(crops[0])
    for number, crop in enumerate(crops):
        for name in names[number % len(names):] + names[:number % len(names)]:
            for other in range(BEFORE_OURS if name == "ours" else 0):
                ways[name](crops[(number + 1 + other) % len(crops)])
            taken[name].append(milliseconds(ways[name], crop))
    return taken


# ---------------------------------------------------------------- the ways


def ours(data: bytes, folder: Path) -> Way:
    dataset = write_dataset([("photo.jpg", data)], str(folder / "ours"), IngestConfig(val_fraction=0))

    def read(crop: Crop) -> object:
        r, y, x = crop
        return dataset.lowres(0), dataset.patch(0, r=r, y=y, x=x, size=PATCH_PX)

    return read


def webdataset(data: bytes, folder: Path) -> Way:
    """A tar of a few samples, read round and round through its pipeline."""
    wds = importlib.import_module("webdataset")  # of the peers' folder, not of our environment

    path = folder / "photos.tar"
    with wds.TarWriter(str(path)) as sink:
        for number in range(4):
            sink.write({"__key__": f"{number:06d}", "jpg": data})
    items = _endless(lambda: iter(wds.WebDataset(str(path), shardshuffle=False)))
    return lambda crop: reference_way.sample(next(items)["jpg"], *crop)


def litdata(data: bytes, folder: Path) -> Way:
    """Chunks written by its cache, read by its streaming dataset."""
    streaming = importlib.import_module("litdata.streaming")
    path = folder / "litdata"
    path.mkdir()
    cache = streaming.Cache(str(path), chunk_bytes="64MB")
    for number in range(4):
        cache[number] = {"jpg": data}
    cache.done()
    cache.merge()
    stream = streaming.StreamingDataset(str(path))
    numbers = _endless(lambda: iter(range(4)))
    return lambda crop: reference_way.sample(stream[next(numbers)]["jpg"], *crop)


def _endless(start: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    for _ in repeat(None):
        yield from start()


def plain_pillow(data: bytes, folder: Path, crops: list[Crop]) -> list[float] | None:
    """The reference way's times in an environment with plain Pillow; None where there is none."""
    python, _ = peers.environment("pillow", PLAIN)
    if python is None:
        return None
    path = folder / "plain.jpg"
    path.write_bytes(data)
    done = subprocess.run([str(python), reference_way.__file__, str(path), json.dumps(crops)], capture_output=True,
                          text=True, check=True)
    return json.loads(done.stdout)


# ---------------------------------------------------------------- the table


def main() -> None:
    problem = peers.beside_ours("peers", PEERS)
    others = {} if problem else {"webdataset": webdataset, "litdata": litdata}
    plain_problem = peers.environment("pillow", PLAIN)[1]
    print(f"Photographs: {photographs.origin()}, JPEG {photographs.QUALITY}. Peers: "
          f"{problem or peers.versions('peers', ('webdataset', 'litdata'))}; plain Pillow: "
          f"{plain_problem or peers.versions('pillow', ('pillow',))}.\n")
    names = ["reference", *others, "plain Pillow"]
    print("| side, px | ours, ms (p90) | " + " | ".join(f"{name}, ms (× ours)" for name in names) + " |")
    print("|---|---|" + "---|" * len(names))
    for side in CROPS:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="infd-bench-")))
            data = photographs.jpeg(photographs.photograph(side, side))
            crops = crops_of(side)
            ways: dict[str, Way] = {"ours": ours(data, folder)}
            ways["reference"] = lambda crop, data=data: reference_way.sample(data, *crop)
            ways |= {name: make(data, folder) for name, make in others.items()}
            gc.collect()
            taken: dict[str, list[float] | None] = {**measured(ways, crops)}
            taken["plain Pillow"] = plain_pillow(data, folder, crops)
            print(row(side, taken, names), flush=True)


def row(side: int, taken: dict[str, list[float] | None], names: list[str]) -> str:
    mine = taken["ours"] or [float("nan")]
    our_ms = statistics.median(mine)
    cells = [f"{side}", f"{our_ms:.2f} ({np.quantile(mine, 0.9):.2f})"]
    for name in names:
        times = taken.get(name)
        cells.append(f"{statistics.median(times):.1f} ({statistics.median(times) / our_ms:.1f} ×)" if times else "–")
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
