"""Autoencoders of latent diffusion, in both layouts: every tensor mapped, equal outputs up to our cut, clear refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from refs.compvis import LatentDiffusionAutoencoder
from torch import Tensor, nn

import infd
from infd import checkpoint
from infd.compat import torchvision_ready
from infd.config import AutoencoderTrainingConfig
from infd.config_form import unflat
from infd.errors import CheckpointError, InfdError
from infd.importers import files, latent_diffusion
from infd.models.autoencoder import Autoencoder
from jobs import import_weights

KINDS = {"kl": {"z_dim": 4}, "vq": {"z_dim": 3, "codes": 32}}
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
"""In float64; attention and norms are summed in another order than in the reference's own forward."""


def shaken(network: nn.Module) -> nn.Module:
    """Random values in all parameters: fresh norms are 1 and 0, and would hide an exchange."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def compvis(kind: str, **choices: Any) -> LatentDiffusionAutoencoder:
    network = shaken(LatentDiffusionAutoencoder(**{**KINDS[kind], **choices}))
    assert isinstance(network, LatentDiffusionAutoencoder)
    return network


def diffusers_model(kind: str, **choices: Any) -> Any:
    torchvision_ready()
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.vq_model import VQModel

    common: dict[str, Any] = {"block_out_channels": (16, 32, 32), "layers_per_block": 1, "norm_num_groups": 8,
              "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    if kind == "kl":
        return shaken(AutoencoderKL(**{**common, "latent_channels": 4, **choices}))
    return shaken(VQModel(**{**common, "latent_channels": 3, "num_vq_embeddings": 32, **choices}))


def ours(uri: str, origin: latent_diffusion.Origin = "ldm-vq", **choices: int) -> Autoencoder:
    found = latent_diffusion.autoencoder(files.read(uri), origin=origin, renderer_dim=32, **choices)
    network = Autoencoder(found.config).eval()
    network.load_state_dict({name.removeprefix("autoencoder."): tensor for name, tensor in found.model.items()})
    return network


def lowres() -> Tensor:
    return torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1


def latent(dim: int) -> Tensor:
    return torch.randn(2, dim, 8, 10, generator=torch.Generator().manual_seed(2))


# ---------------------------------------------------------------- CompVis's layout

def bare(state: dict[str, Tensor], path: Path) -> None:
    safetensors.torch.save_file(state, path)


def lightning(state: dict[str, Tensor], path: Path) -> None:
    """A training checkpoint of the autoencoder: wrapped, with its loss's networks and averaged weights."""
    extra = {"loss.perceptual_loss.net.slice1.0.weight": torch.zeros(1), "model_ema.decay": torch.zeros(()),
             "model_ema.encoderconv_inweight": torch.zeros(1)}
    torch.save({"epoch": 3, "global_step": 7, "state_dict": state | extra, "optimizer_states": [{"state": {}}]}, path)


def whole_model(state: dict[str, Tensor], path: Path) -> None:
    """A latent diffusion model that holds the autoencoder."""
    extra = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1), "betas": torch.zeros(3),
             "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(1)}
    torch.save({"state_dict": extra | {f"first_stage_model.{name}": tensor for name, tensor in state.items()}}, path)


def former_torch(state: dict[str, Tensor], path: Path) -> None:
    """A file of torch before 1.6, which is no zip."""
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)


@pytest.mark.slow
@pytest.mark.parametrize("write", [bare, lightning, whole_model, former_torch])
@pytest.mark.parametrize("kind", KINDS)
def test_law_compvis_autoencoder_gives_the_same_latents_and_features(tmp_path, kind, write):
    theirs, path = compvis(kind), tmp_path / "model.ckpt"
    write(theirs.state_dict(), path)
    network, theirs = ours(str(path)).double(), theirs.double()
    z, image = latent(network.config.z_dim).double(), lowres().double()
    with torch.no_grad():
        torch.testing.assert_close(network.moments(image), theirs.moments(image), **CLOSE)
        torch.testing.assert_close(network.decode(z), theirs.features(z), **CLOSE)
    assert network.config.widths == (32, 64, 64) and network.config.blocks == 2 and network.config.quantizer == kind
    if kind == "vq":
        codebook = theirs.state_dict()["quantize.embedding.weight"]
        torch.testing.assert_close(network.state_dict()["quantizer.embedding.weight"], codebook, rtol=0, atol=0)


@pytest.mark.parametrize(("widths", "blocks"), [((32, 32), 1), ((32, 64, 32, 64), 3)])
def test_law_compvis_shapes_give_the_config(tmp_path, widths, blocks):
    theirs, path = compvis("kl", widths=widths, blocks=blocks), tmp_path / "model.safetensors"
    bare(theirs.state_dict(), path)
    config = ours(str(path), "sd-vae").config
    assert (config.widths, config.blocks, config.z_dim, config.norm_groups) == (widths, blocks, 4, 32)


