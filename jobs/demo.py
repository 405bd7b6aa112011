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
    steps: int = 0
    """Training steps; 0: those of the preset. More than before goes on from there."""
    clean: bool = False
    """Remove what the demo made: its report and data, and the local stack where nobody else keeps data in it."""


def quiet() -> None:
    """Ray tells of every file that it leaves out of a package; the demo shows its own lines."""
    import ray  # noqa: F401    its import sets the level of its logger

    for name in ("ray", "botocore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def clean(*, keep_up: bool) -> str:
    """Remove what the demo made, and the local stack if nobody else keeps anything in it; says what was done."""
    from infra import local
    from pipelines import demo_clean

    demo_clean.clean(FOLDER)
    others = demo_clean.others()
    if not (others and keep_up):
        local.down(purge=not others)
    state = "runs on (make down stops it)" if keep_up else "stopped"
    kept = f"{state}; it holds other data, which stays: {', '.join(others)}" if others else "removed"
    return f"demo: removed; the local stack: {kept}; downloads stay in the cache folder (~/.cache/infd)"


def main(argv: list[str] | None = None) -> int:
    args = tyro.cli(Demo, args=argv, description=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    from infra import local, submit

    try:
        begun = time.monotonic()
        was_up = local.status().services["s3"].usable
        stack = local.up()
        os.environ.update(stack.env)
        if args.clean:
            print(clean(keep_up=was_up))
            return 0
        from pipelines.demo import run_demo

        quiet()
        report = run_demo(images=args.images, folder=FOLDER, submit=submit.submit_or_follow, steps=args.steps,
                          started_s=time.monotonic() - begun)
    except InfdError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ndemo: stopped; a training job that it submitted runs on, and make demo again follows it; make down "
              "ends the local stack with all its jobs", file=sys.stderr)
        return 130
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
