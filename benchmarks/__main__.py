"""Runs every benchmark and prints its table: python -m benchmarks [NAME…]"""

import importlib
import os
import platform
import signal
import sys
from importlib.metadata import version
from pathlib import Path

NAMES = ("patch_read", "loader", "ingest", "train_step", "render", "evaluate")
PACKAGES = ("torch", "pillow-simd", "imagecodecs", "pyarrow", "numpy", "ray")


def machine() -> str:
    """Processor, cores, accelerator."""
    import torch

    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.machine()
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no accelerator"
    return f"{processor}, {os.cpu_count()} cores{device}; {torch.get_num_threads()} torch threads"


def main(names: list[str]) -> None:
    if unknown := set(names) - set(NAMES):
        sys.exit(f"benchmarks: {', '.join(sorted(unknown))}: expected some of {', '.join(NAMES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # `timeout` too leaves no folder and no server behind
    print(f"{machine()}\n\nPython {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in PACKAGES))
    for name in names or NAMES:
        threads = os.environ.get("OMP_NUM_THREADS")
        print(f"\n## {name}\n\n`{f'OMP_NUM_THREADS={threads} ' if threads else ''}python -m benchmarks {name}`\n", flush=True)
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
