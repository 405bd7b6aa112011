"""Ingest: with Ray against the bare work in one process, what a photo costs as it grows, and against img2dataset.

Bare: read a file, decode, make and encode the pyramid; nothing is written. With Ray: `jobs/ingest.py`'s function on all
cores, its snapshot committed, from a folder into a folder, and from a bucket into a bucket of a local S3 server, which
works on the same cores. img2dataset (an environment of its
own): the same files from a local HTTP server to WebDataset tars, resize_mode "no", the nearest in meaning, which
decodes and encodes each photo once at its own sides; its start does not count. Ways alternate; figures are medians.
"""

import contextlib
import functools
import http.server
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks import peers, photographs, stack
from infd import storage
from infd.config import IngestConfig
from infd.data import shards

PHOTOS, WIDTH, HEIGHT = 480, 2400, 1600
"""So many that the seconds in which Ray starts workers do not count."""
PICTURES = 40
"""As many of them differ; the others are the same pictures in files of other bytes."""
CONFIG = IngestConfig()
RUNS = 3
SIZES = ((640, 480), (1280, 960), (2000, 1500), (4000, 3000), (8000, 6000))
REPEATS = 3
IMG2DATASET = ("img2dataset==1.47.0",)


# ---------------------------------------------------------------- the ways


def bare(paths: list[Path]) -> None:
    """What no ingest can do without."""
    for path in paths:
        shards.photo_row(path.name, "", path.read_bytes(), config=CONFIG, group="")


def bare_at_once(paths: list[Path], pool: ProcessPoolExecutor, cores: int) -> None:
    """The same in as many processes as there are cores."""
    list(pool.map(bare, [paths[start::cores] for start in range(cores)]))


def with_ray(source: str, dataset: str) -> None:
    from pipelines.ingest import ingest

    ingest(source, dataset, config=CONFIG)


