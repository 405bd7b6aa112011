"""Feature networks of random weights, for tests."""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infd.compat import torchvision_ready
from infd.evaluation.features import FeatureNetwork

DIM = 12


def random_network(dim: int = DIM, *, seed: int = 0) -> FeatureNetwork:
    """Random filters that look at texture, not at brightness or at a few strong edges; images of any side from 8 px on."""
    torch.manual_seed(seed)
    filters = torch.randn(dim, 3, 3, 3)
    filters -= filters.mean(dim=(2, 3), keepdim=True)

    def features(images: Tensor) -> Tensor:
        return (F.conv2d(images.float() / 255, filters).abs() + 0.01).log().mean(dim=(2, 3)) + 2

    return FeatureNetwork(name="random", sha256=hashlib.sha256(f"{dim} {seed}".encode()).hexdigest(), dim=dim,
                          input="as it is; x / 255", trunk=features)


def inception_state(seed: int = 0) -> dict[str, Tensor]:
    """Random weights in the layout of FID's Inception, whose names torchvision's model shares."""
    torchvision_ready()
    from torchvision.models import inception_v3

    torch.manual_seed(seed)
    model = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    for parameter in model.parameters():
        if parameter.dim() == 4:
            nn.init.kaiming_normal_(parameter)
    return {name: value.detach() for name, value in model.state_dict().items()}
