"""The GAN of stage one: hinge losses, and its weight against the reconstruction loss.

Source: Lim and Ye 2017 (hinge); Esser et al. 2021 (VQGAN), equation 7 (adaptive weight).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss of its logits: 1/2 (mean relu(1 - real) + mean relu(1 + fake))."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def hinge_g(fake: Tensor) -> Tensor:
    """The generator's loss: minus the mean logit."""
    return -fake.mean()


def adaptive_weight(rec_grad: Tensor, gan_grad: Tensor) -> Tensor:
    """|rec_grad| / (|gan_grad| + 1e-4), at most 1e4: a scalar without graph.

    Both are gradients at the weight of the renderer's last layer. Average each over all workers and micro-batches
    before this call: norms of averages, not averages of norms.
    """
    ratio = rec_grad.detach().float().norm() / (gan_grad.detach().float().norm() + 1e-4)
    return ratio.clamp(0, 1e4)


@torch.no_grad()
def last_layer_gradient(features: Tensor, grad_pred: Tensor, conv: nn.Conv2d) -> Tensor:
    """Gradient at `conv.weight` of a loss whose gradient at the output of `conv` is grad_pred (B, 3, h, w).

    features (B, D, h, w): the input of `conv`. No graph is walked, so two losses cost two small convolutions.
    Law: equals autograd through `conv`.
    """
    if conv.padding != (1, 1) or conv.stride != (1, 1) or conv.padding_mode != "zeros":
        raise ValueError(f"{conv}: the renderer's last layer is expected, of stride 1 with zero padding of 1")
    return conv2d_weight(features.detach().to(grad_pred.dtype), conv.weight.shape, grad_pred, padding=1)
