"""Train the stage-one autoencoder on a dataset; the same command again resumes.

Example: python jobs/train_ae.py tiny --dataset s3://bucket/datasets/NAME --workers 2
"""

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from infd.config import AutoencoderTrainingConfig, RunConfig
from infd.errors import InfdError
from infd.presets import AUTOENCODER
from pipelines import logs


@dataclass(frozen=True, kw_only=True)
class TrainAutoencoder:
    """Train the stage-one autoencoder."""

    preset: tyro.conf.Suppress[str]
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    config: Annotated[AutoencoderTrainingConfig, tyro.conf.arg(name="")]
    dry_run: bool = False
    """Print the config, the parameters of each part and a memory estimate; needs no dataset, Ray or network."""


def main(argv: list[str] | None = None) -> int:
    made = {name: ((preset.__doc__ or "").splitlines()[0], TrainAutoencoder(preset=name, config=preset()))
            for name, preset in AUTOENCODER.items()}
    args = tyro.extras.overridable_config_cli(made, args=argv, description=__doc__)
    logs.to_stderr()
    try:
        if args.dry_run:
            from infd.config import flat
            from infd.training.plan import describe

            print("\n".join(f"{name} = {value}" for name, value in flat(args.config).items()))
            print(describe(args.config, workers=args.run.workers))
            return 0
        from pipelines.train import train_autoencoder

        print(train_autoencoder(args.preset, args.config, args.run))
    except InfdError as error:
        print(f"train_ae: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
