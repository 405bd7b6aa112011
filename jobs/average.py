"""An average of a stage-two run's weights over a length chosen after the run, as a checkpoint of its own.

Example: python jobs/average.py RUN --sigma 0.08 --out RUN/averaged-0.08
"""

import sys
from dataclasses import dataclass

import tyro

from infd.errors import InfdError
from pipelines import logs


@dataclass(frozen=True, kw_only=True)
class Average:
    """Average the weights of a run that trained with --optimizer.posthoc. stdout carries the new checkpoint's address."""

    run: tyro.conf.Positional[str]
    """The run's folder."""
    sigma: float
    """Length of the average, as a share of the run: 0.05 to 0.15 are usual."""
    out: str
    """Folder of the new checkpoint: a path or an s3:// address."""
    step: int | None = None
    """Step of the checkpoint that it is made at; none: the newest."""


def main(argv: list[str] | None = None) -> int:
    logs.to_stderr()
    args = tyro.cli(Average, args=argv, description=__doc__)
    try:
        from infd import storage
        from infd.training.posthoc import write_averaged

        print(write_averaged(storage.absolute(args.run), storage.absolute(args.out), sigma=args.sigma, step=args.step))
    except InfdError as error:
        print(f"average: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
