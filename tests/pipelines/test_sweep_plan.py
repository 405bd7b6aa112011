"""What a sweep tries: values read from the command line, trials numbered, and the command that trains one by hand."""

import dataclasses
import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipelines.train
from infd.config import AutoencoderTrainingConfig, DiffusionTrainingConfig, LatentRunConfig, RunConfig
from infd.config_form import flat
from infd.errors import ConfigError
from infd.presets import AUTOENCODER, ldm_tiny, tiny
from jobs import sweep, train_ae, train_ldm
from pipelines.sweep_plan import Plan, SweepConfig, axis_of, command, differences


def plan(*vary: str, config=None, seeds=(0, 1), stage="ae", preset="tiny", **sweep_options) -> Plan:
    return Plan(uri="s3://b/sweeps/one", stage=stage, preset=preset, config=config or tiny(), vary=vary, seeds=tuple(seeds),
                sweep=SweepConfig(**sweep_options), snapshot="s3://b/data@3")


@pytest.mark.parametrize(("text", "choices"), [
    ("loss.gan=0,0.5", (0.0, 0.5)), ("model.quantizer=kl,fsq", ("kl", "fsq")), ("loop.compiled=true,False", (True, False)),
    ("model.widths=[16,16],[32,32]", ([16, 16], [32, 32])), ("optimizer.decay-from-step=1000,None", (1000, None)),
    ("loss.gan_from_step=7", (7,)), ("crop.balance_group=7,hr", ("7", "hr"))])
def test_values_are_read_as_their_field_has_them(text, choices):
    found = axis_of(text, tiny())
    assert found.choices == choices and [type(value) for value in found.choices] == [type(value) for value in choices]


@pytest.mark.parametrize(("text", "low", "high", "log", "whole"), [
    ("optimizer.lr=1e-5..1e-3", 1e-5, 1e-3, True, False), ("optimizer.lr=1e-5..1e-3:linear", 1e-5, 1e-3, False, False),
    ("loss.gan=0..1", 0, 1, False, False), ("loss.gan_from_step=1..9", 1, 9, False, True),
    ("optimizer.decay_from_step=10..1000", 10, 1000, True, True), ("loss.lpips=.1..0.5:log", 0.1, 0.5, True, False)])
def test_ranges_are_drawn_in_logarithms_where_they_span_a_factor_of_ten(text, low, high, log, whole):
    found = axis_of(text, tiny())
    assert (found.low, found.high, found.log, found.whole) == (low, high, log, whole)


@pytest.mark.parametrize(("vary", "message"), [
    (["loss.gna=0,1"], r"--vary loss.gna: unknown; not a field of AutoencoderTrainingConfig; did you mean loss.gan\?"),
    (["loss.gan"], "--vary loss.gan: expected FIELD=VALUE"),
    (["loss.gan=0,much"], "--vary loss.gan=much: expected float"),
    (["model.quantizer=kl,foo"], "--vary model.quantizer=foo: expected vq or kl or fsq"),
    (["loss.gan=0,0.5,0"], "--vary loss.gan=0.0: given twice"),
    (["loss.gan=0", "loss.gan=1"], "--vary loss.gan: given twice"),
    (["loop.seed=0,1"], "--vary loop.seed: .* --seeds"),
    (["loss.gan=0..1"], "--vary loss.gan: a range has no grid"),
    (["loss.gan=1..0"], "--vary loss.gan=1..0: the low end must be below"),
    (["loss.gan=0..1:log"], "a log range begins above 0"),
    (["model.quantizer=0..1"], "--vary model.quantizer=0..1: a range is of numbers"),
    (["loss.gan_from_step=1..9.5"], "expected whole numbers"),
    (["loss.gan=-1,0"], r"trial 0 \(loss.gan=-1\): loss.gan=-1.0: must not be negative"),
    (["model.z_dim=4,3", "model.quantizer=fsq"], r"trial 2 \(model.z_dim=3 model.quantizer=fsq\): model.fsq_levels")])
def test_error_names_field_value_and_rule(vary, message):
    with pytest.raises(ConfigError, match=message):
        plan(*vary).listed()


