"""Bring a dataset up to date with the source that it was made from: ingest what is new, verify, then let readers see it.

Example: python jobs/refresh_dataset.py --dataset s3://bucket/datasets/NAME --remove-missing

Exit codes: 0 a new snapshot, or nothing new; 1 an error; 2 bad arguments; 3 another refresh or ingest is running;
4 verification failed, and the dataset was left as it was; 5 more photos are gone than --most-removed allows.
Of several sources each is refreshed, though another failed; the code is that of the first that failed.
"""

import sys
from dataclasses import dataclass
from typing import Literal

import tyro

from infd.errors import ConfigError, InfdError
from pipelines import logs


@dataclass(frozen=True, kw_only=True)
class Refresh:
    """stdout carries the newest snapshot's address; the report goes to stderr and to DATASET/runs/RUN/refresh.md."""

    dataset: str
    """The dataset's address; source, group and config are those of its newest snapshot."""
    remove_missing: bool = False
    """Photos whose source file is gone leave the dataset; without it they stay. Older snapshots keep them."""
    most_removed: float = 0.5
    """With remove_missing: the largest share of a source's photos that may go at once; more is an error (exit code 5)."""
    repair: Literal["no", "missing", "damaged"] = "no"
    """Read the photos of shards again that are missing (not in the store, or of another size), or also of those that are
    damaged (which reads all shards); what they had of files that are gone leaves the dataset."""
    sample: int = 64
    """New photos to decode whole before they are let in; every byte of the new shards is hashed in any case."""

    def __post_init__(self) -> None:
        if self.sample < 0:
            raise ConfigError(f"sample={self.sample}: must not be below 0")
        if not 0 <= self.most_removed <= 1:
            raise ConfigError(f"most_removed={self.most_removed}: must lie between 0 and 1")


def main(argv: list[str] | None = None) -> int:
    try:
        args = tyro.cli(Refresh, args=argv, description=__doc__)
        logs.to_stderr()
        from pipelines.refresh import refresh

        done = refresh(args.dataset, remove_missing=args.remove_missing, most_removed=args.most_removed,
                       repair=args.repair, sample=args.sample)
    except InfdError as error:
        print(f"refresh: {error}", file=sys.stderr)
        return error.exit_code
    print(done.report, file=sys.stderr)
    if done.report_uri:
        print(f"this report: {done.report_uri}", file=sys.stderr)
    print(done.snapshot_uri)
    return done.exit_code


if __name__ == "__main__":
    sys.exit(main())
