"""The processes that train together: one alone, torchrun's, or Ray Train's."""

import contextlib
import os
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from infd.data.order import slots_of

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among `size`; `device` is where its tensors live."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @classmethod
    def current(cls, device: torch.device) -> "World":
        """The world of the process group that Ray Train or `join` has set up; alone without one."""
        if not dist.is_initialized():
            return cls(device=device)
        return cls(rank=dist.get_rank(), size=dist.get_world_size(), device=device)

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over all ranks, the same on each; `tensor` itself where there is one rank."""
        if self.size == 1:
            return tensor
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor / self.size

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on some rank; the same answer on each, which all of them must ask for."""
        return flag if self.size == 1 else bool(self.mean(torch.tensor(float(flag), device=self.device)) > 0)

    def gather(self, value: T) -> list[T]:
        """What each rank has, by rank; the same list on all of them. Values are pickled: for few and small ones."""
        if self.size == 1:
            return [value]
        found: list[T] = [value] * self.size
        dist.all_gather_object(found, value)
        return found

    def leave(self) -> None:
        """Wait for all ranks, then end the process group that `join` made."""
        if self.size > 1:
            dist.barrier()
            dist.destroy_process_group()

    def slots(self, batch: int) -> range:
        """Slots of the global batch that this rank owns. Raises ConfigError unless each rank has as many."""
        return slots_of(rank=self.rank, world=self.size, batch=batch)

    def distribute(self, module: nn.Module) -> nn.Module:
        """`module` with gradients averaged over the ranks in its backward; itself where there is one rank."""
        if self.size == 1:
            return module
        if self.device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
            return DistributedDataParallel(module, device_ids=[self.device])
        return DistributedDataParallel(module)

    def unshared(self, module: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Within it, backward leaves gradients of this rank alone."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else contextlib.nullcontext()


def join(device: str) -> World:
    """Join torchrun's process group where its variables are set; else this process trains alone."""
    cuda = device == "gpu" or (device == "auto" and torch.cuda.is_available())
    local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(local)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    return World.current(local)


def bare(module: nn.Module) -> nn.Module:
    """The module inside a distributed wrapper."""
    return module.module if isinstance(module, DistributedDataParallel) else module
