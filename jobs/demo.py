"""Real photographs through every part, on this machine: bucket, shards, training, renders, one HTML report.

Example: python jobs/demo.py --images ~/Pictures
"""

import logging
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from infd.errors import InfdError

FOLDER = Path(__file__).parents[1] / "demo"


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Real photographs through every part, on this machine."""

    images: str = ""
    """Folder of your own photographs; empty: those with open licences that packages carry."""
    clean: bool = False
    """Remove what the demo made: the report, the local stack and its data."""


def main(argv: list[str] | None = None) -> int:
    args = tyro.cli(Demo, args=argv, description=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    from infra import local, submit

    try:
        if args.clean:
            local.down(purge=True)
            shutil.rmtree(FOLDER, ignore_errors=True)
            return 0
        begun = time.monotonic()
        stack = local.up()
        os.environ.update(stack.env)
        from pipelines.demo import run_demo

        report = run_demo(images=args.images, folder=FOLDER, submit=lambda entry: submit.submit(entry)[1],
                          started_s=time.monotonic() - begun)
    except InfdError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
