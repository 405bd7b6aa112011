"""Published files: every tensor mapped, or a refusal that says which is not."""

import io
import pickle
from pathlib import Path

import pytest
import torch
from refs import golden

from infd import checkpoint
from infd.config import AutoencoderConfig, AutoencoderTrainingConfig, DiffusionConfig, DiscriminatorConfig
from infd.config_form import unflat
from infd.errors import CheckpointError
from infd.generation.model import load_model
from infd.importers import official
from infd.models.autoencoder import Autoencoder
from infd.models.discriminator import PatchDiscriminator


@pytest.fixture
def content() -> dict:
    return official.read(golden.CHECKPOINT)


@pytest.fixture
def stage_one(content) -> dict:
    """The same file as stage one would have written it: without a latent diffusion model."""
    state = content["model"]["sd"]
    content["model"]["sd"] = {name: value for name, value in state.items() if not name.startswith("z_dm")}
    return content


def full_size() -> dict[str, torch.Tensor]:
    """Names, shapes and types of the published full-size model, on the meta device."""
    state = {}
    lines = (golden.FOLDER / "official_state_dict.tsv").read_text().splitlines()
    for line in lines:
        name, shape, kind = line.split("\t")
        sides = [] if shape == "scalar" else [int(side) for side in shape.split("x")]
        state[name] = torch.empty(sides, dtype=getattr(torch, kind), device="meta")
    return state


@pytest.mark.slow
def test_law_the_full_size_file_maps_tensor_by_tensor():
    state = full_size()
    assert len(state) == 1014
    args = {"encoder": {}, "decoder": {}, "renderer": {}, "quantizer": True, "loss_cfg": {"gan_g_loss": 0.75}}
    found = official.autoencoder({"model": {"sd": state, "args": args}})
    assert found.config == AutoencoderConfig() and found.discriminator == DiscriminatorConfig()
    assert len(found.model) == 90 + 1 + 110 + 22 + 22 and len(found.dropped) == 33 + 2 * 368
    with torch.device("meta"):
        networks = {"autoencoder": Autoencoder(found.config), "discriminator": PatchDiscriminator(found.discriminator)}
    wanted = {f"{part}.{name}": (value.shape, value.dtype) for part, network in networks.items()
              for name, value in network.state_dict().items()}
    assert {name: (value.shape, value.dtype) for name, value in found.model.items()} == wanted


def test_law_names_map_one_to_one():
    ours = official.layout(AutoencoderConfig(), DiscriminatorConfig())
    names = {official.official_name(name, levels=3) for name in ours}
    kept = {name for name in full_size() if not name.startswith(official.DROPPED + official.STAGE_TWO)}
    assert names == kept and len(names) == len(ours)


def test_golden_small_file_gives_its_config_and_values(content):
    found = official.autoencoder(content)
    assert found.config == AutoencoderConfig(
        widths=(8, 16, 32), codebook_size=64, renderer_dim=16, norm_groups=4)
    assert found.discriminator == DiscriminatorConfig(base_dim=4)
    assert found.training.crop.lowres_px == 32 and found.training.loss.gan == 0.75
    state = content["model"]["sd"]
    query = "autoencoder.decoder.mid_block.attentions.0.to_q.weight"
    torch.testing.assert_close(found.model[query], state["decoder.1.mid.attn_1.q.weight"][:, :, 0, 0], rtol=0, atol=0)
    finest = "autoencoder.decoder.up_blocks.2.resnets.0.conv1.weight"
    torch.testing.assert_close(found.model[finest], state["decoder.1.up.0.block.0.conv1.weight"], rtol=0, atol=0)


def test_law_files_of_both_stages_have_the_same_autoencoder(stage_one):
    content = official.read(golden.CHECKPOINT)
    one, two = official.autoencoder(stage_one), official.autoencoder(content)
    assert one.config == two.config and one.config.widths == (8, 16, 32)
    assert not official.has_denoiser(stage_one) and official.has_denoiser(content)
    assert all(torch.equal(value, two.model[name]) for name, value in one.model.items())


