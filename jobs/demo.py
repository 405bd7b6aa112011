"""Real photographs through every part, on this machine: bucket, shards, training, renders, one HTML report.

Example: python jobs/demo.py --images ~/Pictures
"""

import logging
import os
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
    """Remove what the demo made: its report and data, and the local stack where nobody else keeps data in it."""


def quiet() -> None:
    """Ray tells of every file that it leaves out of a package; the demo shows its own lines."""
    import ray  # noqa: F401    its import sets the level of its logger

    for name in ("ray", "botocore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def main(argv: list[str] | None = None) -> int:
    args = tyro.cli(Demo, args=argv, description=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    from infra import local, submit

    try:
        begun = time.monotonic()
        stack = local.up()
        os.environ.update(stack.env)
        from pipelines.demo import clean, run_demo

        if args.clean:
            others = clean(FOLDER)
            local.down(purge=not others)
            kept = "stopped; its bucket holds other data, which stays" if others else "removed"
            print(f"demo: removed; the local stack: {kept}; downloads stay in the cache folder (~/.cache/infd)")
            return 0
        quiet()
        report = run_demo(images=args.images, folder=FOLDER, submit=lambda entry: submit.submit(entry)[1],
                          started_s=time.monotonic() - begun)
    except InfdError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
