"""The GAN of stage one: its losses, and its weight against the reconstruction loss.

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
    """Gradient at `conv.weight` of a loss whose gradient at the output of `conv` is grad_pred (B, 3, h, w); or of n losses,
    (3 n, D, 3, 3), from their gradients side by side, (B, 3 n, h, w).

    features: the input of `conv`, (B, D, h, w), or with a border of one pixel in the place of its zero padding. No graph
    is walked, so two losses cost one small convolution. Law: equals autograd through `conv`.
    """
    if conv.padding != (1, 1) or conv.stride != (1, 1) or conv.padding_mode != "zeros":
        raise ValueError(f"{conv}: the renderer's last layer is expected, of stride 1 with zero padding of 1")
    padding = (2 + grad_pred.shape[-1] - features.shape[-1]) // 2
    shape = (grad_pred.shape[1], *conv.weight.shape[1:])
    return conv2d_weight(features.detach().to(grad_pred.dtype), shape, grad_pred, padding=padding)


def relativistic_d(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss of paired logits: mean softplus(fake - real).

    Source: Huang et al. 2024 (R3GAN), equation 2; Jolicoeur-Martineau 2019. Law: a constant added to both changes nothing.
    """
    return F.softplus(fake - real).mean()


def relativistic_g(real: Tensor, fake: Tensor) -> Tensor:
    """The generator's loss of the same pairs: mean softplus(real - fake)."""
    return F.softplus(real - fake).mean()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Half the squared norm of the gradient of an image's mean logit at the image, mean over the batch.

    logits (B, 1, h, w) of images (B, 3, P, P), which require a gradient. Times gamma: R1 at real images, R2 at fake ones.
    Source: Mescheder et al. 2018, equation 9; Huang et al. 2024, equation 3. Keeps the graph, for its own backward.
    """
    (gradient,) = torch.autograd.grad(logits.float().mean(dim=(1, 2, 3)).sum(), images, create_graph=True)
    return 0.5 * gradient.float().square().sum(dim=(1, 2, 3)).mean()