@pytest.mark.slow
def test_golden_job_writes_a_stage_two_checkpoint_that_samples_as_published(tmp_path, monkeypatch):
    """Loaded as any of ours, with the published noises in the place of a seed's."""
    from jobs import import_weights

    out, wanted = str(tmp_path / "ckpt"), golden.tensors("stage_two")
    assert import_weights.main([golden.CHECKPOINT, "--from", "infd", "--out", out]) == 0
    model = load_model(out)
    assert model.side == wanted["ddim.x_T"].shape[-1] and model.diffusion == DiffusionConfig()
    drawn = iter(wanted["ddim.eta1.noise"])
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddim.randn_tensor", lambda *_, **__: next(drawn)[None])
    monkeypatch.setattr("infd.diffusion.samplers.torch.randn", lambda *_, **__: wanted["ddim.x_T"][0])
    z = model.latents([0], steps=200)
    assert golden.relative_error(z, wanted["ddim.eta1.sample"]) <= 1e-4


def test_error_names_tensors_missing_and_left_over(stage_one):
    state = stage_one["model"]["sd"]
    state["encoder.0.extra.weight"] = state.pop("encoder.0.norm_out.weight")
    with pytest.raises(CheckpointError, match=r"missing 1 \(encoder.0.norm_out.weight\), left over 1 \(enc"):
        official.autoencoder(stage_one)
    state["encoder.0.norm_out.weight"] = state["encoder.0.extra.weight"]
    with pytest.raises(CheckpointError, match=r"missing 0, left over 1 \(encoder.0.extra.weight\)"):
        official.autoencoder(stage_one)


def test_error_names_a_tensor_of_another_shape(stage_one):
    stage_one["model"]["sd"]["renderer.net.conv_out.weight"] = torch.zeros(4, 16, 3, 3)
    with pytest.raises(CheckpointError, match=r"conv_out.weight \(4, 16, 3, 3\), expected \(3, 16, 3, 3\)"):
        official.autoencoder(stage_one)


@pytest.mark.parametrize("gone", ["encoder.0.down.", "renderer.net.model.0.weight", "disc.main.0.weight", "decoder.0."])
def test_error_a_part_is_missing(stage_one, gone):
    state = stage_one["model"]["sd"]
    stage_one["model"]["sd"] = {name: value for name, value in state.items() if not name.startswith(gone)}
    with pytest.raises(CheckpointError, match="no tensor"):
        official.autoencoder(stage_one)


def test_error_groups_that_differ_between_parts(stage_one):
    stage_one["model"]["args"]["decoder"]["args"]["norm_groups"] = 8
    with pytest.raises(CheckpointError, match=r"norm_groups \[4, 8\]"):
        official.autoencoder(stage_one)


def test_error_published_groups_do_not_divide_the_widths(stage_one):
    for part in ("encoder", "decoder"):
        del stage_one["model"]["args"][part]["args"]["norm_groups"]
    del stage_one["model"]["args"]["renderer"]["args"]["net"]["args"]["norm_groups"]
    with pytest.raises(CheckpointError, match="norm_groups=32: must divide every width"):
        official.autoencoder(stage_one)


class Harmful:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("data", [b"", b"not a checkpoint", saved([1, 2]), saved({"model": {"sd": {}}})])
def test_error_a_file_that_is_no_published_checkpoint(tmp_path, data):
    path = tmp_path / "x.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="x.pth"):
        official.read(str(path))


def test_error_code_in_a_file_does_not_run(tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "x.pth"
    for data in (pickle.dumps(Harmful(marker)), saved({"model": Harmful(marker)})):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="cannot load as plain tensors"):
            official.read(str(path))
    assert not marker.exists()
    pickle.loads(pickle.dumps(Harmful(marker)))
    assert marker.exists()


def test_job_writes_a_checkpoint_that_renders_as_published(tmp_path, capsys):
    from jobs import import_weights

    out = str(tmp_path / "ckpt")
    assert import_weights.main([golden.CHECKPOINT, "--from", "infd", "--out", out, "--autoencoder-only"]) == 0
    assert capsys.readouterr().out.strip() == out
    found = checkpoint.load(out)
    config = unflat(AutoencoderTrainingConfig, found.meta["config"])
    network = Autoencoder(config.model).eval()
    network.load_state_dict(found.model("autoencoder."))
    PatchDiscriminator(config.discriminator).load_state_dict(found.model("discriminator."))
    stage_one = golden.tensors("stage_one")
    with torch.no_grad():
        rgb = network.field(network.encode(stage_one["batch.inp"][:1])).render(40, 56, statistics="whole")
    assert golden.relative_error(rgb, stage_one["render.whole_40x56"]) < 1e-5


def test_job_refuses_a_missing_file_in_one_line(tmp_path, capsys):
    from jobs import import_weights

    assert import_weights.main([str(tmp_path / "none.pth"), "--from", "infd", "--out", str(tmp_path / "o")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
