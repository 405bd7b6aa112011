"""`jobs/export.py` of stage two: diffusers loads the whole pipeline, samples what ours samples, and the card's code runs."""

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from torch import Tensor

import infd
from infd import checkpoint, storage
from infd.compat import torchvision_ready
from infd.config import AutoencoderConfig, DenoiserConfig, DiffusionConfig, DiffusionTrainingConfig, LoopConfig, OptimizerConfig
from infd.config_form import flat, identity
from infd.diffusion import samplers
from infd.importers import files
from infd.models.autoencoder import Autoencoder
from infd.models.denoiser import Denoiser
from jobs import export

SCALE, LOWRES, SIDE = 1.7, 16, 8
KINDS: dict[str, dict[str, Any]] = {
    "kl-eps": {},
    "vq-v": {"quantizer": "vq", "objective": "v", "schedule": "scaled_linear", "beta_to": 0.012},
    "class": {"condition": "class", "classes": 2, "objective": "v", "p_unconditional": 0.1},
    "text": {"condition": "text", "context_dim": 8, "p_unconditional": 0.1},
    "flow": {"quantizer": "vq", "objective": "flow"},
}
"""One of each: what differs from an unconditional KL with eps."""


def saved(folder: Path, kind: str = "kl-eps", *, changes: dict[str, Any] | None = None, **more: Any) -> str:
    """A stage-two checkpoint as a run writes it, with random values in all parameters; its average is not its last."""
    given = {**KINDS[kind], **more}
    model, diffusion, rest = ({name: given[name] for name in given if name in names} for names in (
        ("condition", "classes", "context_dim"), ("objective", "schedule", "beta_to", "p_unconditional"),
        ("quantizer", "padding", "fsq_levels")))
    config = DiffusionTrainingConfig(
        model=DenoiserConfig(z_dim=4, widths=(16, 32), blocks=1, head_dim=16, norm_groups=8, **model),
        diffusion=DiffusionConfig(**{"scale": SCALE, "timesteps": 500, **diffusion}),
        optimizer=OptimizerConfig(lr=1e-3, ema_decay=0.9), loop=LoopConfig(steps=10, batch=2))
    torch.manual_seed(0)
    beside = AutoencoderConfig(**{"quantizer": "kl", "widths": (16, 32), "blocks": 1, "norm_groups": 8, "z_dim": 4,
                                  "codebook_size": 32, "renderer_dim": 16, **rest})
    networks = {"autoencoder": Autoencoder(beside), "denoiser": Denoiser(config.model),
                "denoiser_average": Denoiser(config.model)}
    tensors = {}
    with torch.no_grad():
        for name, network in networks.items():
            for parameter in network.parameters():
                parameter.add_(0.03 * torch.randn_like(parameter))
            tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
    meta = {
        "stage": "latent_diffusion", "preset": "tiny", "step": 10, "g": 20, "config": flat(config),
        "identity": identity(config), "snapshot": "s3://bucket/photos@7", "mlflow_run_id": "abc123",
        "metrics": {"val/loss": 0.25, "speed/images_per_s": 3.0}, "origin": {}, "versions": {"infd": "0.1.0"},
        "groups": ["cats", "dogs"],
        "latents": {"address": "s3://bucket/latents", "sha256": "1"},
        "autoencoder": {"config": flat(beside), "lowres_px": LOWRES, "patch_px": 48, "checkpoint": "s3://bucket/ae/step-00000010",
                        "sha256": "f00d", "step": 30},
        "weights": {"lpips-vgg": {"licence": "BSD-3-Clause (trunk)", "origin": "torchvision | VGG16", "sha256": "0"}},
        **(changes or {})}
    uri = str(folder / "checkpoint")
    checkpoint.save(uri, model=tensors, train_state={}, meta=meta)
    return uri


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


