"""Ray Train's trainer for torch, with one thing more and one less.

More: workers take SIGTERM as a wish to save and leave. The training function runs beside a worker's main thread, and signals
can be had in the main thread alone; the set-up runs there.

Less: no watcher of the placement group. Ray's is a process a run that asks the dashboard every second whether the trainer
lives; on a cluster without one it dies with a traceback, and what it should have released stays taken. The group goes with
the job; a sweep, which is one job for many trainers, releases it itself (ray_groups.py).
"""

from dataclasses import dataclass
from typing import Any

from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from infd.training import interruption


class ListeningBackend(_TorchBackend):
    """Torch's process group, then `interruption.listen` on every worker."""

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: TorchConfig) -> None:
        super().on_start(worker_group, backend_config)
        worker_group.execute(interruption.listen)


@dataclass
class ListeningTorch(TorchConfig):
    """TorchConfig for workers that save on SIGTERM."""

    @property
    def backend_cls(self) -> type[ListeningBackend]:
        return ListeningBackend


class Trainer(TorchTrainer):
    """A TorchTrainer without a watcher of its placement group."""

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if not isinstance(one, PlacementGroupCleanerCallback)]
