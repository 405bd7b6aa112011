"""The whole stage-one model: sizes, parity with the published code, borders, noise."""

import pytest
import torch
from refs import golden
from refs.published_step import PatchBatch, PublishedTrainer
from torch import nn

from infd.config import AutoencoderConfig
from infd.losses.adversarial import last_layer_gradient
from infd.models import fields
from infd.models.autoencoder import (
    Autoencoder,
    ReplicateConv2d,
    ReplicateDownsample,
    make_decoder,
    make_encoder,
    with_border,
)

SMALL = {"widths": (8, 16), "blocks": 1, "norm_groups": 4, "renderer_dim": 8}


def parameters(*networks: nn.Module) -> int:
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def meta(config: AutoencoderConfig) -> Autoencoder:
    with torch.device("meta"):
        return Autoencoder(config)


def small(**changes: object) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(**(SMALL | changes)))


def places(batch: int = 2, r: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.full((batch,), r), torch.arange(batch), torch.arange(batch) + 1


# ---------------------------------------------------------------- sizes


def test_law_paper_size_has_the_published_parameters():
    network = meta(AutoencoderConfig())
    assert parameters(network.encoder, network.quant_conv) == 22_337_423
    assert parameters(network.decoder, network.post_quant_conv) == 32_957_068
    assert parameters(network.renderer) == 2_674_179
    assert parameters(network.quantizer) == 24_576
    assert parameters(network) == 22_337_423 + 32_957_068 + 2_674_179 + 24_576


def test_law_kl_f8_has_the_published_parameters():
    network = meta(AutoencoderConfig(widths=(128, 256, 512, 512), z_dim=4, quantizer="kl"))
    assert parameters(network.encoder, network.quant_conv) == 34_163_664
    assert parameters(network.decoder, network.post_quant_conv) == 49_486_484
    f4 = meta(AutoencoderConfig(quantizer="kl"))
    assert parameters(f4.encoder, f4.quant_conv) == 22_351_280


def test_law_every_norm_has_32_groups_and_eps_1e_6():
    network = meta(AutoencoderConfig())
    norms = {name: module for name, module in network.named_modules() if isinstance(module, nn.GroupNorm)}
    assert len(norms) == (8 * 2 + 2) + (11 * 2 + 1) + 5  # E: blocks, attention, last; D: no last; R
    assert {(norm.num_groups, norm.eps) for norm in norms.values()} == {(32, 1e-6)}


def test_law_attention_is_one_head_at_the_coarsest_level_or_none():
    with torch.device("meta"):
        networks = make_encoder(AutoencoderConfig()), make_decoder(AutoencoderConfig())
        plain = AutoencoderConfig(mid_attention=False)
        without = make_encoder(plain), make_decoder(plain)
    for network in networks:
        attention = [module for module in network.modules() if type(module).__name__ == "Attention"]
        assert [(module.heads, module.to_q.out_features) for module in attention] == [(1, 512)]
    assert not any("attentions" in name for network in without for name in network.state_dict())


# ---------------------------------------------------------------- parity


def test_golden_encoder_decoder_and_batch_render():
    stage_one, network = golden.tensors("stage_one"), golden.networks().autoencoder.eval()
    with torch.no_grad(), golden.published_ties():
        z = network.encode(stage_one["batch.inp"])
        phi = network.decode(network.quantize(z).z_q)
        output = network(stage_one["batch.inp"], *golden.crops(), 32)
        found = {
            "encoder.z": z,
            "decoder.z_dec": network.decode(stage_one["decoder.z"]),
            "decode_z.z_dec_corner": phi[:, :, :3, -3:],
            "decode_z.z_dec_mean_std": torch.stack([phi.mean(), phi.std()]),
            "render.batch_patch": output.pred,
        }
    for name, value in found.items():
        assert golden.relative_error(value, stage_one[name]) < 1e-5, name
    assert torch.equal(output.codes.flatten(), stage_one["quantizer.indices"])
    torch.testing.assert_close(output.z, z, rtol=0, atol=0)
    torch.testing.assert_close(network.renderer.last_layer(output.last_features), output.pred, rtol=0, atol=0)


@pytest.fixture
def batch() -> PatchBatch:
    stage_one = golden.tensors("stage_one")
    return PatchBatch(stage_one["batch.inp"], stage_one["batch.gt"], *golden.crops())


def agree(found: dict[str, torch.Tensor], prefix: str, tolerance: float) -> int:
    """Compare with all golden tensors of that prefix that `found` has; returns how many."""
    wanted = {name.removeprefix(prefix): value for name, value in golden.tensors("stage_one").items()
              if name.startswith(prefix)}
    for name in wanted.keys() & found.keys():
        value = found[name].detach().reshape(wanted[name].shape)
        assert golden.relative_error(value, wanted[name]) < tolerance, f"{prefix}{name}"
    return len(wanted.keys() & found.keys())


def test_golden_losses_in_eval_mode_and_before_the_gan_starts(batch):
    networks = golden.networks()
    with golden.published_ties():
        loss = PublishedTrainer(*networks, gan=0).generator_loss(batch)["loss"]
        assert golden.relative_error(loss.detach(), golden.tensors("stage_one")["nogan.loss"]) < 1e-5
        for network in networks:
            network.eval()
        assert agree(PublishedTrainer(*networks).generator_loss(batch, adaptive=False), "eval_loss.", 1e-5) == 6


def named(networks: golden.Networks, *, gradients: bool) -> dict[str, torch.Tensor]:
    """Parameters, or their gradients, under published names."""
    found = {golden.published_name(networks.autoencoder, name): parameter
             for name, parameter in networks.autoencoder.named_parameters()}
    found |= {f"disc.main.{name.removeprefix('net.')}": parameter
              for name, parameter in networks.discriminator.named_parameters()}
    if gradients:
        return {name: parameter.grad for name, parameter in found.items() if parameter.grad is not None}
    return dict(found)


def gradient_norms(gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    parts = ("encoder", "quantizer", "decoder", "renderer", "disc")
    return {part: torch.cat([value.flatten() for name, value in gradients.items() if name.startswith(part + ".")]).norm()
            for part in parts}


def buffers(networks: golden.Networks) -> dict[str, torch.Tensor]:
    return {f"disc.main.{name.removeprefix('net.')}": buffer.clone()
            for name, buffer in networks.discriminator.named_buffers()}


@pytest.mark.slow
def test_golden_three_iterations_in_the_published_order(batch):
    networks = golden.networks()
    trainer = PublishedTrainer(*networks)
    with golden.published_ties():
        terms = trainer.generator_loss(batch)
        trainer.generator_adam.zero_grad()
        terms["loss"].backward()
        gradients = named(networks, gradients=True)
        assert agree(gradients, "train0.grad.", 1e-4) == 15
        assert agree(gradient_norms(gradients), "train0.gradnorm.", 1e-4) == 5
        assert agree(buffers(networks), "train0.after_g.", 1e-5) == 2
        trainer.generator_adam.step()
        terms |= trainer.discriminator_step(batch)
        assert agree(named(networks, gradients=True), "train0.disc.grad.", 1e-4) == 5
        assert agree(buffers(networks), "train0.after_d.", 1e-5) == 3
        assert agree(terms, "train0.", 1e-5) == 10
        for iteration in (1, 2):
            assert agree(trainer.step(batch), f"train{iteration}.", 1e-5) == 10
    assert agree(named(networks, gradients=False), "train2.after.", 1e-5) == 4


def test_law_last_layer_gradient_equals_autograd_through_the_model():
    network = small()
    output = network(torch.randn(2, 3, 16, 16), *places(), 12)
    loss = output.pred.square().mean() + output.pred[:, :, 3].sum()
    last = network.renderer.last_layer
    wanted, grad_pred = torch.autograd.grad(loss, (last.weight, output.pred))
    torch.testing.assert_close(last_layer_gradient(output.last_features, grad_pred, last), wanted)


# ---------------------------------------------------------------- laws


def test_law_a_patch_of_side_r_is_the_whole_render():
    network = small().eval()
    lowres = torch.randn(2, 3, 16, 16)
    zero = torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        patch = network(lowres, zero + 20, zero, zero, 20).pred
        field = network.field(network.encode(lowres))
        torch.testing.assert_close(field.render(20, 20, statistics="whole"), patch, rtol=1e-5, atol=1e-5)


def test_law_a_patch_sees_the_slice_of_the_whole_query():
    phi = torch.randn(3, 4, 8, 8)
    r, y, x = torch.tensor([9, 30, 17]), torch.tensor([0, 21, 3]), torch.tensor([1, 4, 9])
    found = fields.query_patch(phi, r, y, x, 8)
    for b in range(3):
        side, top, left = int(r[b]), int(y[b]), int(x[b])
        whole = fields.query_grid(phi[b:b + 1], torch.arange(side)[None], torch.arange(side)[None], side, side)
        torch.testing.assert_close(found[b:b + 1], whole[..., top:top + 8, left:left + 8], rtol=0, atol=0)


@pytest.mark.parametrize("quantizer", ["vq", "kl"])
def test_law_every_parameter_takes_part_in_training(quantizer):
    network = small(quantizer=quantizer, z_dim=2).train()
    output = network(torch.randn(2, 3, 16, 16), *places(), 12)
    (output.pred.square().mean() + output.quantizer_loss).backward()
    assert output.z.shape == (2, 2, 8, 8)
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_law_kl_samples_in_training_and_takes_the_mean_in_eval():
    network, lowres = small(quantizer="kl"), torch.randn(2, 3, 16, 16)
    noise = torch.randn(2, 3, 8, 8)

    def z(noise=None):
        return network(lowres, *places(), 12, noise=noise).z.detach()

    assert not torch.equal(z(), z())
    torch.testing.assert_close(z(noise), z(noise), rtol=0, atol=0)
    network.eval()
    torch.testing.assert_close(z(), network.moments(lowres).chunk(2, dim=1)[0].detach(), rtol=0, atol=0)
    torch.testing.assert_close(z(), network.encode(lowres).detach(), rtol=0, atol=0)
    torch.testing.assert_close(z(noise), network.encode(lowres, noise).detach(), rtol=0, atol=0)
    assert (z(noise) - z()).abs().max() > 0.1


def test_law_replicate_padding_leaves_no_frame_on_a_constant_image():
    for padding, flat in (("replicate", True), ("zeros", False)):
        network = small(quantizer="kl", padding=padding, mid_attention=False)
        with torch.no_grad():
            moments = network.moments(torch.full((1, 3, 32, 32), 0.7))
            phi = network.decode(torch.full((1, 3, 8, 8), 0.7))
        for value in (moments, phi):
            spread = (value.amax(dim=(2, 3)) - value.amin(dim=(2, 3))).max().item()
            assert (spread < 1e-5) is flat, (padding, spread)


def test_law_downsampling_pads_right_and_bottom_alone():
    with torch.device("meta"):
        published = make_encoder(AutoencoderConfig(**SMALL))
    assert type(published.down_blocks[0].downsamplers[0]).__name__ == "Downsample2D"
    conv, x = nn.Conv2d(2, 3, 3, stride=2), torch.randn(1, 2, 6, 8)
    padded = torch.cat([x, x[:, :, -1:]], dim=2)
    padded = torch.cat([padded, padded[..., -1:]], dim=3)
    torch.testing.assert_close(ReplicateDownsample(conv)(x), conv(padded), rtol=0, atol=0)


def test_law_padding_changes_no_name_or_shape_and_leaves_the_renderer():
    one, two = (small(padding=padding) for padding in ("zeros", "replicate"))
    assert {name: value.shape for name, value in one.state_dict().items()} == {
        name: value.shape for name, value in two.state_dict().items()}
    kinds = {name.split(".")[0]: set() for name, _ in two.named_modules() if name}
    for name, module in two.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and not name.endswith("downsamplers.0.conv"):
            kinds[name.split(".")[0]].add(type(module))
    assert kinds["encoder"] == kinds["decoder"] == {ReplicateConv2d} and kinds["renderer"] == {nn.Conv2d}


@pytest.mark.parametrize("before", [0, 1])
def test_law_a_border_is_the_same_where_it_is_compiled(before, monkeypatch):
    x = torch.randn(2, 3, 5, 4, requires_grad=True)
    weights = torch.randn(2, 3, 6 + before, 5 + before)
    (plain,) = torch.autograd.grad((with_border(x, before=before) * weights).sum(), x)
    padded = with_border(x, before=before)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(with_border(x, before=before), padded)
    torch.testing.assert_close(torch.autograd.grad((with_border(x, before=before) * weights).sum(), x)[0], plain)


@pytest.mark.parametrize("padding", ["zeros", "replicate"])
def test_law_bfloat16_autocast_stays_near_float32(padding):
    network = small(padding=padding, quantizer="kl").eval()
    lowres = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        plain = network(lowres, *places(), 12)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = network(lowres, *places(), 12)
    assert cast.quantizer_loss.dtype == torch.float32
    assert golden.relative_error(cast.pred.float(), plain.pred) < 0.05


# ---------------------------------------------------------------- padding of the query


@pytest.mark.slow
@pytest.mark.parametrize("pad_px", [1, 3, 9])
def test_law_a_padded_patch_is_the_tile_of_a_tiled_render(pad_px):
    """Inside, at borders and corners, and where the view is the patch itself; each sample of a batch for itself."""
    network, lowres = small(), torch.randn(6, 3, 16, 16)
    r = torch.tensor([40, 40, 12, 17, 33, 40])
    y, x = torch.tensor([13, 0, 0, 5, 2, 28]), torch.tensor([7, 28, 0, 1, 21, 0])
    pred = network(lowres, r, y, x, 12, pad_px=pad_px)
    phi = network.decode(network.quantize(network.encode(lowres)).z_q)
    for i, (side, top, left) in enumerate(zip(r.tolist(), y.tolist(), x.tolist(), strict=True)):
        patch = fields.Box(top, left, 12, 12)
        seen = patch.grown(pad_px, height=side, width=side)
        tile = patch.of(fields.Field(phi[i:i + 1], network.renderer)._call(seen, side, side, None), seen)
        torch.testing.assert_close(pred.pred[i:i + 1], tile, rtol=1e-5, atol=1e-5)
    assert pred.last_features.shape == (6, 8, 14, 14)


def test_law_a_padded_patch_gives_the_gradient_of_the_last_layer():
    network, lowres = small(), torch.randn(3, 3, 16, 16)
    output = network(lowres, torch.tensor([40, 12, 17]), torch.tensor([13, 0, 5]), torch.tensor([0, 0, 5]), 12, pad_px=4)
    grad, last = torch.randn_like(output.pred), network.renderer.last_layer
    (wanted,) = torch.autograd.grad(output.pred, last.weight, grad)
    torch.testing.assert_close(last_layer_gradient(output.last_features, grad, last), wanted, rtol=1e-4, atol=1e-4)


def test_law_fsq_trains_its_encoder():
    network = small(quantizer="fsq", fsq_levels=(8, 5, 5))
    output = network(torch.randn(2, 3, 16, 16), *places(), 12)
    output.pred.square().mean().backward()
    assert output.codes.shape == (2, 8, 8) and output.quantizer_loss.item() == 0
    assert all(parameter.grad is not None for parameter in network.parameters())