def test_ref_compvis_names_are_those_that_diffusers_converts(tmp_path):
    """diffusers' own conversion is the peer: same tensors for the same file, its tail aside."""
    torchvision_ready()
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    theirs, path = compvis("kl"), tmp_path / "model.safetensors"
    bare(theirs.state_dict(), path)
    converted = convert_ldm_vae_checkpoint(theirs.state_dict(), {"down_block_types": [""] * 3, "up_block_types": [""] * 3})
    network = ours(str(path))
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("renderer.")}
    tail = {name for name in converted if name.startswith(latent_diffusion.TAIL)}
    assert len(tail) == 4 and set(state) == set(converted) - tail
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, converted[name].reshape(tensor.shape), rtol=0, atol=0)


# ---------------------------------------------------------------- diffusers' layout

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["folder", "pipeline", "file", "bin"])
def test_law_diffusers_autoencoder_gives_the_same_latents_and_features(tmp_path, kind, where):
    theirs = diffusers_model(kind, mid_block_add_attention=kind == "vq")
    inner = {"kl": "vae", "vq": "vqvae"}[kind] if where == "pipeline" else ""
    theirs.save_pretrained(tmp_path / inner, safe_serialization=where != "bin")
    address = tmp_path / files.STEM if where == "file" else tmp_path
    network = ours(f"{address}.safetensors" if where == "file" else str(address))
    theirs.decoder.conv_norm_out = theirs.decoder.conv_act = theirs.decoder.conv_out = nn.Identity()
    z = latent(network.config.z_dim)
    with torch.no_grad():
        wanted = theirs.encode(lowres())
        wanted = wanted.latent_dist.parameters if kind == "kl" else wanted.latents
        torch.testing.assert_close(network.moments(lowres()), wanted, rtol=0, atol=0)
        torch.testing.assert_close(network.decode(network.quantize(z).z_q), theirs.decode(z).sample, rtol=0, atol=1e-6)
    assert network.config.norm_groups == 8 and network.config.mid_attention == (kind == "vq")


def test_law_former_names_of_attention_are_known(tmp_path):
    """The published Stable Diffusion VAEs carry them."""
    theirs = diffusers_model("kl")
    theirs.save_pretrained(tmp_path)
    wanted = ours(str(tmp_path)).state_dict()
    state = theirs.state_dict()
    former_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, former in former_names.items():
        state = {name.replace(f".attentions.0.{new}.", f".attentions.0.{former}."): value for name, value in state.items()}
    assert any("proj_attn" in name for name in state)
    safetensors.torch.save_file(state, tmp_path / f"{files.STEM}.safetensors")
    for name, tensor in ours(str(tmp_path)).state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=0)


def test_law_missing_1x1_convolutions_become_the_identity(tmp_path):
    """Stable Diffusion 3's VAE has none."""
    theirs = diffusers_model("kl", use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.5)
    theirs.save_pretrained(tmp_path)
    network = ours(str(tmp_path), "sd-vae")
    with torch.no_grad():
        wanted = theirs.encode(lowres()).latent_dist.parameters
        torch.testing.assert_close(network.moments(lowres()), wanted, rtol=0, atol=1e-6)


def test_law_half_precision_becomes_float32(tmp_path):
    theirs = diffusers_model("kl").half()
    theirs.save_pretrained(tmp_path, variant="fp16")
    assert {tensor.dtype for tensor in ours(str(tmp_path)).state_dict().values()} == {torch.float32}


def test_law_the_fresh_renderer_is_a_function_of_the_seed(tmp_path):
    diffusers_model("kl").save_pretrained(tmp_path)
    config, before = ours(str(tmp_path)).config, torch.random.get_rng_state()
    first, again, other = (latent_diffusion.fresh_renderer(config, seed=seed)["renderer.conv_in.weight"] for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other) and torch.equal(before, torch.random.get_rng_state())


# ---------------------------------------------------------------- refusals

def test_error_a_state_that_does_not_fit_lists_missing_and_left_over(tmp_path):
    state, path = compvis("vq").state_dict(), tmp_path / "vq.safetensors"
    state["encoder.down.1.attn.0.q.weight"] = state.pop("decoder.up.0.block.1.norm1.bias")
    bare(state, path)
    with pytest.raises(CheckpointError, match=r"missing 1 \(decoder.up.0.block.1.norm1.bias\), left over 1 \(encoder.d"):
        ours(str(path))


