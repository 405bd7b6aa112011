"""Stage one's evaluation on two processes, which import it by this name: some packages install a `tests` of their own."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from infd.config import AutoencoderTrainingConfig
from infd.data.snapshot import open_dataset
from infd.errors import InfdError
from infd.models.autoencoder import Autoencoder
from infd.training import evaluation
from infd.training.loop import Metrics
from infd.training.world import World


def evaluated(world: World, config: AutoencoderTrainingConfig, dataset: str) -> Metrics:
    """The figures of an untrained autoencoder."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = Autoencoder(config.model)
    network.patch_px = config.crop.patch_px
    judge = evaluation.reconstructions(config, open_dataset(dataset), shown=lambda: network, world=world)
    assert judge is not None
    return judge()


def failing(world: World) -> str:
    """What a rank is told when the last one fails."""
    def share() -> int:
        if world.rank == world.size - 1:
            raise RuntimeError("a photo is gone")
        return 1

    with pytest.raises(InfdError) as caught:
        evaluation.on_all(world, share)
    return str(caught.value)


def rank(index: int, folder: str, config: AutoencoderTrainingConfig, dataset: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=2)
    world = World.current(torch.device("cpu"))
    torch.save((evaluated(world, config, dataset), failing(world)), f"{folder}/{index}.pt")
    dist.destroy_process_group()


def two_ranks(folder: Path, config: AutoencoderTrainingConfig, dataset: str) -> list[tuple[Metrics, str]]:
    mp.spawn(rank, args=(str(folder), config, dataset), nprocs=2, join=True)
    return [torch.load(folder / f"{index}.pt", weights_only=True) for index in range(2)]
