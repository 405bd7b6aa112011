"""Evaluations in blocks: the library's numbers to the bit, kept when killed, and the command with its errors."""

import dataclasses
import hashlib
import json
import math
import re
import shlex
import weakref
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import tyro
from evaluation.checkpoints import autoencoder_checkpoint, diffusion_checkpoint, encoded_latents, photographs
from evaluation.degraded import noisy
from evaluation.folders import changed, folder
from evaluation.networks import random_network
from pictures import encoded, picture
from torch import nn

from infd import weights
from infd.evaluation import collect, pixels, protocols
from infd.evaluation import evaluate as library
from infd.evaluation.crops import OneCrop, RandomScales, WholeImages
from infd.evaluation.errors import EvaluationError
from infd.evaluation.features import NetworkConfig
from infd.evaluation.kid import KidConfig
from infd.evaluation.protocols import Consistency, Distances, Pairs
from infd.evaluation.result import Result, read_result
from jobs import evaluate as job
from pipelines import evaluate as pipeline
from pipelines import evaluation_work as units
from pipelines.evaluation_wishes import ProtocolName, Wish, protocols_of
from pipelines.evaluation_work import Engine, SourceSpec, engine, open_spec
from pipelines.report import report

NETWORK = random_network()
KID = KidConfig(subsets=4, subset_size=10)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("sets")
    real = folder(root / "real", [(48, 48)] * 24)
    return str(real), str(changed(root / "noisy", real, lambda image: noisy(image, 2)))