def test_error_a_state_that_does_not_fit_its_config(tmp_path):
    diffusers_model("kl").save_pretrained(tmp_path)
    change(tmp_path, layers_per_block=2)
    with pytest.raises(CheckpointError, match=r"missing \d+ \(decoder.up_blocks.0.resnets.2.*left over 0"):
        ours(str(tmp_path))
    change(tmp_path, layers_per_block=1, latent_channels=5)
    with pytest.raises(CheckpointError, match=r"shapes 7 .*decoder.conv_in.weight \(32, 4, 3, 3\), expected \(32, 5, 3, 3\)"):
        ours(str(tmp_path))


def change(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(("values", "message"), [
    ({"_class_name": "AutoencoderTiny"}, "config.json is of AutoencoderTiny"),
    ({"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"]}, "down_block_types is"),
    ({"act_fn": "gelu"}, "act_fn is gelu; only silu"),
    ({"layers_per_block": 10**9}, "layers_per_block is 1000000000; a whole number from 1 to 64"),
    ({"block_out_channels": [16, "x", 32]}, r"block_out_channels\[1\] is x"),
    ({"block_out_channels": 16}, "widths=.*needs at least 2 levels"),
    ({"norm_num_groups": 7}, "norm_groups=7: must divide every width"),
])
def test_error_a_config_that_ours_cannot_be(tmp_path, values, message):
    diffusers_model("kl").save_pretrained(tmp_path)
    change(tmp_path, **values)
    with pytest.raises(CheckpointError, match=message):
        ours(str(tmp_path))


def test_error_a_codebook_is_no_vae(tmp_path):
    diffusers_model("vq").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="it has a codebook; .*--from ldm-vq"):
        ours(str(tmp_path), "sd-vae")


def test_error_weights_that_are_not_finite_or_no_autoencoder(tmp_path):
    state, path = compvis("kl").state_dict(), tmp_path / "x.safetensors"
    bare(state | {"encoder.conv_in.bias": torch.full((32,), float("nan"))}, path)
    with pytest.raises(CheckpointError, match=r"not finite 1 \(encoder.conv_in.bias\)"):
        ours(str(path))
    bare(state | {"decoder.conv_in.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="decoder.conv_in.weight with 2 or more axes"):
        ours(str(path))
    bare({"visual.proj\n": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"tensors 1 \('visual.proj\\n'\); encoder.down.… \(CompVis\)"):
        ours(str(path))


# ---------------------------------------------------------------- the job

@pytest.mark.parametrize("origin", ["ldm-vq", "sd-vae"])
def test_job_writes_a_checkpoint_to_start_from(tmp_path, capsys, origin):
    theirs = diffusers_model("kl", scaling_factor=0.13025)
    theirs.save_pretrained(tmp_path / "vae")
    out = str(tmp_path / "start")
    argv = [str(tmp_path / "vae"), "--from", origin, "--out", out, "--licence", "mit", "--renderer-dim", "16"]
    assert import_weights.main(argv) == 0
    assert capsys.readouterr().out.strip() == out
    found = checkpoint.load(out)
    config = unflat(AutoencoderTrainingConfig, found.meta["config"])
    assert config.crop.lowres_px == 256 and config.loss.quantizer == 1e-6 and config.model.renderer_dim == 16
    note = found.meta["origin"]
    assert note["licence"] == "mit" and note["latent"] == {"scaling_factor": 0.13025} and note["layout"] == "diffusers"
    assert note["code"] == origin and note["fresh"] == ["renderer"] and len(note["sha256"]) == 64
    network = infd.load_autoencoder(out)
    with torch.no_grad():
        torch.testing.assert_close(network.encode(lowres()), theirs.encode(lowres()).latent_dist.mode(), rtol=0, atol=0)
    assert network.field(network.encode(lowres())).render(20, 12).shape == (2, 3, 20, 12)

    assert import_weights.main(argv) == 1
    assert "a checkpoint is there already" in capsys.readouterr().err


def test_job_refuses_in_one_line(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    (tmp_path / "empty").mkdir()
    for source, message in ((tmp_path / "none", "no such file, and no folder with config.json"),
                            (tmp_path / "empty", "no such file, and no folder with config.json")):
        assert import_weights.main([str(source), "--from", "sd-vae", *out]) == 1
        shown = capsys.readouterr().err
        assert message in shown and shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert import_weights.main(["x.pth", "--from", "infd", "--renderer-dim", "64", *out]) == 2
    assert "set for --from infd" in capsys.readouterr().err


def test_error_is_always_one_that_a_user_can_mend(tmp_path):
    """Cut anywhere, a file is refused, never half read."""
    state, path = compvis("kl", widths=(32, 32), blocks=1).state_dict(), tmp_path / "x.ckpt"
    torch.save({"state_dict": state}, path)
    whole = path.read_bytes()
    for size in (0, 1, 40, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InfdError):
            ours(str(path))
