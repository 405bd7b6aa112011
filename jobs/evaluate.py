"""Evaluate two sets of images by a named protocol; the same command again goes on from the blocks that are done.

Example: python jobs/evaluate.py pfid_infd s3://bucket/datasets/NAME RUN/checkpoints/best --patch 256/1K 512/1K --images 50000
         python jobs/evaluate.py reconstruction s3://bucket/datasets/NAME RUN/checkpoints/best --sizes 256 512
"""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from infd.config import SampleConfig
from infd.errors import InfdError
from pipelines import logs
from pipelines.evaluation_wishes import ProtocolName, Wish


@dataclass(frozen=True, kw_only=True)
class Evaluate(Wish):
    """Evaluate. stdout carries the address of each result.json alone; the table goes to stderr."""

    protocol: tyro.conf.Positional[ProtocolName]
    """Which figures: docs/evaluation.md says which protocol is for which claim."""
    sources: tyro.conf.Positional[tuple[str, ...]]
    """The real set or the truth first, then what is judged: datasets, folders, bucket prefixes, checkpoints.
    A checkpoint of stage one reconstructs the first; one of stage two draws --images seeds."""
    sample: Annotated[SampleConfig, tyro.conf.arg(name="")] = SampleConfig()
    out: str = ""
    """Where results go, a folder each; empty: RUN/evaluations of the checkpoint's run, else the folder evaluations."""
    cache: str = ""
    """Folder or prefix where statistics of the first source are kept by content; empty: none."""
    workers: int = 0
    """Ray actors; 0: one a GPU, or one a core."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: GPUs where there are some."""
    ray: bool = True
    """--no-ray evaluates in this process."""
    pictures: bool = True
    """Crops, contact sheets, worst and best for jobs/report.py."""


def main(argv: list[str] | None = None) -> int:
    logs.to_stderr()
    try:
        args = tyro.cli(Evaluate, args=argv, description=__doc__)
        from pipelines.evaluate import evaluate_wish, table

        made = evaluate_wish(args, out=args.out, cache=args.cache, workers=args.workers, device=args.device, ray=args.ray,
                             pictures=args.pictures)
        print(table([result for _, result in made]), file=sys.stderr)
        print("\n".join(address for address, _ in made))
    except InfdError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("evaluate: stopped; the same command again goes on from the blocks that are done", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