@pytest.fixture(autouse=True)
def random_lpips(monkeypatch) -> None:
    """LPIPS of random weights, which need no file; blocks small enough that there are several."""

    class Random:
        sha256 = "0" * 64

        def __init__(self, net: str, **_: object) -> None:
            self.net = net

        def __call__(self, a: np.ndarray, b: np.ndarray) -> float:
            return float(np.square(NETWORK(a[None]) - NETWORK(b[None])).sum())

    monkeypatch.setattr(pixels, "LpipsMetric", Random)
    monkeypatch.setattr(collect, "BLOCK", 7)
    monkeypatch.setattr(pipeline, "PAIRS_A_BLOCK", 5)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory) -> NetworkConfig:
    """A network in a TorchScript file, which other processes can open."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 6, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    path = tmp_path_factory.mktemp("network") / "network.pt"
    torch.jit.trace(module, torch.zeros(1, 3, 32, 32)).save(str(path))  # pyright: ignore
    return NetworkConfig(name="torchscript", weights=str(path), label="texture", input_px=32,
                         sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def here(**_: object):
    return engine(ray=False, workers=0, device="cpu")


def evaluated(protocol, addresses, out: Path, **more) -> Result:
    with here() as made:
        return pipeline.evaluate(protocol, [SourceSpec(uri=uri) for uri in addresses], out=str(out), engine=made, **more)[1]


# ---------------------------------------------------------------- numbers


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [
    Distances(name="pfid_infd", crops=OneCrop(p=32, r=48), metrics=("frechet", "kid", "precision_recall"), kid=KID,
              seeds=(0, 3), batch=4),
    Distances(name="frechet", crops=WholeImages()),
    Distances(name="pfid_anyres", crops=RandomScales(p=24, r_min=24, count=24), ddof=0),
    Pairs(name="reconstruction", metrics=("psnr", "ssim", "lpips_alex"), sizes=(32, 48)),
    Pairs(name="super_resolution", metrics=("psnr", "psnr_y"), psnr_pool=8),
    protocols.spectra(32, 48),
], ids=lambda protocol: protocol.name)
def test_law_the_result_is_the_librarys_byte_for_byte(sets, tmp_path, protocol):
    network = NETWORK if isinstance(protocol, Distances) else None
    expected = library.evaluate(protocol, *sets, network=network)
    assert evaluated(protocol, sets, tmp_path, network=network).to_json() == expected.to_json()
    [written] = tmp_path.glob("*/result.json")
    assert written.read_bytes() == expected.to_json() and written.parent.name.startswith(protocol.name)


def test_law_consistency_of_folders_is_the_librarys(tmp_path):
    roots = [str(folder(tmp_path / str(side), [(side, side)] * 7)) for side in (32, 64)]
    found = evaluated(Consistency(), roots, tmp_path / "out")
    assert found.to_json() == library.evaluate(Consistency(), *roots).to_json()
    assert len(found.items) == 7 and len(list((tmp_path / "out" / "work").glob("values-*"))) == 2


def test_law_a_killed_run_goes_on_from_the_blocks_that_are_done(sets, tmp_path):
    protocol = Distances(name="pfid_infd", crops=OneCrop(p=32, r=48))
    counted: list[str] = []

    def dies(settings, tasks):
        units.run_here(settings, tasks[:3])
        raise KeyboardInterrupt

    def counts(settings, tasks):
        counted.extend(task["out"] for task in tasks if task["kind"] == "features")
        units.run_here(settings, tasks)

    specs = [SourceSpec(uri=uri) for uri in sets]
    with pytest.raises(KeyboardInterrupt):
        pipeline.evaluate(protocol, specs, out=str(tmp_path), engine=Engine(device="cpu", run=dies), network=NETWORK)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    assert len(kept) == 3 and all(path.name.startswith("features") for path in kept)
    assert not list(tmp_path.glob("*/result.json"))
    _, found = pipeline.evaluate(protocol, specs, out=str(tmp_path), engine=Engine(device="cpu", run=counts), network=NETWORK)
    assert found.to_json() == library.evaluate(protocol, *sets, network=NETWORK).to_json()
    assert len(counted) == 2 * 4 - 3 and all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    counted.clear()
    pipeline.evaluate(protocol, specs, out=str(tmp_path), engine=Engine(device="cpu", run=counts), network=NETWORK)
    assert not counted


def test_law_one_block_is_in_memory_where_moments_suffice(sets, tmp_path, monkeypatch):
    alive: list[weakref.ref] = []
    most = []
    read = units.read_features

    def watched(uri: str) -> np.ndarray:
        most.append(sum(ref() is not None for ref in alive))
        found = np.array(read(uri))
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr(units, "read_features", watched)
    evaluated(Distances(name="frechet", crops=WholeImages()), sets, tmp_path, network=NETWORK)
    assert len(alive) == 8 and max(most) <= 1
    alive.clear()
    most.clear()
    evaluated(Distances(name="kid", crops=WholeImages(), metrics=("kid",), kid=KID), sets, tmp_path, network=NETWORK)
    assert max(most) >= 3                              # of four blocks a side


def test_law_the_cache_of_the_library_is_shared_both_ways(sets, tmp_path, monkeypatch):
    protocol, cache = Distances(name="pfid_infd", crops=OneCrop(p=32, r=48)), str(tmp_path / "cache")
    library.evaluate(protocol, *sets, network=NETWORK, cache=cache)
    files = {path.name for path in (tmp_path / "cache").iterdir()}
    found = evaluated(protocol, sets, tmp_path / "one", network=NETWORK, cache=cache)
    assert found.to_json() == library.evaluate(protocol, *sets, network=NETWORK).to_json()
    assert len(list((tmp_path / "one" / "work").glob("features-*"))) == 4          # of the judged side alone
    evaluated(protocol, sets, tmp_path / "two", network=NETWORK, cache=str(tmp_path / "ours"))
    assert {path.name for path in (tmp_path / "ours").iterdir()} == files
    monkeypatch.setattr(collect, "compute", lambda source, *_, **__: pytest.fail("computed") if source.uri == sets[0] else None)
    with pytest.raises(AttributeError):                                             # the judged side alone is computed
        library.evaluate(protocol, *sets, network=NETWORK, cache=str(tmp_path / "ours"))


# ---------------------------------------------------------------- the command


def run(capsys, *arguments: object) -> tuple[list[Result], str, list[Path]]:
    assert job.main([str(one) for one in (*arguments, "--no-ray", "--device", "cpu")]) == 0
    captured = capsys.readouterr()
    addresses = captured.out.split()
    return [read_result(address) for address in addresses], captured.err, [Path(address).parent for address in addresses]


def scripted_arguments(scripted: NetworkConfig) -> list[str]:
    return ["--network", "torchscript", "--network-weights", scripted.weights, "--network-sha256", scripted.sha256,
            "--network-label", scripted.label, "--network-input-px", "32"]


@pytest.mark.slow
def test_job_reconstruction_of_a_run_looks_at_val_and_lands_in_the_run(tmp_path, capsys):
    dataset = photographs(tmp_path / "data")
    held_out = int((dataset.manifest.split == 1).sum())
    model = autoencoder_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000001")
    (tmp_path / "run" / "run.json").write_text("{}")
    [found], told, [where] = run(capsys, "reconstruction", dataset.uri, model, "--sizes", "32", "64")
    assert 0 < held_out < len(dataset) and found.counts == {"pairs": held_out}
    assert found.sources[0]["split"] == "val" and found.sources[1]["kind"] == "reconstructions"
    assert where.parent == tmp_path / "run" / "evaluations"
    assert {one.name for one in found.metrics} == {f"{name}@{size}" for name in ("psnr", "ssim", "lpips_vgg", "lpips_alex")
                                                   for size in (32, 64)}
    assert re.search(r"psnr@64 +\d+\.\d+", told) and "higher" in told
    made = json.loads((where / "pictures.json").read_text())
    values = next(one.values for one in found.metrics if one.name == "lpips_vgg@64")
    assert made["worst"][0]["value"] == max(values) and made["best"][0]["value"] == min(values)
    assert all((where / "pictures" / pair[side]).exists() for pair in made["worst"] + made["crops"] for side in "ab")


def test_job_upscales_are_multiples_of_what_the_encoder_sees(tmp_path, capsys):
    dataset = photographs(tmp_path / "data")
    model = autoencoder_checkpoint(tmp_path / "model")
    common = (dataset.uri, model, "--metrics", "psnr", "ssim", "--out", tmp_path / "out")
    found, _, _ = run(capsys, "super_resolution", *common, "--upscales", "1.5", "2", "--pool", "2")
    assert [[one.name for one in result.metrics] for result in found] == [["psnr@48", "ssim@48"], ["psnr@64", "ssim@64"]]
    assert [result.sources[1]["through_px"] for result in found] == [48, 64]
    assert {result.choices["resample"] for result in found} == {"bicubic"} and found[0].metrics[0].over == "pools"
    [whole], _, _ = run(capsys, "reconstruction", *common, "--upscales", "1.5", "2")
    assert [one.name for one in whole.metrics] == ["psnr@48", "ssim@48", "psnr@64", "ssim@64"]
    assert whole.sources[1]["through_px"] == 0 and whole["psnr@48"] != found[0]["psnr@48"]


def test_job_latents_are_judged_as_their_autoencoders_reconstructions(tmp_path, capsys):
    dataset = photographs(tmp_path / "data")
    model = autoencoder_checkpoint(tmp_path / "model")
    latents = encoded_latents(tmp_path / "latents", dataset, model)
    common = ("--sizes", "48", "--metrics", "psnr", "--out", tmp_path / "out")
    [found], _, _ = run(capsys, "reconstruction", dataset.uri, latents, *common)
    [wanted], _, _ = run(capsys, "reconstruction", dataset.uri, model, *common)
    assert found.counts == wanted.counts and found.items == wanted.items and found.sources[1]["kind"] == "latents"
    assert found["psnr@48"] == pytest.approx(wanted["psnr@48"], abs=1e-3)
    assert job.main(["super_resolution", dataset.uri, latents, "--sizes", "48", "--no-ray"]) == 2
    assert "latents were made of whole photos" in capsys.readouterr().err


def test_job_bytes_are_made_as_the_published_scripts_do_where_that_is_asked_for(tmp_path, capsys):
    dataset = photographs(tmp_path / "data")
    model = autoencoder_checkpoint(tmp_path / "model")
    common = ("reconstruction", dataset.uri, model, "--sizes", "48", "--metrics", "psnr", "--out", tmp_path / "out")
    found = [run(capsys, *common, *more)[0][0] for more in ((), ("--to-8-bits", "down"))]
    assert [one.sources[1]["to_8_bits"] for one in found] == ["nearest", "down"]
    assert found[0]["psnr@48"] != found[1]["psnr@48"] == pytest.approx(found[0]["psnr@48"], abs=0.2)


def test_error_a_folder_that_changes_while_it_is_evaluated(sets, tmp_path):
    """A worker lists it for itself: another list would be other images under the same places."""
    root = folder(tmp_path / "judged", [(48, 48)] * 4)
    spec = pipeline.pinned(SourceSpec(uri=str(root)), open_spec(SourceSpec(uri=str(root))))
    assert len(open_spec(spec)) == 4
    (root / "a-new-one.png").write_bytes((root / "img001.png").read_bytes())
    with pytest.raises(EvaluationError, match="its files changed while they were evaluated"):
        open_spec(spec)


def test_job_patches_of_seeds_with_a_network_of_ones_own(tmp_path, capsys, scripted):
    photographs(tmp_path / "data")
    model = diffusion_checkpoint(tmp_path / "model")
    common = ("--images", "9", "--steps", "2", "--out", tmp_path / "out", *scripted_arguments(scripted))
    found, _, folders = run(capsys, "pfid_infd", tmp_path / "data", model, "--patch", "32/64", "64/64", *common)
    assert [one.metrics[0].name for one in found] == ["frechet_32/64[texture]", "frechet_64/64[texture]"]
    assert found[0].counts == {"a": 12, "b": 9} and found[0].choices["crops.prepare"] == "center-lanczos"
    assert found[0].sources[1]["seeds"] == "0 … 8" and len(set(folders)) == 2
    assert len(list((tmp_path / "out" / "work").glob("latents-*"))) == 1            # both have the same seeds
    again, _, same = run(capsys, "pfid_infd", tmp_path / "data", model, "--patch", "32/64", *common)
    assert again[0].to_json() == found[0].to_json() and same == folders[:1]
    anew, _, _ = run(capsys, "pfid_infd", tmp_path / "data", model, "--patch", "32/64", *common, "--out", tmp_path / "anew")
    assert anew[0].to_json() == found[0].to_json()                                 # nothing of the first is left there
    random, _, _ = run(capsys, "pfid_anyres", tmp_path / "data", model, "--patch", "32/32-64", *common)
    assert random[0].metrics[0].name == "frechet_random_p32min32max64[texture]" and random[0].choices["ddof"] == 0


def test_job_two_checkpoints_of_stage_two_are_compared(tmp_path, capsys, scripted):
    """Seeds have no size of their own, on either side."""
    one, other = (diffusion_checkpoint(tmp_path / str(seed), seed=seed) for seed in range(2))
    common = ("--patch", "32/64", "--images", "6", "--steps", "2", "--out", tmp_path / "out", *scripted_arguments(scripted))
    [same], _, _ = run(capsys, "pfid_infd", one, one, *common)
    [found], _, _ = run(capsys, "pfid_infd", one, other, *common)
    assert found.counts == {"a": 6, "b": 6} and same.metrics[0].value < 1e-6 < 1e-3 < found.metrics[0].value


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["autoencoder", "latent_diffusion"])
def test_job_consistency_of_a_checkpoint(tmp_path, capsys, stage):
    if stage == "autoencoder":
        photographs(tmp_path / "data")
        sources = [tmp_path / "data", autoencoder_checkpoint(tmp_path / "model"), "--split", "all"]
    else:
        sources = [diffusion_checkpoint(tmp_path / "model"), "--images", "5", "--steps", "2"]
    [found], _, [where] = run(capsys, "consistency", *sources, "--sizes", "64", "32", "--out", tmp_path / "out")
    assert found.counts == {"fields": 5 if stage == "latent_diffusion" else 12, "sides": 2}
    assert {one.name for one in found.metrics} >= {"self_ssim[lanczos]_32/64", "mean_shift_32"}
    assert json.loads((where / "pictures.json").read_text())["sizes"][0]["captions"] == ["32 px", "64 px"]


@pytest.mark.parametrize("protocol", ["fid", "kid", "precision_recall", "frechet", "spectra", "super_resolution"])
def test_job_every_protocol_runs_on_folders(sets, tmp_path, capsys, scripted, protocol):
    kid = ["--also", "kid", "--kid-subset-size", "10", "--kid-subsets", "3"]
    more = {"spectra": ["--patch", "32/48"], "super_resolution": ["--border-px", "2", "--pool", "3"],
            "precision_recall": ["--k", "2", *kid]}.get(protocol, kid)
    network = scripted_arguments(scripted) if protocol not in ("spectra", "super_resolution") else []
    [found], _, _ = run(capsys, protocol, *sets, "--out", tmp_path, *more, *network)
    names = {"fid": "frechet[texture]", "kid": "kid[texture]", "precision_recall": "precision[texture]",
             "frechet": "frechet[texture]", "spectra": "spectrum_db_32/48", "super_resolution": "psnr"}
    assert found.protocol == protocol and names[protocol] in {one.name for one in found.metrics}
    assert not any(one.name.startswith(("fid", "pfid")) for one in found.metrics)


def test_error_absent_weights_name_file_hash_source_and_what_can_be_had(sets, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("INFD_WEIGHTS", str(tmp_path / "weights"))
    arguments = ["fid", *sets, "--no-ray", "--out", str(tmp_path / "out")]
    assert job.main(arguments) == 1
    told = capsys.readouterr()
    assert not told.out and "6726825d" in told.err and "inception-fid.safetensors" in told.err
    assert "python jobs/weights.py get efficientnet-lite0" in told.err and "never FID" in told.err
    monkeypatch.setattr(weights, "check", lambda name: weights.FileState(name, "", "ok" if name == "lpips-alex" else "missing"))
    assert job.main(arguments) == 1
    assert "Networks at hand: lpips-alex. --network lpips-alex gives frechet[lpips-alex]" in capsys.readouterr().err


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def sized(side: int):
    return lambda path: path.write_bytes(encoded(picture(side, side)))


@pytest.mark.parametrize(("harm", "arguments", "message"), [
    (halved, ["fid"], "bad/img020.png: truncated: PNG pixels; expected an image; mend it or take it away"),
    (lambda path: path.write_bytes(b"words"), ["spectra", "--patch", "32/48"], "bad/img020.png: unsupported"),
    (sized(40), ["fid"], "bad/img020.png: 40x40; whole images must have one size, and"),
    (sized(40), ["fid", "--side", "48"], "bad/img020.png: 40x40; side 48 was asked for and nothing is enlarged"),
    (sized(24), ["pfid_infd", "--patch", "32/48"], "bad/img020.png: 24x24; smaller than the crop of 32 px"),
    (sized(40), ["pfid_infd", "--patch", "32/48"], "bad/img020.png: 40x40; crops.prepare=exact needs 48x48"),
    (sized(30), ["pfid_anyres", "--patch", "32", "--images", "24"], "bad/img020.png: 30x30; side"),
    (sized(40), ["reconstruction"], "bad/img020.png: 40x40; "),
    (Path.unlink, ["reconstruction"], "img020.png: no image img020.* in"),
    (Path.unlink, ["pfid_infd", "--patch", "32/48", "--images", "24"], "bad: 23 images; the count that was asked for needs"),
    (Path.unlink, ["kid", "--kid-subset-size", "24"], "bad: 23 images; kid.subset_size (--kid-subset-size) needs at least 24"),
    (Path.stat, ["pfid_infd", "--patch", "32/48", "32/64"], "48x48; crops.prepare=exact needs 64x64"),   # before the first
    (Path.stat, ["spectra", "--patch", "32/48", "32/64"], "48x48; crops.prepare=exact needs 64x64"),
], ids=lambda one: " ".join(one) if isinstance(one, list) else "")
def test_error_images_that_a_protocol_does_not_allow_are_named_with_the_rule(
        sets, tmp_path, capsys, scripted, harm, arguments, message):
    bad = changed(tmp_path / "bad", Path(sets[1]), lambda image: image)
    harm(bad / "img020.png")
    network = scripted_arguments(scripted) if arguments[0] not in ("reconstruction", "spectra") else []
    more = [*arguments[1:], "--no-ray", "--out", str(tmp_path / "out"), *network]
    assert job.main([arguments[0], sets[0], str(bad), *more]) == 1
    told = capsys.readouterr()
    assert message in told.err.splitlines()[-1] and "Traceback" not in told.err and not told.out
    assert not list((tmp_path / "out").rglob("result.json"))


def test_job_a_split_is_of_the_dataset_whatever_it_is_compared_with(tmp_path, capsys, scripted):
    dataset = photographs(tmp_path / "data")
    other = folder(tmp_path / "other", [(64, 64)] * 5)
    [found], _, _ = run(capsys, "pfid_infd", dataset.uri, other, "--split", "val", "--patch", "32/64",
                        "--out", tmp_path / "out", *scripted_arguments(scripted))
    assert found.counts == {"a": int((dataset.manifest.split == 1).sum()), "b": 5}


@pytest.mark.slow
def test_job_equal_images_are_infinitely_near_in_json_table_and_report(sets, tmp_path, capsys, scripted):
    places = []
    for name, judged in (("same", sets[0]), ("noisy", sets[1])):
        [pairs], told, _ = run(capsys, "reconstruction", sets[0], judged, "--out", tmp_path / name)
        [whole], _, _ = run(capsys, "pfid_infd", sets[0], judged, "--patch", "32/48", "--out", tmp_path / name,
                            *scripted_arguments(scripted))
        places.append((str(tmp_path / name), pairs["psnr"], whole.metrics[0].value, told))
    (same, psnr, distance, told), (_, other_psnr, other_distance, _) = places
    assert psnr == math.inf and distance < 1e-9 and 20 < other_psnr < 30 and other_distance > 1e-4
    assert re.search(r"psnr +inf", told) and "24 compared images are equal" in told
    report([same, str(tmp_path / "noisy")], str(tmp_path / "out"))
    tree = json.loads((tmp_path / "out" / "report.json").read_text(), parse_constant=pytest.fail)
    place = [column["metric"] for column in tree["columns"]].index("psnr")
    assert [row["values"][place] for row in tree["rows"]] == ["inf", other_psnr]
    text, page = ((tmp_path / "out" / name).read_text() for name in ("report.md", "report.html"))
    assert "**∞**" in text and "∞" in page and f"PSNR, dB: ∞ of real against {other_psnr:.4g} of noisy." in tree["verdict"]
    assert not re.search(r"\bnan\b", text + re.sub(r"base64,[^\"]*", "", page))


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["fid", "A"], 2, "1 given; protocol fid compares two"),
    (["pfid_infd", "A", "B"], 2, "patch=missing: protocol pfid_infd needs some; say --patch 256/1024"),
    (["pfid_infd", "A", "B", "--patch", "48"], 2, "patch=48: expected P/R in pixels"),
    (["pfid_infd", "A", "B", "--patch", "64/48"], 2, "crops.r=48: must be at least p=64"),
    (["fid", "A", "B", "--patch", "32/48"], 2, "fid is of whole images"),
    (["reconstruction", "AE", "B"], 1, "a checkpoint of stage one, and nothing to reconstruct"),
    (["consistency", "LDM"], 2, "sizes=missing: consistency compares renders at two sides"),
    (["consistency", "LDM", "--sizes", "32", "64"], 1, "draws any number of images; expected how many; say --images"),
    (["reconstruction", "A", "NOWHERE"], 1, "no image file there"),
    (["pfid_infd", "A", "B", "--patch", "32/64"], 1, "48x48; crops.prepare=exact needs 64x64"),
    (["reconstruction", "A", "B", "--images", "99"], 1, "24 images; the count that was asked for needs at least 99"),
    (["fid", "A", "B", "--split", "val"], 1, "only a dataset has splits"),
    (["reconstruction", "A", "B", "--kid-subsets", "5"], 2, "kid_subsets=5: protocol reconstruction has no use for it"),
    (["reconstruction", "A", "B", "--patch", "32/48"], 2, "patch=('32/48',): protocol reconstruction has no use for it"),
    (["spectra", "A", "B", "--patch", "32/48", "--also", "kid"], 2, "also=('kid',): protocol spectra has no use for it"),
    (["fid", "A", "B", "--k", "5"], 2, "k=5: no precision_recall was asked for"),
    (["frechet", "A", "B", "--patch", "32/48", "--side", "40"], 2, "side=40: patches have sides of their own"),
    (["reconstruction", "A", "B", "--sizes", "32", "--upscales", "2"], 2, "say either sizes or upscales"),
    (["reconstruction", "A", "B", "--low-px", "32"], 2, "low_px=32: is of upscales"),
    (["super_resolution", "A", "B", "--upscales", "2"], 2, "upscales=2.0: of what side? expected --low-px, or a checkpoint"),
    (["reconstruction", "A", "B", "--steps", "9"], 2, "nothing there draws seeds; expected a checkpoint of stage two"),
    (["reconstruction", "A", "B", "--to-8-bits", "down"], 2, "nothing there is rendered; expected a checkpoint or latents"),
    (["spectra", "A", "B", "--patch", "32/48", "--crop-seeds", "0", "1"], 2, "spectra are of one plan of crops; name one"),
    (["consistency", "A", "B", "--sizes", "32", "64"], 2, "folders of images have sides of their own; leave it out"),
    (["consistency", "A", "LDM", "--sizes", "32", "64"], 2, "name the judged source alone"),
    (["kid", "A", "B", "--network", "lpips-alex", "--network-label", "x"], 2, "network lpips-alex has its own; leave it out"),
    (["spectra", "A", "B", "--patch", "32/48", "--device", "gpu"], 1, "device=gpu: torch sees no GPU on this machine"),
])
def test_error_wishes_that_cannot_be(sets, tmp_path, capsys, arguments, code, message, scripted):
    places = {"A": sets[0], "B": sets[1], "NOWHERE": str(tmp_path / "nowhere")}
    if "AE" in arguments:
        places["AE"] = autoencoder_checkpoint(tmp_path / "ae")
    if "LDM" in arguments:
        places["LDM"] = diffusion_checkpoint(tmp_path / "ldm")
    (tmp_path / "nowhere").mkdir()
    given = [places.get(one, one) for one in arguments]
    network = scripted_arguments(scripted) if arguments[0] in ("fid", "pfid_infd", "frechet") else []
    assert job.main([*given, "--no-ray", "--out", str(tmp_path / "out"), *network]) == code
    told = capsys.readouterr().err
    assert message in told.splitlines()[-1] and "Traceback" not in told
    assert not list((tmp_path / "out").rglob("result.json"))


def test_a_networks_own_normalisation_is_heard():
    """CLIP's is not ImageNet's."""
    words = ["frechet", "A", "B", "--network", "torchscript", "--network-weights", "/clip.pt", "--network-label", "clip",
             "--network-sha256", 64 * "0", "--network-mean", "0.48", "0.46", "0.41", "--network-std", "0.27", "0.26", "0.28",
             "--network-resize", "bilinear"]
    (protocol,) = protocols_of(tyro.cli(job.Evaluate, args=words))
    assert isinstance(protocol, Distances) and protocol.network.mean == (0.48, 0.46, 0.41)
    assert protocol.network.std == (0.27, 0.26, 0.28) and protocol.network.resize == "bilinear"


def test_papers_write_1024_as_1k():
    wish = Wish(protocol="pfid_infd", sources=("a", "b"), patch=("256/1K", "1k/2K"))
    found = [protocol.crops for protocol in protocols_of(wish) if isinstance(protocol, Distances)]
    assert [dataclasses.astuple(crops)[:2] for crops in found] == [(256, 1024), (1024, 2048)]


def test_law_every_command_of_the_docs_is_one():
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text().replace("\\\n", " ")
    names = get_args(ProtocolName)
    commands = [shlex.split(line, comments=True)[1:] for line in re.findall(r"^\$ python jobs/(evaluate\.py .*)$", text, re.M)]
    commands += [line.split() for line in re.findall(r"`([^`\n]+)`", text) if line.split()[0] in names and " --" in line]
    assert {command[0] for command in commands} == {*names} - {"kid", "precision_recall"}
    for command in commands:
        sources = [] if len(command) > 1 and not command[1].startswith("--") else ["A", "B"]
        given = [command[0], *sources, *(word.replace("…", 64 * "0") for word in command[1:])]
        wish = tyro.cli(job.Evaluate, args=given)
        assert protocols_of(wish, low_px=16), command
