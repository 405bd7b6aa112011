"""`jobs/export.py`: what diffusers loads is our E and D, the card tells the truth and its code runs."""

import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from huggingface_hub import ModelCard
from refs import golden
from torch import Tensor, nn

import infd
from infd import checkpoint, storage
from infd.compat import torchvision_ready
from infd.config import AutoencoderConfig, AutoencoderTrainingConfig, CropConfig, DiscriminatorConfig, LoopConfig, LossConfig
from infd.config_form import flat, identity
from infd.exporters import diffusers_layout
from infd.importers import files, latent_diffusion
from infd.models.autoencoder import Autoencoder, replicate_padding
from jobs import export, import_weights

QUANTIZERS = ("kl", "vq")


def saved(folder: Path, *, changes: dict[str, Any] | None = None, **model: Any) -> str:
    """A checkpoint as a run writes it, with random values in all parameters."""
    config = AutoencoderTrainingConfig(
        model=AutoencoderConfig(**{
            "widths": (16, 32), "blocks": 1, "norm_groups": 8, "z_dim": 4, "codebook_size": 32, "renderer_dim": 16, **model}),
        discriminator=DiscriminatorConfig(base_dim=4, layers=2),
        crop=CropConfig(patch_px=48, lowres_px=32, r_min=48, r_max=96), loss=LossConfig(lpips=0),
        loop=LoopConfig(steps=10, batch=2))
    torch.manual_seed(0)
    network = Autoencoder(config.model)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    meta = {
        "stage": "autoencoder", "preset": "tiny", "step": 10, "g": 20, "config": flat(config), "identity": identity(config),
        "snapshot": "s3://bucket/photos@7", "metrics": {"val/psnr": 25.25, "speed/images_per_s": 3.0},
        "mlflow_run_id": "abc123", "versions": {"infd": "0.1.0"},
        "weights": {"lpips-vgg": {"licence": "BSD-3-Clause (trunk)", "origin": "torchvision | VGG16", "sha256": "0"}},
        **(changes or {})}
    uri = str(folder / "checkpoint")
    checkpoint.save(uri, model={f"autoencoder.{name}": value for name, value in network.state_dict().items()},
                    train_state={}, meta=meta)
    return uri


def lowres() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def loaded(folder: str, quantizer: str) -> Any:
    """What diffusers makes of a folder; every tensor is there, none too many, and it says nothing."""
    torchvision_ready()
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.vq_model import VQModel

    kind: Any = AutoencoderKL if quantizer == "kl" else VQModel
    with heard() as said, warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert [text for text in said if "accelerate" not in text] == []     # it may ask for that package
    return model.eval()


class heard(logging.Handler):
    """What diffusers' loggers say meanwhile."""

    def __enter__(self) -> list[str]:
        self.texts: list[str] = []
        logging.getLogger("diffusers").addHandler(self)
        return self.texts

    def __exit__(self, *_: object) -> None:
        logging.getLogger("diffusers").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def latents(model: Any, image: Tensor) -> Tensor:
    found = model.encode(image)
    return found.latent_dist.parameters if hasattr(found, "latent_dist") else found.latents


def without_tail(model: Any) -> Any:
    model.decoder.conv_norm_out = model.decoder.conv_act = model.decoder.conv_out = nn.Identity()
    return model


@pytest.fixture(params=QUANTIZERS)
def exported(request, tmp_path, capsys) -> Iterator[tuple[str, str, str]]:
    """Quantizer, address of the checkpoint, folder of its export."""
    uri, out = saved(tmp_path, quantizer=request.param), str(tmp_path / "out")
    assert export.main([uri, "--out", out, "--licence", "CC-BY-NC-4.0"]) == 0
    assert capsys.readouterr().out.strip() == out
    yield request.param, uri, out