def loaded(folder: str) -> Any:
    """What diffusers makes of the folder."""
    torchvision_ready()
    from diffusers import DiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

    pipe: Any = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def condition(kind: str, ours: Denoiser) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of two samples: as our denoiser takes it, and as diffusers' network does."""
    if kind == "class":
        labels = torch.tensor([0, 2])
        return {"labels": labels}, {"class_labels": labels}
    if kind == "text":
        context = torch.randn(2, 3, ours.config.context_dim, generator=torch.Generator().manual_seed(2))
        return {"context": context}, {"encoder_hidden_states": context}
    return {}, {}


@pytest.fixture(params=KINDS, scope="module")
def exported(request, tmp_path_factory) -> tuple[str, str, str]:
    """Kind, address of the checkpoint, folder of its export."""
    folder = tmp_path_factory.mktemp(request.param)
    uri, out = saved(folder, request.param), str(folder / "out")
    assert export.main([uri, "--out", out, "--licence", "CC-BY-NC-4.0"]) == 0
    return request.param, uri, out


# ---------------------------------------------------------------- laws


@pytest.mark.slow
def test_law_diffusers_loads_the_pipeline_and_its_unet_is_our_denoiser(exported):
    kind, uri, out = exported
    with heard() as said:
        pipe = loaded(out)
    other = [name for name, differs in (("unet", kind == "text"), ("vqvae", kind in ("kl-eps", "class", "text"))) if differs]
    assert sorted(text.split(":")[0] for text in said if "accelerate" not in text) == [f"Expected types for {x}" for x in other]
    text = (Path(out) / "README.md").read_text()
    assert [f"`{name}` is of {type(getattr(pipe, name)).__name__}" in text for name in ("unet", "vqvae")] == [
        name in other for name in ("unet", "vqvae")]
    assert type(pipe).__name__ == "LDMPipeline" and pipe.vqvae.config.sample_size == LOWRES
    assert pipe.vqvae.config.scaling_factor == 1 / SCALE and pipe.unet.config.sample_size == SIDE
    ours = infd.load_model(uri).denoiser
    z, t = torch.randn(2, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 400])
    here, there = condition(kind, ours)
    with torch.no_grad():
        # Our attention norms a map as it lies in memory, theirs a plain copy of it, which adds up in another order.
        torch.testing.assert_close(pipe.unet(z, t, **there).sample, ours(z, t, **here), rtol=1e-5, atol=1e-5)
        last = infd.load_model(uri, weights="last").denoiser(z, t, **here)
        assert (pipe.unet(z, t, **there).sample - last).abs().max() > 0.01       # it is the average that is exported


