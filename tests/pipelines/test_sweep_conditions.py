"""What a sweep's metric depends on: the fields that change it are found, and nothing is ranked across them."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch
from small_sweeps import begun, summed, wish, write_photos
from training_batches import random_batch

from infd.config import (
    CropConfig,
    DenoiserConfig,
    DiffusionConfig,
    DiffusionTrainingConfig,
    DiscriminatorConfig,
    LoopConfig,
    LossConfig,
)
from infd.config_form import flat
from infd.data.order import validation_samples
from infd.data.snapshot import open_dataset
from infd.diffusion import objectives
from infd.errors import ConfigError
from infd.presets import ldm_tiny, tiny
from infd.training.autoencoder import AutoencoderStage
from infd.training.latent_diffusion import DiffusionStage, LatentBatch
from infd.training.world import World
from pipelines import sweep, sweep_report, sweep_summary, sweep_trials
from pipelines.report_tables import validated_with
from pipelines.sweep_conditions import caution, check, fields
from pipelines.sweep_plan import Plan, SweepConfig


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    return write_photos(str(tmp_path_factory.mktemp("conditions") / "data"))


def plan(*vary: str, uri: str = "s3://b/sweeps/one", stage="ae", config=None, seeds=(0,), **sweep_options) -> Plan:
    return Plan(uri=uri, stage=stage, preset="tiny", config=config or (tiny() if stage == "ae" else ldm_tiny()), vary=vary,
                seeds=seeds, sweep=SweepConfig(**sweep_options), snapshot="s3://b/data@3",
                latents={"address": "s3://b/latents", "sha256": "0"} if stage == "ldm" else None)


# ---------------------------------------------------------------- what validation depends on


CROP = CropConfig(patch_px=32, lowres_px=64, r_min=64, r_max=256)
CROPS = {"patch_px": 48, "lowres_px": 32, "r_min": 80, "r_max": 200, "p_whole": 0.5, "p_max": 0.5, "p_max_late": 0.5,
         "late_from_step": 3, "balance_group": "a", "balance_p": 0.25, "view": "random", "flip": True}


def test_law_the_crops_of_validation_are_those_of_the_fields_that_are_told(dataset):
    manifest = open_dataset(dataset).manifest
    assert CROPS.keys() == {field.name for field in dataclasses.fields(CropConfig)}
    told = validated_with(flat(dataclasses.replace(tiny(), crop=CROP)), "val/psnr")
    plain = validation_samples(manifest, CROP, 8, 0)
    assert len(plain) == 8 and "loop.validate_samples" in told and validation_samples(manifest, CROP, 9, 0) != plain
    for name, value in CROPS.items():
        late = {"late_from_step": 3} if name == "p_max_late" else {}
        changed = dataclasses.replace(CROP, **{name: value}, **late)
        same = [sample[1:] for sample in validation_samples(manifest, changed, 8, 0)] == [sample[1:] for sample in plain]
        patch = changed.patch_px == CROP.patch_px
        assert (same and patch) == (f"crop.{name}" not in told), name


LOSSES = {"l1": 2.0, "lpips": 0.5, "lpips_net": "alex", "quantizer": 0.5, "gan": 0.1, "gan_from_step": 7,
          "adaptive_gan_weight": False, "fresh_fake": True, "gan_loss": "relativistic", "gradient_penalty": 0.1,
          "scale_equivariance": 0.1}
"""All but query_pad_px, which changes what is rendered, not how it is judged."""


@pytest.mark.parametrize("lpips", [0.0, 1.0])
def test_law_the_loss_weights_that_change_a_validation_metric_are_told(lpips):
    assert LOSSES.keys() == {field.name for field in dataclasses.fields(LossConfig)} - {"query_pad_px"}
    base = dataclasses.replace(tiny(), loss=LossConfig(lpips=lpips, gan=0.75), discriminator=DiscriminatorConfig(norm="group"))
    stage = AutoencoderStage(base, world=World(), lpips=None, validation=[random_batch(base, 0)])

    def figures(**changes: object) -> dict[str, float]:
        stage.config = dataclasses.replace(base, loss=dataclasses.replace(base.loss, **changes))  # pyright: ignore
        power = {"vgg": 1, "alex": 2}[stage.config.loss.lpips_net]
        stage.lpips = (lambda a, b: (a - b).abs().pow(power).mean((1, 2, 3))) if stage.config.loss.lpips else None
        return stage.validate()

    plain, octave = figures(), f"val/loss_r_to_{base.crop.r_max}"
    assert octave in plain
    for name, value in LOSSES.items():
        found = figures(**{name: value})
        for metric in ("val/loss", "val/psnr", "val/l1", octave, *(["val/lpips"] if lpips else [])):
            told = validated_with(flat(base), metric)
            assert (found.get(metric) != plain[metric]) == (f"loss.{name}" in told), (metric, name)


NOISES = {"objective": "v", "schedule": "scaled_linear", "beta_from": 0.01, "beta_to": 0.1, "timesteps": 500,
          "min_snr_gamma": 0.5, "flow_mean": 1.0, "flow_std": 2.0, "p_unconditional": 0.5, "scale": 3.0}


@pytest.mark.parametrize("objective", ["eps", "v", "flow"])
def test_law_the_diffusion_settings_that_change_the_validation_loss_are_told(objective):
    assert NOISES.keys() == {field.name for field in dataclasses.fields(DiffusionConfig)}
    base = DiffusionTrainingConfig(
        model=DenoiserConfig(widths=(8, 16), blocks=1, head_dim=8, norm_groups=4, z_dim=2, condition="class", classes=3),
        diffusion=DiffusionConfig(objective=objective), loop=LoopConfig(steps=9, batch=4))
    batch = LatentBatch(0, torch.arange(4), torch.randn(4, 2, 8, 8), labels=torch.tensor([0, 1, 2, 0]))
    stage = DiffusionStage(base, world=World(), validation=[batch])
    for parameter in stage.shown.parameters():
        torch.nn.init.normal_(parameter, std=0.1)                   # else it says nothing of what it sees

    def figure(**changes: object) -> float:
        stage.config = dataclasses.replace(base, diffusion=dataclasses.replace(base.diffusion, **changes))  # pyright: ignore
        stage.objective = objectives.objective(stage.config.diffusion)
        return stage.validate()["val/loss"]

    plain, told = figure(), validated_with(flat(base), "val/loss")
    for name, value in NOISES.items():
        value = "eps" if (name, objective) == ("objective", "v") else value
        assert (figure(**{name: value}) != plain) == (f"diffusion.{name}" in told), name


# ---------------------------------------------------------------- which fields of a sweep


@pytest.mark.parametrize(("vary", "metric", "found"), [
    (["loss.l1=1,2"], "val/loss", ["loss.l1"]), (["loss.l1=1,2"], "val/psnr", []), (["loss.l1=1,2"], "eval/psnr.256", []),
    (["loss.gan=0,0.5", "optimizer.lr=1e-3,1e-4", "model.quantizer=kl,vq"], "val/loss", []),
    (["loss.gan=0,0.5"], "train/loss", ["loss.gan"]), (["loss.gan=0,0.5"], "train/psnr", []),
    (["crop.r_max=512,600", "loss.l1=1,2"], "val/loss", ["crop.r_max", "loss.l1"]),
    (["crop.r_max=512,600"], "val/psnr", ["crop.r_max"]), (["crop.r_max=512"], "val/psnr", []),
    (["crop.p_max=0,0.5", "crop.p_whole=0,0.1", "crop.flip=true,false"], "val/loss", []),
    (["crop.p_max=0,0.5"], "train/loss", ["crop.p_max"]),
    (["loss.lpips_net=vgg,alex", "loss.lpips=0"], "val/loss", []),
    (["loss.lpips_net=vgg,alex", "loss.lpips=0,1"], "val/loss", ["loss.lpips_net", "loss.lpips"]),
    (["evaluation.photos=8,9", "evaluation.metrics=[\"psnr\"],[\"ssim\"]"], "eval/psnr.256", ["evaluation.photos"]),
    (["loop.validate_samples=8,9"], "val/loss", ["loop.validate_samples"])])
def test_the_fields_that_a_metric_depends_on_are_found(vary, metric, found):
    made = plan(*vary, metric=metric)
    assert list(fields(made, made.listed())) == found and bool(caution(made, made.listed())) == bool(found)


def test_the_fields_of_stage_two_are_found():
    made = plan("diffusion.objective=eps,flow", "optimizer.lr=1e-4,1e-3", stage="ldm")
    assert fields(made, made.listed()) == ("diffusion.objective",)
    assert "say --evaluation.every STEPS and --metric with a figure that it makes" in caution(made, made.listed())
    made = plan("diffusion.p_unconditional=0", "model.blocks=1,2", stage="ldm")
    assert not fields(made, made.listed())


@pytest.mark.parametrize(("vary", "options", "message"), [
    (["loss.l1=0.5..2"], {"search": "optuna"},
     "search=optuna: it goes by val/loss, which depends on loss.l1; .*--metric val/psnr with the same command; or take "
     "--search grid or random"),
    (["loss.l1=1,2"], {"scheduler": "asha"}, "scheduler=asha: it goes by val/loss, which depends on loss.l1; .*no --scheduler"),
    (["crop.r_max=300..600"], {"search": "optuna", "metric": "val/psnr"},
     "val/psnr, which depends on crop.r_max; .*--evaluation.every STEPS and --metric with .* such as eval/psnr.256"),
    (["loss.lpips=0.1..1", "optimizer.lr=1e-4..1e-3"], {"search": "random", "scheduler": "asha"}, "depends on loss.lpips;")])
def test_error_a_search_that_would_go_by_figures_that_do_not_compare(dataset, tmp_path, monkeypatch, vary, options, message):
    monkeypatch.setattr(sweep, "required_weights", lambda config: None)
    monkeypatch.setattr(sweep, "run_trials", lambda *_: pytest.fail("trials began"))
    with pytest.raises(ConfigError, match=message):
        sweep.run_sweep(wish(dataset, str(tmp_path / "sweep"), *vary, **options))
    assert not (tmp_path / "sweep").exists()


def test_searches_by_a_metric_that_compares_and_grids_by_any_are_not_refused():
    for options in ({"scheduler": "asha", "metric": "val/psnr"}, {"scheduler": "none"}):
        made = plan("loss.l1=1,2", **options)
        check(made, made.listed())


# ---------------------------------------------------------------- what is said


def test_a_sweep_says_before_it_starts_that_its_trials_do_not_compare(dataset, tmp_path, monkeypatch, caplog):
    before: list[str] = []
    monkeypatch.setattr(sweep, "run_trials", lambda *_: before.extend(record.getMessage() for record in caplog.records))
    for field, said in (("loss.l1", True), ("loss.quantizer", False)):
        caplog.clear()
        before.clear()
        with caplog.at_level(logging.INFO):
            sweep.run_sweep(wish(dataset, str(tmp_path / field), f"{field}=1,2"))
        assert any("trials do not all compare by val/loss, which depends on loss.l1: its figures compare within each of 2 "
                   "conditions alone; to rank all, say --metric val/psnr with the same command, which trains nothing again"
                   in line for line in before) == said


def test_nothing_is_best_across_conditions(tmp_path):
    made = plan("loss.l1=1,2", "optimizer.lr=1e-3,1e-4", uri=str(tmp_path), seeds=(0, 1))
    found = summed(made, [0.2, 0.3, 0.4, 0.5, 0.9, 0.8, 0.7, 0.8])
    assert found.best_point is None and found.best_trial is None
    one, two = found.conditions
    assert one.values == {"loss.l1": 1.0} and one.best_point.point == 0 and one.best_trial.trial.number == 0
    assert two.values == {"loss.l1": 2.0} and two.best_point.point == 3 and two.best_trial.trial.number == 6
    text, page = sweep_summary.text(found), sweep_summary.markdown(found)
    assert [line.split()[0] + line.split("best")[1] for line in text.split("\n") if line.endswith(("=1", "=2"))
            and "best with" in line] == ["1 with loss.l1=1", "2 with loss.l1=2", "000 with loss.l1=1", "006 with loss.l1=2"]
    assert "best trial 006 with loss.l1=2: " in text and "\nmind: trials do not all compare by val/loss" in text
    assert "Best trial 000 with loss.l1=1: `" in page and "\nMind: trials do not all compare by val/loss" in page
    told = json.loads(Path(sweep_summary.write(found)).read_text())
    assert told["best_trial"] is None and told["best_point"] is None and "loss.l1" in told["caution"]
    assert told["conditions"][1] == {"values": {"loss.l1": 2.0}, "ranked": [3, 2], "best_point": 3, "best_trial": 6}


def test_a_condition_of_one_trial_has_no_best(tmp_path):
    found = summed(plan("loss.l1=1,2", uri=str(tmp_path)), [0.2, 0.1])
    assert [one.best_trial for one in found.conditions] == [None, None] and "best" not in sweep_summary.text(found)
    same = summed(plan("optimizer.lr=1,2", uri=str(tmp_path)), [0.2, 0.1])
    assert same.best_trial.trial.number == 1 and not same.caution and "mind" not in sweep_summary.text(same)


def test_the_report_ranks_within_conditions(tmp_path):
    made = plan("loss.l1=1,2", "optimizer.lr=1e-3,1e-4", uri=str(tmp_path))
    for trial, loss in zip(made.listed(), (0.2, 0.3, 0.9, 0.8), strict=True):
        begun(trial, **{"val/loss": loss, "val/psnr": 20 + loss})
    found = sweep.reported(sweep_summary.summary(made, sweep_trials.fates(made.listed(), "val/loss")))
    said = sweep_report.verdict(found)
    assert said[0].startswith("Trials do not all compare by val/loss, which depends on loss.l1: its figures")
    assert said[1].startswith("l1=1 lr=0.001 is best of the points with loss.l1=1: val/loss 0.2 (1 seed), against 0.3")
    assert said[2].startswith("Of the trials with loss.l1=1 000 is best, with 0.2:")
    assert said[3].startswith("l1=2 lr=0.0001 is best of the points with loss.l1=2: val/loss 0.8 (1 seed), against 0.9")
    tree = json.loads((tmp_path / "report" / "report.json").read_text())
    titles = [column["title"] for column in tree["columns"]]
    assert sorted(titles) == ["training's val PSNR, dB", "training's val loss", "training's val loss"]
    assert tree["verdict"] == said and said[0] in Path(found.page).read_text()