def test_error_a_search_that_has_nothing_or_too_little_to_choose():
    with pytest.raises(ConfigError, match="search=random: nothing to choose"):
        plan(search="random")
    with pytest.raises(ConfigError, match="samples=8: there are only 2 combinations"):
        plan("loss.gan=0,1", search="random")
    with pytest.raises(ConfigError, match="seeds=.*each once"):
        plan("loss.gan=0,1", seeds=(1, 1))


def test_a_grid_has_each_combination_once_for_every_seed():
    trials = plan("loss.gan=0,0.5", "model.quantizer=kl,fsq", seeds=(3, 5)).listed()
    told = [(trial.values["loss.gan"], trial.values["model.quantizer"], trial.seed) for trial in trials]
    assert told == [(gan, kind, seed) for gan in (0, 0.5) for kind in ("kl", "fsq") for seed in (3, 5)]
    assert [trial.number for trial in trials] == list(range(8)) and trials[5].run == "s3://b/sweeps/one/trials/005"
    assert all(trial.config.loop.seed == trial.seed and trial.config.loss.gan == trial.values["loss.gan"] for trial in trials)


@given(samples=st.integers(1, 12), more=st.integers(0, 12), seed=st.integers(0, 9))
def test_law_random_points_lie_in_their_ranges_and_depend_on_their_number_alone(samples, more, seed):
    vary = ("optimizer.lr=1e-5..1e-3", "loss.gan_from_step=2..9", "model.quantizer=kl,fsq")
    few, many = (plan(*vary, seeds=(0,), search="random", search_seed=seed, samples=count).listed()
                 for count in (samples, samples + more))
    assert [trial.values for trial in few] == [trial.values for trial in many[:samples]]
    for trial in many:
        assert 1e-5 <= trial.values["optimizer.lr"] <= 1e-3 and trial.values["loss.gan_from_step"] in range(2, 10)
        assert trial.values["model.quantizer"] in ("kl", "fsq")
    assert len({json.dumps(trial.values) for trial in many}) == samples + more


def test_random_points_are_spread_over_the_range():
    values = [trial.values["optimizer.lr"] for trial in plan("optimizer.lr=1e-5..1e-3", seeds=(0,), search="random",
                                                             samples=200).listed()]
    assert 70 < sum(value < 1e-4 for value in values) < 130        # half of them below the middle, in logarithms
    whole = [trial.values["loss.gan_from_step"] for trial in plan("loss.gan_from_step=1..3", seeds=(0,), search="random",
                                                                  samples=3).listed()]
    assert sorted(whole) == [1, 2, 3]


def test_a_plan_comes_back_from_its_record():
    made = plan("optimizer.lr=1e-5..1e-3", "model.widths=[16,16],[32,32]", search="random", samples=3, metric="val/psnr")
    back = Plan.of(made.uri, json.loads(json.dumps(made.record())))
    assert back == made and not differences(back, made) and back.listed() == made.listed()
    assert made.sweep.direction == "max" and plan("loss.gan=0,1").sweep.direction == "min"


def test_differences_name_everything_that_is_not_the_same_and_nothing_else():
    base = tiny()
    threads = dataclasses.replace(base, loader=dataclasses.replace(base.loader, threads=7))
    steps = dataclasses.replace(base, loop=dataclasses.replace(base.loop, steps=2500))
    assert differences(plan("loss.gan=0,1"), plan("loss.gan=0,1", config=threads)) == []
    found = differences(plan("loss.gan=0,1"), plan("loss.gan=0,2", config=steps, seeds=(0, 2), scheduler="asha"))
    assert found == ["loop.steps was 2000 and is 2500", "scheduler was none and is asha", "seeds was [0, 1] and is [0, 2]",
                     "vary was ['loss.gan=0,1'] and is ['loss.gan=0,2']"]


# ---------------------------------------------------------------- the command of a trial


