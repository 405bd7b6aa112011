"""Photos in a bucket or folder become patch shards and a snapshot; the same command again takes what is new.

Example: python jobs/ingest.py --source s3://bucket/photos --dataset s3://bucket/datasets/NAME

Exit codes: 0 a new snapshot, or nothing new; 1 an error; 2 bad arguments, or settings that do not fit the dataset;
3 another ingest or refresh of this dataset is running; 5 more photos are gone than --most-removed allows.
"""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from infd.config import IngestConfig
from infd.errors import ConfigError, InfdError
from pipelines import logs


@dataclass(frozen=True, kw_only=True)
class Ingest:
    """Bring photos into a dataset. stdout carries the snapshot's address alone."""

    source: str
    """Where the photos are: s3://bucket/prefix or a folder; all files below it are looked at."""
    dataset: str
    """Where the dataset is or will be: s3://bucket/prefix or a folder, outside the source."""
    group: str = ""
    """Label of these photos (as lr, hr), stored in their rows and in the manifest."""
    remove_missing: bool = False
    """Photos of this source whose file is gone leave the dataset; without it they stay. Older snapshots keep them."""
    most_removed: float = 0.5
    """With remove_missing: the largest share of this source's photos that may go at once; more is an error (exit code 5)."""
    config: Annotated[IngestConfig, tyro.conf.arg(name="")] = IngestConfig()

    def __post_init__(self) -> None:
        if not 0 <= self.most_removed <= 1:
            raise ConfigError(f"most_removed={self.most_removed}: must lie between 0 and 1")


def main(argv: list[str] | None = None) -> int:
    logs.to_stderr()
    try:
        args = tyro.cli(Ingest, args=argv, description=__doc__)
        from pipelines.ingest import alone, ingest
        from pipelines.ingest_plan import places

        source, dataset = places(args.source, args.dataset)  # before the lease is written there
        with alone(dataset, what="ingest into"):
            done = ingest(source, dataset, config=args.config, group=args.group, remove_missing=args.remove_missing,
                          most_removed=args.most_removed)
    except InfdError as error:
        print(f"ingest: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("ingest: stopped; the same command again goes on from the units that are done", file=sys.stderr)
        return 130
    print(done.summary, file=sys.stderr)
    print(done.snapshot_uri)
    return 0


if __name__ == "__main__":
    sys.exit(main())
