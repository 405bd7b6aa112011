"""Make the photographs of the paper's 6K-Mix from FFHQ at 1024 px: python jobs/prepare_ffhq_6k_mix.py --images DIR --out DIR

Then ingest OUT/lr with --group lr and OUT/hr with --group hr, both with --val-fraction 0, into one dataset, and train the
preset ffhq_6k_mix. The same command again writes what is missing.
"""

import sys
from dataclasses import dataclass

import tyro

from infd.errors import InfdError
from pipelines import logs


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Make the photographs of 6K-Mix."""

    images: str
    """Folder or prefix with the 70,000 files of FFHQ at 1024 px, and nothing else."""
    out: str
    """Folder or prefix to write lr/ and hr/ into."""


def main(argv: list[str] | None = None) -> int:
    args = tyro.cli(Prepare, args=argv, description=__doc__)
    logs.to_stderr()
    try:
        from pipelines.ffhq_6k_mix import prepare

        prepare(args.images, args.out)
    except InfdError as error:
        print(f"prepare_ffhq_6k_mix: {error}", file=sys.stderr)
        return error.exit_code
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