def trained_by(words: list[str], monkeypatch) -> tuple[str, object, object]:
    """What the job of the command `words` would train: preset, config, where."""
    told: list = []

    def take(*args: object, **more: object) -> str:
        told.extend(args)
        return "s3://nothing"

    monkeypatch.setattr(pipelines.train, "train_autoencoder", take)
    monkeypatch.setattr(pipelines.train, "train_diffusion", take)
    assert words[0] == "python"
    assert {"jobs/train_ae.py": train_ae, "jobs/train_ldm.py": train_ldm}[words[1]].main(words[2:]) == 0
    return told[0], told[1], told[2]


@pytest.mark.parametrize("vary", [
    ["loss.gan=0,0.25", "model.quantizer=fsq,kl"], ["model.widths=[16,16],[32,32]", "model.norm_groups=8"],
    ["loop.compiled=true,false", "crop.flip=true"], ["optimizer.decay_to_step=None", "optimizer.decay_from_step=null"],
    ["crop.balance_group=hr,a group of mine"], ["optimizer.lr=1.5e-05,3e-4"]])
def test_law_the_command_trains_the_config_of_the_trial(vary, monkeypatch):
    made, where = plan(*vary), RunConfig(dataset="s3://b/data", workers=2, device="cpu", experiment="mine")
    for trial in made.listed():
        words = shlex.split(shlex.join(command(trial, made, where)))
        preset, config, place = trained_by(words, monkeypatch)
        assert preset == "tiny" and flat(config) == flat(trial.config)
        assert place == dataclasses.replace(where, dataset="s3://b/data@3", run=trial.run)


def test_law_the_command_of_stage_two_and_of_a_preset_of_ones_own(monkeypatch):
    made = dataclasses.replace(plan("diffusion.objective=eps,flow", "flip=true,false", config=ldm_tiny(), stage="ldm"),
                               latents={"address": "s3://b/latents", "sha256": "0"}, start_from="s3://b/start")
    for trial in made.listed():
        _, config, place = trained_by(command(trial, made, LatentRunConfig(latents="s3://b/latents")), monkeypatch)
        assert isinstance(config, DiffusionTrainingConfig) and flat(config) == flat(trial.config)
        assert place == LatentRunConfig(latents="s3://b/latents", run=trial.run, start_from="s3://b/start")
    base = AUTOENCODER["small"]()
    own = dataclasses.replace(base, crop=dataclasses.replace(base.crop, r_max=2000))
    made = plan("loss.gan=0,0.5", config=own, preset="mine")
    trial = made.listed()[3]
    preset, config, _ = trained_by(command(trial, made, RunConfig(dataset="s3://b/data")), monkeypatch)
    assert preset == "small" and isinstance(config, AutoencoderTrainingConfig) and flat(config) == flat(trial.config)


# ---------------------------------------------------------------- the job's words


def test_job_takes_the_options_of_training_and_its_own():
    stage, args = sweep.parsed(["ae", "tiny", "--dataset", "d", "--vary", "loss.gan=0,1", "--vary", "loss.l1=1,2", "--seeds",
                                "0", "1", "--loop.steps", "20", "--workers", "2", "--search", "random", "--metric", "val/psnr",
                                "--concurrent", "3", "--show", "7"])
    assert stage == "ae" and args.vary == ("loss.gan=0,1", "loss.l1=1,2") and args.seeds == (0, 1)
    assert args.config.loop.steps == 20 and args.run.workers == 2 and args.show == 7 and args.concurrent == 3
    assert args.search == SweepConfig(search="random", metric="val/psnr")
    stage, args = sweep.parsed(["ldm", "tiny", "--latents", "l", "--sweep", "s"])
    assert stage == "ldm" and args.run.latents == "l" and args.sweep == "s" and args.config == ldm_tiny()


def test_job_takes_a_preset_of_ones_own(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"base": "tiny", "crop.r_max": 300}')
    _, args = sweep.parsed(["ae", str(file), "--dataset", "d"])
    assert args.preset == "mine" and args.config.crop.r_max == 300


@pytest.mark.parametrize("argv", [[], ["vae"], ["ae", "huge"], ["ae", "tiny", "--samples", "0"]])
def test_error_usage(argv):
    try:
        assert sweep.main(argv) == 2
    except SystemExit as end:
        assert end.code == 2