def test_law_diffusers_loads_our_encoder_decoder_and_codebook(exported):
    quantizer, uri, out = exported
    ours, theirs = infd.load_autoencoder(uri), loaded(out, quantizer)
    with torch.no_grad():
        assert golden.relative_error(latents(theirs, lowres()), ours.moments(lowres())) < 1e-6
        grey = theirs.decode(ours.encode(lowres())).sample
        torch.testing.assert_close(grey, torch.zeros_like(grey), rtol=0, atol=0)
        codes = ours.quantize(ours.encode(lowres())).z_q.double()           # vq: a code is its own nearest
        ours, theirs, image = ours.double(), without_tail(theirs).double(), lowres().double()
        torch.testing.assert_close(latents(theirs, image), ours.moments(image), rtol=0, atol=1e-12)
        torch.testing.assert_close(theirs.decode(codes).sample, ours.decode(codes), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_job_card_runs_as_written_and_renders_as_ours(exported, monkeypatch):
    quantizer, uri, out = exported
    (code,) = re.findall(r"```python\n(.*?)```", (Path(out) / "README.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(out)
    torchvision_ready()
    found: dict[str, Any] = {}
    exec(code, found)
    ours = infd.load_autoencoder(uri)
    wanted = ours.field(ours.encode(torch.zeros(1, 3, 32, 32))).render(384, 256)
    torch.testing.assert_close(found["image"], wanted, rtol=0, atol=1e-5)


def test_job_card_names_data_config_metrics_and_licences(exported):
    _, uri, out = exported
    card = ModelCard.load(Path(out) / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "cc-by-nc-4.0" and data["library_name"] == "diffusers"
    assert "image-neural-field" in data["tags"]
    text = card.text
    sha256 = checkpoint.load(uri).files["model.safetensors"]["sha256"]
    for part in ("10 steps (20 samples)", "`s3://bucket/photos@7`", "| val/psnr | 25.25 |", "model.z_dim = 4", "abc123",
                 "BSD-3-Clause (trunk); torchvision \\| VGG16", "These weights: CC-BY-NC-4.0.", "random weights", sha256,
                 "alone gives no image"):
        assert part in text, part
    assert "speed/" not in text and "loader." not in text
    for name in ("diffusion_pytorch_model.safetensors", "renderer.safetensors"):
        assert f"| `{name}` | `{storage.file_sha256(Path(out) / name)}` |" in text
    with safetensors.safe_open(Path(out) / "renderer.safetensors", "pt") as file:
        assert json.loads(file.metadata()["clif"]) == {"phi_dim": 16, "dim": 16, "blocks": 2, "groups": 8}


@pytest.mark.parametrize(("licence", "wanted"), [
    ("", {"license": "other", "license_name": "not-stated"}),
    ("Our terms: ask\n- x", {"license": "other", "license_name": "our-terms-ask-x"}), ("MIT", {"license": "mit"})])
def test_job_card_header_is_yaml_for_any_licence(tmp_path, licence, wanted):
    out = diffusers_layout.export(saved(tmp_path, quantizer="kl"), str(tmp_path / "out"), licence=licence)
    data = ModelCard.load(Path(out) / "README.md").data.to_dict()
    assert wanted.items() <= data.items()


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_law_an_export_imported_again_is_the_same_autoencoder(tmp_path, quantizer):
    uri = saved(tmp_path, quantizer=quantizer)
    out = diffusers_layout.export(uri, str(tmp_path / "out"))
    found = latent_diffusion.autoencoder(files.read(out), origin="ldm-vq", renderer_dim=16)
    before = checkpoint.load(uri).model()
    assert set(found.model) == set(before)
    for name, tensor in before.items():
        if ".renderer." not in name:
            torch.testing.assert_close(found.model[name], tensor, rtol=0, atol=0)


def test_law_the_factor_of_the_latents_holds_only_while_the_encoder_is_kept(tmp_path):
    origin = {"code": "sd-vae", "licence": "openrail", "latent": {"scaling_factor": 0.125, "shift_factor": 0.5}}

    def factors(number: int, **changes: Any) -> tuple[float, float | None]:
        changes.setdefault("origin", origin)
        uri = saved(tmp_path / str(number), quantizer="kl", changes=changes)
        config = loaded(diffusers_layout.export(uri, str(tmp_path / f"out{number}")), "kl").config
        return config.scaling_factor, config.shift_factor

    frozen = {"config": {**checkpoint.load(saved(tmp_path, quantizer="kl")).meta["config"], "freeze": ["encoder"]}}
    assert factors(1) == (1.0, None)
    assert factors(2, **frozen) == (0.125, 0.5)
    assert factors(3, step=0, g=0) == (0.125, 0.5)
    text = (tmp_path / "out2" / "README.md").read_text()
    assert "| licence | openrail |" in text and "- fine-tuned" in text
    out = diffusers_layout.export(str(tmp_path / "1" / "checkpoint"), str(tmp_path / "stated"), scaling_factor=0.7)
    assert loaded(out, "kl").config.scaling_factor == 0.7


def test_job_export_of_an_import_says_that_nothing_was_trained(tmp_path):
    uri = saved(tmp_path, quantizer="kl")
    out = diffusers_layout.export(uri, str(tmp_path / "first"))
    start, again = str(tmp_path / "start"), str(tmp_path / "again")
    assert import_weights.main([out, "--from", "sd-vae", "--out", start, "--licence", "mit", "--renderer-dim", "16"]) == 0
    assert export.main([start, "--out", again]) == 0
    text = (Path(again) / "README.md").read_text()
    for part in ("these weights were imported, not trained here. The renderer is fresh", "| code | sd-vae |",
                 "| licence | mit |", "None were measured", 'license: "other"'):
        assert part in text, part


# ---------------------------------------------------------------- padding

def test_error_replicate_padding_has_no_place_in_the_layout(tmp_path, capsys):
    uri, out = saved(tmp_path, quantizer="kl", padding="replicate"), str(tmp_path / "out")
    assert export.main([uri, "--out", out]) == 2
    shown = capsys.readouterr().err
    assert "model.padding is replicate" in shown and "--replicate-padding" in shown and shown.count("\n") == 1
    assert not Path(out).exists()


def test_job_replicate_padding_on_request_says_what_to_do(tmp_path, monkeypatch):
    uri, out = saved(tmp_path, quantizer="kl", padding="replicate"), str(tmp_path / "out")
    assert export.main([uri, "--out", out, "--replicate-padding"]) == 0
    ours, theirs = infd.load_autoencoder(uri), loaded(out, "kl")
    with torch.no_grad():
        wanted = ours.moments(lowres())
        assert (latents(theirs, lowres()) - wanted).abs().max() > 1e-3
        replicate_padding(theirs.encoder)
        assert golden.relative_error(latents(theirs, lowres()), wanted) < 1e-6
    text = (Path(out) / "README.md").read_text()
    assert "**Padding.**" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(out)
    found: dict[str, Any] = {}
    exec(code, found)
    torch.testing.assert_close(
        found["image"], ours.field(ours.encode(torch.zeros(1, 3, 32, 32))).render(384, 256), rtol=0, atol=1e-5)


# ---------------------------------------------------------------- writing, refusals

def test_error_a_folder_that_holds_anything_is_left_alone(tmp_path, capsys):
    uri, out = saved(tmp_path, quantizer="kl"), tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("mine")
    assert export.main([uri, "--out", str(out)]) == 1
    assert "it holds files (found 1 (README.md))" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["README.md"] and (out / "README.md").read_text() == "mine"
    (out / "README.md").unlink()
    assert export.main([uri, "--out", str(out)]) == 0
    assert export.main([uri, "--out", str(out)]) == 1
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "config.json", "diffusion_pytorch_model.safetensors", "renderer.safetensors"]


@pytest.mark.parametrize("at", ["config.json", "renderer.safetensors"])
def test_law_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, at):
    uri, put = saved(tmp_path, quantizer="kl"), storage.put_atomic

    def fail(address: str, data: bytes) -> None:
        if address.endswith(at):
            raise storage.StorageError("no space")
        put(address, data)

    monkeypatch.setattr(storage, "put_atomic", fail)
    assert export.main([uri, "--out", str(tmp_path / "out")]) == 1
    assert sorted(os.listdir(tmp_path)) == ["checkpoint"]


@pytest.mark.parametrize(("changes", "message"), [
    ({"stage": "super_resolution"}, "it is of stage super_resolution; an autoencoder was expected"),
])
def test_error_a_checkpoint_of_another_stage(tmp_path, capsys, changes, message):
    uri = saved(tmp_path, quantizer="kl", changes=changes)
    assert export.main([uri, "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err


def test_error_fsq_has_no_place_in_the_layout(tmp_path, capsys):
    uri = saved(tmp_path, quantizer="fsq")
    assert export.main([uri, "--out", str(tmp_path / "out")]) == 1
    assert "model.quantizer is fsq; diffusers has a place for kl (AutoencoderKL) and vq" in capsys.readouterr().err


def test_law_averaged_weights_are_exported_where_there_are_any(tmp_path):
    uri = saved(tmp_path, quantizer="kl")
    found = checkpoint.load(uri)
    raw = found.model("autoencoder.")
    average = {f"autoencoder_average.{name}": 2 * value for name, value in raw.items()}
    checkpoint.save(uri, model=found.model() | average, train_state={}, meta=found.meta)
    theirs = loaded(diffusers_layout.export(uri, str(tmp_path / "out")), "kl")
    wanted = infd.load_autoencoder(uri).moments(lowres())
    with torch.no_grad():
        assert golden.relative_error(latents(theirs, lowres()), wanted) < 1e-6
        assert golden.relative_error(theirs.quant_conv.weight, 2 * raw["quant_conv.weight"]) == 0


def test_error_a_checkpoint_that_is_not_whole(tmp_path, capsys):
    uri = saved(tmp_path, quantizer="kl")
    found = checkpoint.load(uri)
    model = found.model()
    model.pop("autoencoder.encoder.conv_in.bias")
    checkpoint.save(uri, model=model, train_state={}, meta=found.meta)
    assert export.main([uri, "--out", str(tmp_path / "out")]) == 1
    assert "missing 1 (encoder.conv_in.bias)" in capsys.readouterr().err
    assert export.main([str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 1
    assert "no complete.json" in capsys.readouterr().err
    assert export.main([uri, "--out", "x", "--scaling-factor", "0"]) == 2
    assert "scaling_factor=0.0: must be above 0" in capsys.readouterr().err


@pytest.mark.slow
def test_job_writes_to_a_bucket(tmp_path, bucket, capsys):
    uri = saved(tmp_path, quantizer="kl")
    assert export.main([uri, "--out", f"{bucket}/out"]) == 0
    capsys.readouterr()
    assert export.main([uri, "--out", f"{bucket}/out"]) == 1
    assert "it holds files" in capsys.readouterr().err
    start = f"{bucket}/start"
    assert import_weights.main([f"{bucket}/out", "--from", "sd-vae", "--out", start, "--renderer-dim", "16"]) == 0
    with torch.no_grad():
        wanted = infd.load_autoencoder(uri).moments(lowres())
        torch.testing.assert_close(infd.load_autoencoder(start).moments(lowres()), wanted, rtol=0, atol=0)
