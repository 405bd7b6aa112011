"""One self-contained HTML page about a dataset: sizes, sample photos, rejected files, snapshots, where the bytes are.

Example: python jobs/describe.py --dataset s3://bucket/datasets/NAME --out page.html
"""

import sys
from dataclasses import dataclass

import tyro

from infd.errors import InfdError
from pipelines import logs


@dataclass(frozen=True, kw_only=True)
class Describe:
    """stdout carries the path of the page."""

    dataset: str
    """The dataset's address; its newest snapshot is shown, or the one that DATASET@N names."""
    out: str = "dataset.html"
    """The local file to write."""


def main(argv: list[str] | None = None) -> int:
    args = tyro.cli(Describe, args=argv, description=__doc__)
    logs.to_stderr()
    try:
        from pipelines.describe import describe

        print(describe(args.dataset, args.out))
    except InfdError as error:
        print(f"describe: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
