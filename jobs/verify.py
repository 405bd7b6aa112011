"""Check a snapshot: its manifest, its shards, and the pixels of a sample of its photos (or of all).

Example: python jobs/verify.py --dataset s3://bucket/datasets/NAME@7 --sample 200
"""

import sys
from dataclasses import dataclass

import tyro

from infd.errors import ConfigError, InfdError
from pipelines import logs


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Exit 0: nothing is wrong. Exit 1: stdout lists all that is. Exit 2: bad arguments."""

    dataset: str
    """The dataset's address; its newest snapshot is checked, or the one that DATASET@N names."""
    sample: int = 64
    """Photos to decode whole, drawn from few shards; these shards are read and hashed."""
    full: bool = False
    """Read and hash all shards, and decode all photos."""
    seed: int = 0
    """Another number draws other photos."""

    def __post_init__(self) -> None:
        if self.sample < 0 or self.seed < 0:
            raise ConfigError(f"sample={self.sample}, seed={self.seed}: neither may be below 0")


def main(argv: list[str] | None = None) -> int:
    try:
        args = tyro.cli(Verify, args=argv, description=__doc__)
        logs.to_stderr()
        from infd.data import verify

        made = verify.verify_full(args.dataset) if args.full else verify.verify(
            args.dataset, sample=args.sample, seed=args.seed)
    except InfdError as error:
        print(f"verify: {error}", file=sys.stderr)
        return error.exit_code
    for finding in made.findings:
        print(finding.text)
    print(made.summary(), file=sys.stderr)
    if made.findings:
        print("restore the shards that are named from a copy, write them anew with jobs/refresh_dataset.py --repair damaged, "
              "or read an older snapshot that lacks them, as DATASET@N", file=sys.stderr)
    return int(bool(made.findings))


if __name__ == "__main__":
    sys.exit(main())