def test_law_the_loaded_scheduler_leads_the_same_noises_to_the_same_latents(exported):
    kind, uri, out = exported
    model, pipe = infd.load_model(uri), loaded(out)
    sampler: samplers.Sampler = "euler" if kind == "flow" else "ddim"
    wanted = samplers.scheduler(model.diffusion, sampler).config
    assert {**pipe.scheduler.config, "_use_default_values": 0} == {**wanted, "_use_default_values": 0} | {
        name: pipe.scheduler.config[name] for name in ("_class_name", "_diffusers_version")}
    told, seen = condition(kind, model.denoiser)
    seeds, found = [5, 6], []
    for index, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(1, 4, SIDE, SIDE, generator=generator)
        pipe.scheduler.set_timesteps(5)
        how = {} if kind == "flow" else {"eta": 1.0, "generator": generator}
        with torch.no_grad():
            for t in pipe.scheduler.timesteps:
                said = pipe.unet(z, t, **{name: value[index:index + 1] for name, value in seen.items()}).sample
                z = pipe.scheduler.step(said, t, z, **how).prev_sample
        found.append(z / pipe.vqvae.config.scaling_factor)
    ours = samplers.sample(model.denoiser, model.diffusion, seeds=seeds, side=SIDE, steps=5, sampler=sampler, **told)
    assert (ours[0] - ours[1]).abs().max() > 0.1
    torch.testing.assert_close(torch.cat(found), ours, rtol=1e-4, atol=1e-4)
    if not told:
        torch.testing.assert_close(torch.cat(found), model.latents(seeds, steps=5, sampler=sampler), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_job_card_runs_as_written_and_renders_as_ours(exported, monkeypatch):
    kind, uri, out = exported
    blocks = code_of(out)
    model = infd.load_model(uri)
    monkeypatch.chdir(out)
    found: dict[str, Any] = {}
    exec(blocks[0], found)
    z = model.latents([7], steps=50, sampler="euler" if kind == "flow" else "ddim")
    torch.testing.assert_close(found["z"], z, rtol=1e-4, atol=1e-4)
    wanted = model.field(z).render(384, 256)
    assert wanted.std() > 0.01
    torch.testing.assert_close(found["image"], wanted, rtol=0, atol=1e-4)
    assert (len(blocks) == 2) == (kind in ("kl-eps", "vq-v"))
    if len(blocks) == 2:
        exec(blocks[1], found)
        wanted = model.sample(7, steps=50, eta=0.0).render(384, 256)[0].permute(1, 2, 0).numpy()
        assert found["picture"].size == (256, 384)
        off = np.asarray(found["picture"]).astype(int) - (wanted / 2 + 0.5).clip(0, 1) * 255
        assert np.abs(off).max() <= 0.51


def test_job_card_is_right_about_what_diffusers_own_call_does(exported):
    kind, _, out = exported
    pipe, text = loaded(out), (Path(out) / "README.md").read_text()
    lacks = {"class": "no condition", "text": "no condition", "flow": "no flow"}.get(kind)
    assert (f"`LDMPipeline` knows {lacks}." in text) == ("itself does not work" in text) == (lacks is not None)
    if lacks:
        with pytest.raises((ValueError, AttributeError, TypeError)):
            pipe(num_inference_steps=1)
    else:
        grey = pipe(num_inference_steps=1, output_type="np").images
        assert grey.shape == (1, LOWRES, LOWRES, 3) and (grey == 0.5).all() and "plain grey" in text


def test_job_card_names_data_config_metrics_licences_and_condition(exported):
    kind, uri, out = exported
    card = ModelCard.load(Path(out) / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "cc-by-nc-4.0" and data["library_name"] == "diffusers" and "latent-diffusion" in data["tags"]
    sha256 = checkpoint.load(uri).files["model.safetensors"]["sha256"]
    for part in ("10 steps (20 samples)", "`s3://bucket/photos@7`", "trained for 30 steps: of checkpoint `s3://bucket/ae",
                 "`f00d`", "| val/loss | 0.25 |", "model.z_dim = 4", "diffusion.scale = 1.7", "autoencoder.widths = ", "abc123",
                 "BSD-3-Clause (trunk); torchvision \\| VGG16", "These weights: CC-BY-NC-4.0.", sha256,
                 "divided by 1.7 (`diffusion.scale`)", "what the autoencoder started from stands in its own checkpoint"):
        assert part in card.text, part
    assert "speed/" not in card.text and "loader." not in card.text
    assert ("0 `cats`, 1 `dogs`.\n2 stands for none: it was left out of 0.1 of the" in card.text) == (kind == "class")
    assert ("(S, 8), which goes into `unet`" in card.text) == (kind == "text")
    assert "but it was never left out" not in card.text
    names = [str(path.relative_to(out)) for path in Path(out).rglob("*") if path.is_file()]
    assert sorted(names) == sorted([
        "README.md", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors", "vqvae/config.json", "vqvae/diffusion_pytorch_model.safetensors",
        "vqvae/renderer.safetensors", *(["unet/no_caption.safetensors"] if kind == "text" else [])])
    for name in set(names) - {"README.md", "model_index.json"}:
        assert f"| `{name}` | `{storage.file_sha256(Path(out) / name)}` |" in card.text


def code_of(folder: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (Path(folder) / "README.md").read_text(), flags=re.DOTALL)


def test_law_the_pipelines_autoencoder_is_read_by_the_import(exported):
    """The folder of a pipeline is a source of `jobs/import_weights.py`, with the factor that it states."""
    _, uri, out = exported
    found, model = files.read(out), checkpoint.load(uri).model("autoencoder.")
    assert found.config is not None and found.config["scaling_factor"] == 1 / SCALE
    torch.testing.assert_close(found.tensors["encoder.conv_in.weight"], model["encoder.conv_in.weight"], rtol=0, atol=0)


def test_law_the_last_weights_are_exported_where_there_is_no_average(tmp_path):
    uri = saved(tmp_path)
    found = checkpoint.load(uri)
    model = {name: value for name, value in found.model().items() if not name.startswith("denoiser_average.")}
    checkpoint.save(uri, model=model, train_state={}, meta=found.meta)
    assert export.main([uri, "--out", str(tmp_path / "out")]) == 0
    weight = loaded(str(tmp_path / "out")).unet.conv_in.weight
    torch.testing.assert_close(weight.detach(), model["denoiser.net.conv_in.weight"], rtol=0, atol=0)


def test_job_an_import_says_what_it_came_from(tmp_path):
    """Of stage two as `jobs/import_weights.py` writes it: nothing is known of latents, runs or groups."""
    imported = {"step": 0, "g": 0, "snapshot": "", "metrics": {}, "origin": {"code": "infd", "licence": "mit"}, "groups": [],
                "preset": ""}
    uri = saved(tmp_path, changes=imported)
    found = checkpoint.load(uri)
    beside = {name: found.meta["autoencoder"][name] for name in ("config", "lowres_px", "patch_px")}
    for name in ("latents", "weights", "versions", "mlflow_run_id"):
        found.meta.pop(name)
    checkpoint.save(uri, model=found.model(), train_state={}, meta={**found.meta, "autoencoder": beside})
    assert export.main([uri, "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    for part in ("these weights were imported, not trained here", "The autoencoder came with it.", "| licence | mit |",
                 "None were measured", 'license: "other"'):
        assert part in text, part


def test_job_card_tells_what_the_autoencoder_started_from_where_it_is_known(tmp_path):
    facts = checkpoint.load(saved(tmp_path)).meta["autoencoder"]
    uri = saved(tmp_path, changes={"autoencoder": {**facts, "origin": {"code": "sd-vae", "licence": "openrail"}}})
    assert export.main([uri, "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| autoencoder: licence | openrail |" in text and "random weights" not in text


def test_job_card_says_so_where_a_caption_was_never_left_out(tmp_path):
    assert export.main([saved(tmp_path, "text", p_unconditional=0.0), "--out", str(tmp_path / "out")]) == 0
    assert "but it was never left out in training" in (tmp_path / "out" / "README.md").read_text()


def test_job_card_shows_a_class_where_none_was_never_trained(tmp_path):
    assert export.main([saved(tmp_path, "class", p_unconditional=0.0), "--out", str(tmp_path / "out")]) == 0
    assert "label = torch.tensor([0])" in code_of(str(tmp_path / "out"))[0]
    assert "but it was never left out in training" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_job_replicate_padding_on_request_says_what_to_do(tmp_path, monkeypatch, capsys):
    uri, out = saved(tmp_path, padding="replicate"), str(tmp_path / "out")
    assert export.main([uri, "--out", out]) == 2
    assert "model.padding is replicate" in capsys.readouterr().err and not Path(out).exists()
    assert export.main([uri, "--out", out, "--replicate-padding"]) == 0
    assert "**Padding.**" in (Path(out) / "README.md").read_text()
    monkeypatch.chdir(out)
    found: dict[str, Any] = {}
    exec(code_of(out)[0], found)
    wanted = infd.load_model(uri).sample(7, steps=50).render(384, 256)
    torch.testing.assert_close(found["image"], wanted, rtol=0, atol=1e-4)


# ---------------------------------------------------------------- writing, refusals


def test_error_a_folder_that_holds_anything_is_left_alone(tmp_path, capsys):
    uri, out = saved(tmp_path), tmp_path / "out"
    (out / "unet").mkdir(parents=True)
    (out / "unet" / "mine").write_text("mine")
    assert export.main([uri, "--out", str(out)]) == 1
    assert "it holds files (found 1 (mine))" in capsys.readouterr().err
    assert [str(path.relative_to(out)) for path in out.rglob("*")] == ["unet", "unet/mine"]


@pytest.mark.parametrize("at", ["model_index.json", "unet/config.json", "renderer.safetensors"])
def test_law_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, at):
    uri = saved(tmp_path)
    monkeypatch.setattr(storage, "put_atomic", failing(storage.put_atomic, at=at))
    assert export.main([uri, "--out", str(tmp_path / "out")]) == 1
    assert sorted(os.listdir(tmp_path)) == ["checkpoint"]


def failing(put: Callable[[str, bytes], None], *, at: str) -> Callable[[str, bytes], None]:
    def fail(address: str, data: bytes) -> None:
        if address.endswith(at):
            raise storage.StorageError("no space")
        put(address, data)
    return fail


def test_law_the_index_is_written_last(tmp_path, monkeypatch, capsys):
    """In a bucket nothing is renamed: without the index the folder does not load."""
    written, put = [], storage.put_atomic
    monkeypatch.setattr(storage, "put_atomic", lambda address, data: (written.append(address), put(address, data)))
    assert export.main([saved(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    assert written[-1].endswith("/model_index.json") and len(written) == 4 + 8
    found = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert found["_class_name"] == "LDMPipeline" and found["scheduler"] == ["diffusers", "DDIMScheduler"]


@pytest.mark.parametrize(("more", "arguments", "code", "message"), [
    ({}, ["--scaling-factor", "0.5"], 2, "whose diffusion.scale says by what its latents are divided"),
    ({"quantizer": "fsq", "fsq_levels": (4, 4, 4, 4)}, [], 1, "model.quantizer is fsq; diffusers has a place for kl"),
])
def test_error_what_does_not_go_into_the_layout(tmp_path, capsys, more, arguments, code, message):
    uri = saved(tmp_path, **more)
    assert export.main([uri, "--out", str(tmp_path / "out"), *arguments]) == code
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1 and not (tmp_path / "out").exists()


def test_error_a_checkpoint_that_is_not_whole(tmp_path, capsys):
    uri = saved(tmp_path)
    found = checkpoint.load(uri)
    model = found.model()
    model.pop("denoiser_average.net.conv_in.bias")
    checkpoint.save(uri, model=model, train_state={}, meta=found.meta)
    assert export.main([uri, "--out", str(tmp_path / "out")]) == 1
    assert "1 tensors missing (net.conv_in.bias)" in capsys.readouterr().err


@pytest.mark.slow
def test_job_writes_to_a_bucket(tmp_path, bucket, capsys):
    uri = saved(tmp_path)
    assert export.main([uri, "--out", f"{bucket}/out"]) == 0
    for info in storage.list_objects(f"{bucket}/out"):
        storage.get_file(info.uri, str(tmp_path / "fetched" / info.uri.removeprefix(f"{bucket}/out/")))
    model, pipe = infd.load_model(uri), loaded(str(tmp_path / "fetched"))
    torch.testing.assert_close(pipe.unet.conv_in.weight, model.denoiser.state_dict()["net.conv_in.weight"], rtol=0, atol=0)
    assert (tmp_path / "fetched" / "vqvae" / "renderer.safetensors").exists()
    capsys.readouterr()
    assert export.main([uri, "--out", f"{bucket}/out"]) == 1
    assert "it holds files" in capsys.readouterr().err