def img2dataset(python: Path, urls: Path, cores: int) -> float:
    """Seconds by its own clock, from the start of its first shard to the end of its last: without its start, which
    takes several seconds of imports. Raises RuntimeError where it does not keep every photo."""
    with tempfile.TemporaryDirectory(prefix="infd-bench-") as folder:
        command = [str(python.parent / "img2dataset"), "--url_list", str(urls), "--output_folder", f"{folder}/out",
                   "--output_format", "webdataset", "--resize_mode", "no", "--encode_quality", "95",
                   "--processes_count", str(cores), "--thread_count", "4",
                   "--number_sample_per_shard", str(PHOTOS // cores), "--enable_wandb", "False"]
        env = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
        about = [json.loads(path.read_text()) for path in Path(folder, "out").glob("*_stats.json")]
        kept = sum(shard["successes"] for shard in about)
        if done.returncode or kept != PHOTOS:
            last = (done.stderr.strip().splitlines() or [""])[-1]
            raise RuntimeError(f"img2dataset kept {kept} of {PHOTOS} photos; {last}")
        return max(shard["end_time"] for shard in about) - min(shard["start_time"] for shard in about)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The files of a folder over HTTP on this machine."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """No line a request."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def seconds(way: Callable[[], object]) -> float:
    """What `way` took; where it says a number of seconds itself, that."""
    begun = time.perf_counter()
    own = way()
    return own if isinstance(own, float) else time.perf_counter() - begun


# ---------------------------------------------------------------- the tables


def main() -> None:
    print(f"Photographs: {photographs.origin()}, JPEG {photographs.QUALITY}.\n")
    growth()
    print()
    throughput()


def growth() -> None:
    """What one photo costs, in one process."""
    print("| photo, px | Mpx | bare, ms | ms/Mpx | bytes stored ÷ source |\n|---|---|---|---|---|")
    for width, height in SIZES:
        data = photographs.jpeg(photographs.photograph(width, height))
        row = shards.photo_row("", "", data, config=CONFIG, group="")
        stored = sum(map(len, row["tiles"])) + len(row["lowres"])
        work = functools.partial(shards.photo_row, "", "", data, config=CONFIG, group="")
        ms = 1000 * statistics.median(seconds(work) for _ in range(REPEATS))
        mpx = width * height / 1e6
        print(f"| {width} × {height} | {mpx:.1f} | {ms:.0f} | {ms / mpx:.0f} | {stored / len(data):.2f} |", flush=True)


def throughput() -> None:
    """Photos a second of all ways, in turn."""
    from pipelines import cluster

    cores = os.cpu_count() or 1
    python, problem = peers.environment("img2dataset", IMG2DATASET)
    taken: dict[str, list[float]] = {}
    with contextlib.ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="infd-bench-")))
        photos = folder / "photos"
        photos.mkdir()
        paths = [photos / f"{number:04d}.jpg" for number in range(PHOTOS)]
        pictures = [photographs.jpeg(photographs.photograph(WIDTH, HEIGHT, number)) for number in range(PICTURES)]
        for number, path in enumerate(paths):
            path.write_bytes(photographs.renamed(pictures[number % PICTURES], number))
        url = held.enter_context(served(photos))
        urls = folder.joinpath("urls.txt")
        urls.write_text("\n".join(f"{url}/{path.name}" for path in paths))
        bucket = held.enter_context(stack.running())
        for path in paths:
            storage.put_file(f"{bucket}/photos/{path.name}", str(path))
        pool = held.enter_context(ProcessPoolExecutor(cores, get_context("spawn")))
        list(pool.map(bare, [paths[:1]] * cores))
        held.enter_context(cluster.connect())
        ways: dict[str, Callable[[int], object]] = {
            "bare": lambda _: bare(paths),
            "bare at once": lambda _: bare_at_once(paths, pool, cores),
            "Ray": lambda run: with_ray(str(photos), str(folder / f"dataset-{run}")),
            "Ray S3": lambda run: with_ray(f"{bucket}/photos", f"{bucket}/bench-ingest-{run}")}
        with_ray(f"{bucket}/photos", f"{bucket}/bench-ingest-first")  # workers start, and are kept
        if python is not None:
            try:
                img2dataset(python, urls, cores)
                ways["img2dataset"] = lambda _: img2dataset(python, urls, cores)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                problem = str(error)
        for run in range(RUNS):
            for name, way in ways.items():
                taken.setdefault(name, []).append(seconds(lambda way=way, run=run: way(run)))
    report(taken, cores, problem)


def report(taken: dict[str, list[float]], cores: int, problem: str) -> None:
    rate = {name: PHOTOS / statistics.median(times) for name, times in taken.items()}
    about = peers.versions("img2dataset", ("img2dataset", "opencv-python-headless"))
    lines = [("bare, one process", "bare", 1), (f"bare, {cores} processes at once", "bare at once", cores),
             (f"ingest with Ray, {cores} cores, folder to folder", "Ray", cores),
             (f"ingest with Ray, {cores} cores, bucket to bucket", "Ray S3", cores),
             (f"{about}, {cores} processes, HTTP to folder", "img2dataset", cores)]
    print(f"{PHOTOS} photographs of {WIDTH} × {HEIGHT} px, medians of {RUNS} runs.\n")
    print("| way | photos/s | photos/s a core | ÷ bare, one process | ÷ img2dataset |\n|---|---|---|---|---|")
    for name, key, used in lines:
        if key in rate:
            own = rate[key] / used
            over = f"{rate[key] / rate['img2dataset']:.2f}" if "img2dataset" in rate else "–"
            print(f"| {name} | {rate[key]:.2f} | {own:.2f} | {100 * own / rate['bare']:.0f}% | {over} |")
    if problem:
        print(f"\nimg2dataset was left out: {problem} (Python {sys.version_info.major}.{sys.version_info.minor})")


if __name__ == "__main__":
    main()
