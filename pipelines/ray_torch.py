"""Ray Train's set-up of torch, with one thing more: workers take SIGTERM as a wish to save and leave.

The training function runs beside a worker's main thread, and signals can be had in the main thread alone; the set-up runs
there.
"""

from dataclasses import dataclass

from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

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
