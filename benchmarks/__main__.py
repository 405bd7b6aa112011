"""Runs every benchmark and prints its table: python -m benchmarks [NAME…]"""

import importlib
import platform
import sys
from importlib.metadata import version

import torch

NAMES = ("patch_read", "train_step")


def main(names: list[str]) -> None:
    processor = f"{platform.machine()}, {torch.get_num_threads()} threads"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor
    print(f"{device}; Python {platform.python_version()}, " +
          ", ".join(f"{name} {version(name)}" for name in ("torch", "pillow-simd", "pyarrow", "numpy")))
    for name in names or NAMES:
        print(f"\n## {name}\n")
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
