"""Train the stage-one autoencoder on a dataset; the same command again resumes.

Example: python jobs/train_ae.py tiny --dataset s3://bucket/datasets/NAME --workers 2

A preset of your own: python jobs/train_ae.py mine.json --dataset …, where mine.json is
{"base": "ffhq_1024", "crop.r_max": 4096}.
"""

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from infd.config import AutoencoderTrainingConfig, RunConfig
from infd.errors import InfdError
from infd.presets import AUTOENCODER, from_file, require_known
from pipelines import logs


@dataclass(frozen=True, kw_only=True)
class TrainAutoencoder:
    """Train the stage-one autoencoder."""

    preset: tyro.conf.Suppress[str]
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    config: Annotated[AutoencoderTrainingConfig, tyro.conf.arg(name="")]
    dry_run: bool = False
    """Print the config, parameters, memory and work; with --dataset also epochs and bytes to read. Trains nothing."""


def main(argv: list[str] | None = None) -> int:
    made = {name: ((preset.__doc__ or "").splitlines()[0], TrainAutoencoder(preset=name, config=preset()))
            for name, preset in AUTOENCODER.items()}
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and argv[0].endswith(".json"):
            name, config = from_file(argv[0], AUTOENCODER)
            made[argv[0]] = ("A preset of your own.", TrainAutoencoder(preset=name, config=config))
        require_known(argv, made)
        args = tyro.extras.overridable_config_cli(made, args=argv, description=__doc__)
        logs.to_stderr()
        if args.dry_run:
            print(dry_run(args))
            return 0
        from pipelines.train import train_autoencoder

        print(train_autoencoder(args.preset, args.config, args.run))
    except InfdError as error:
        print(f"train_ae: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("train_ae: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def dry_run(args: TrainAutoencoder) -> str:
    """What the run would be, as text."""
    from infd.config_form import flat
    from infd.data.snapshot import open_dataset
    from infd.training.plan import describe
    from infd.training.run import check_batch

    check_batch(args.config.loop, args.run.workers)
    manifest = open_dataset(args.run.dataset).manifest if args.run.dataset else None
    plan = describe(args.config, workers=args.run.workers, manifest=manifest)
    return "\n".join([*(f"{name} = {value}" for name, value in flat(args.config).items()), plan])


if __name__ == "__main__":
    sys.exit(main())
