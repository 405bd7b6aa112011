"""Samples a second of the training loader from a bucket of a local S3 server, and how long a `tiny` training waits.

A sample is lowres 256² and one 256² patch at uniform r. A run is one epoch. Cold: the cache folder is empty and each shard
is fetched when its turn comes; warm: all of them lie in it. Shards are a sixteenth of the default size, so that an epoch has
many. Runs with one and two threads alternate; figures are medians of runs.
"""

import statistics
import tempfile
import time
from dataclasses import replace

from benchmarks import photographs, stack
from infd.config import CropConfig, IngestConfig, LoaderConfig, LossConfig
from infd.data.loader import Loader
from infd.data.order import Order
from infd.data.snapshot import Dataset, write_dataset
from infd.presets import tiny

PHOTOS, WIDTH, HEIGHT = 240, 2048, 1536
PICTURES = 40
"""As many of them differ; the others are the same pictures in files of other bytes."""
SHARD_BYTES = 8 << 20
BATCH = 8
STEPS = PHOTOS // BATCH
RUNS = 3
TRAINING_STEPS = 120
FIRST_STEPS = 5
"""On one batch, before the loader starts: torch warms up."""


def samples_per_s(dataset: Dataset, threads: int, folder: str) -> float:
    order = Order(dataset.manifest, CropConfig(r_max=HEIGHT), batch=BATCH, seed=0)
    config = LoaderConfig(threads=threads, cache_dir=folder)
    begun = time.perf_counter()
    with Loader(dataset, order, config, slots=range(BATCH)) as loader:
        for _ in range(STEPS):
            next(loader)
        return BATCH * STEPS / (time.perf_counter() - begun)


def waiting(dataset: Dataset) -> tuple[float, float]:
    """(steps/s, share of the time spent waiting for data) of stage one at `tiny`, from an empty cache."""
    from infd.training.autoencoder import AutoencoderStage
    from infd.training.world import World

    config = replace(tiny(), loss=LossConfig(lpips=0, quantizer=1e-6, gan=0.1))  # LPIPS needs weights; it would wait less
    stage = AutoencoderStage(config, world=World(), lpips=None, validation=[])
    order = Order(dataset.manifest, config.crop, batch=config.loop.batch, seed=0)
    slots = range(config.loop.batch)
    with Loader(dataset, order, LoaderConfig(), slots=slots) as loader:
        batch = next(loader)
    for step in range(1, FIRST_STEPS + 1):
        stage.step(batch, step)
    begun = time.perf_counter()
    with Loader(dataset, order, LoaderConfig(), slots=slots) as loader:
        for step in range(1, TRAINING_STEPS + 1):
            stage.step(next(loader), step)
        took, stats = time.perf_counter() - begun, loader.stats()
    return TRAINING_STEPS / took, stats["wait_s"] / took


def main() -> None:
    print(f"{PHOTOS} photographs of {WIDTH} × {HEIGHT} px ({photographs.origin()}), batches of {BATCH}, {STEPS} steps a "
          f"run, medians of {RUNS} runs.\n")
    rates: dict[tuple[str, int], list[float]] = {}
    with stack.running() as bucket:
        pictures = [photographs.jpeg(photographs.photograph(WIDTH, HEIGHT, number)) for number in range(PICTURES)]
        sources = ((f"{n}.jpg", photographs.renamed(pictures[n % PICTURES], n)) for n in range(PHOTOS))
        dataset = write_dataset(sources, f"{bucket}/bench-loader", IngestConfig(shard_bytes=SHARD_BYTES, val_fraction=0))
        for _ in range(RUNS):
            for threads in (1, 2):
                with tempfile.TemporaryDirectory(prefix="infd-bench-") as folder:
                    for cache in ("cold", "warm"):
                        rates.setdefault((cache, threads), []).append(samples_per_s(dataset, threads, folder))
        steps_per_s, waits = waiting(dataset)
    print("| cache | 1 thread, samples/s | 2 threads, samples/s | ratio |\n|---|---|---|---|")
    for cache in ("cold", "warm"):
        one, two = (statistics.median(rates[cache, threads]) for threads in (1, 2))
        print(f"| {cache} | {one:.0f} | {two:.0f} | {two / one:.2f} × |")
    print(f"\nStage one at `tiny` from an empty cache: {steps_per_s:.1f} steps/s, {100 * waits:.1f}% of the time waiting "
          "for data.")


if __name__ == "__main__":
    main()
