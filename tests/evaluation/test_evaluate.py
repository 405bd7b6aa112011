"""Protocols over real folders: identity, degradation, repetition, caches, the rules, and torch-fidelity's own figures."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation.degraded import DEGRADATIONS
from evaluation.folders import changed, folder
from evaluation.networks import inception_state, random_network
from pictures import encoded, picture
from PIL import Image

from infd import storage, weights
from infd.compat import torchvision_ready
from infd.config import IngestConfig
from infd.data.snapshot import write_dataset
from infd.errors import ConfigError, PhotoError
from infd.evaluation import collect, features, pixels, protocols
from infd.evaluation.crops import OneCrop, RandomScales, WholeImages
from infd.evaluation.errors import EvaluationError
from infd.evaluation.evaluate import evaluate
from infd.evaluation.features import NetworkConfig
from infd.evaluation.kid import KidConfig
from infd.evaluation.precision_recall import PrecisionRecallConfig
from infd.evaluation.protocols import Distances, Pairs, Spectra

NETWORK = random_network()
ALL = ("frechet", "kid", "precision_recall")
KID = KidConfig(subsets=10, subset_size=20)


def distances(crops=None, **changes) -> Distances:
    crops = crops or OneCrop(p=32, r=48)
    return Distances(**{"name": "pfid_infd", "crops": crops, "metrics": ALL, "kid": KID, "batch": 8, **changes})


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    return folder(tmp_path_factory.mktemp("sets") / "real", [(48, 48)] * 40)


@pytest.fixture(scope="module")
def other(real) -> Path:
    return folder(real.parent / "other", [(48, 48)] * 40, seed=500)


@pytest.fixture
def random_lpips(monkeypatch) -> None:
    """LPIPS of random weights, which need no file."""

    class Random:
        sha256 = "0" * 64

        def __init__(self, net: str, **_: object) -> None:
            self.net = net

        def __call__(self, a: np.ndarray, b: np.ndarray) -> float:
            return float(np.square(NETWORK(a[None]) - NETWORK(b[None])).sum())

    monkeypatch.setattr(pixels, "LpipsMetric", Random)


# ---------------------------------------------------------------- distances


@pytest.mark.parametrize("crops", [OneCrop(p=32, r=48), OneCrop(p=48, r=48), WholeImages(), WholeImages(side=40),
                                   RandomScales(p=24, r_min=24, count=40)])
def test_law_a_set_is_at_distance_0_from_itself(real, tmp_path, crops):
    copy = changed(tmp_path / "copy", real, lambda image: image)
    found = evaluate(distances(crops), str(real), str(copy), network=NETWORK)
    values = {one.name.split("_")[0].split("[")[0]: one.value for one in found.metrics}
    assert values["frechet"] <= 1e-9 and values["kid"] <= 1e-9
    assert values["precision"] == values["recall"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("crops", [OneCrop(p=32, r=48), WholeImages(), RandomScales(p=32, r_min=32, count=40)])
@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_law_a_worse_set_is_further_away(real, tmp_path, kind, crops):
    found = []
    for level in (1, 2, 3):
        worse = changed(tmp_path / str(level), real, lambda image, level=level: DEGRADATIONS[kind](image, level))
        found.append(evaluate(distances(crops), str(real), str(worse), network=NETWORK))
    for index in (0, 1):
        values = [one.metrics[index].value for one in found]
        assert values[0] < values[1] < values[2], found[0].metrics[index].name
    assert found[0].metrics[0].value > 1e-9
    shares = [one.metrics[2].value + one.metrics[3].value for one in found]
    assert 2 > shares[0] >= shares[2]       # precision and recall of 40 images are too coarse for more; see the next law


@pytest.mark.slow
@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_law_precision_and_recall_fall_as_more_images_are_bad(real, tmp_path, kind):
    """Not as one image gets worse: recall of sets far away is chance, because a stray image has a large ball."""
    found = []
    for bad in (10, 20, 30, 40):
        levels = iter([3] * bad + [0] * (40 - bad))
        worse = changed(tmp_path / str(bad), real,
                        lambda image, levels=levels: DEGRADATIONS[kind](image, level) if (level := next(levels)) else image)
        result = evaluate(distances(WholeImages(), metrics=("precision_recall",)), str(real), str(worse), network=NETWORK)
        found.append([one.value for one in result.metrics])
    precision, recall = (list(values) for values in zip(*found, strict=True))
    assert 0.8 > precision[0] > precision[1] > precision[2] > precision[3]
    assert recall == sorted(recall, reverse=True) and recall[3] < 0.95


def test_law_the_same_run_twice_gives_the_same_bytes(real, other):
    protocol = distances(seeds=(0, 1, 2))
    first, second = (evaluate(protocol, str(real), str(other), network=NETWORK) for _ in range(2))
    assert first.to_json() == second.to_json()
    frechet = first.metrics[0]
    assert len(frechet.values) == 3 == len(set(frechet.values)) and frechet.over == "seeds"
    assert frechet.value == np.mean(frechet.values) and frechet.spread == pytest.approx(np.std(frechet.values, ddof=1))


def test_law_numbers_depend_neither_on_blocks_read_ahead_nor_on_more_workers(real, other, monkeypatch):
    protocol = distances()
    whole = evaluate(protocol, str(real), str(other), network=NETWORK)
    monkeypatch.setattr(collect, "READ_THREADS", 5)
    assert evaluate(protocol, str(real), str(other), network=NETWORK).to_json() == whole.to_json()
    monkeypatch.setattr(collect, "BLOCK", 16)
    cut = evaluate(protocol, str(real), str(other), network=NETWORK)
    for one, two in zip(whole.metrics, cut.metrics, strict=True):
        assert two.value == pytest.approx(one.value, rel=1e-5)


def test_law_the_report_holds_every_choice(real, other):
    found = evaluate(distances(seeds=(4,)), str(real), str(other), network=NETWORK)
    fields = {"crops.kind", "crops.p", "crops.r", "crops.prepare", "seeds", "count_a", "count_b", "ddof", "kid.subsets",
              "kid.subset_size", "kid.seed", "precision_recall.k", "metrics", "batch", "device", "min_images"}
    assert fields <= set(found.choices) and not any(name.startswith("network.") for name in found.choices)
    assert found.choices["crops.kind"] == "OneCrop" and found.choices["seeds"] == [4]
    assert found.networks == ({"name": "random", "weights_sha256": NETWORK.sha256, "input": NETWORK.input, "features": 12},)
    assert [source["images"] for source in found.sources] == [40, 40] and found.counts == {"a": 40, "b": 40}
    assert len({source["fingerprint"] for source in found.sources}) == 2 and found.versions["torch"]
    kid = next(one for one in found.metrics if one.name.startswith("kid"))
    assert kid.standard_error is not None and kid.standard_error > 0


@pytest.mark.slow
@pytest.mark.parametrize("crops", [OneCrop(p=32, r=48), WholeImages(), RandomScales(p=24, r_min=24, count=40)])
@pytest.mark.parametrize("name", ["fid", "pfid_infd", "anything"])
def test_law_only_inceptions_distance_is_called_fid(real, other, crops, name):
    protocol = distances(crops, name=name)
    for one in evaluate(protocol, str(real), str(other), network=NETWORK).metrics:
        assert "fid" not in one.name.lower() and one.name.endswith("[random]")
    inception = dataclasses.replace(NETWORK, name=features.INCEPTION)
    names = [one.name for one in evaluate(protocol, str(real), str(other), network=inception).metrics]
    assert names[0].startswith(("fid", "pfid")) and names[1].startswith("kid")
    assert names[2].startswith("precision") and names[2].endswith("[inception-v3-compat]")


def test_law_metric_names_say_the_crop(real, other):
    names = [evaluate(distances(crops), str(real), str(other), network=NETWORK).metrics[0].name for crops in (
        OneCrop(p=32, r=48), WholeImages(), WholeImages(side=40), RandomScales(p=24, r_min=24, r_max=30, count=40))]
    assert names == ["frechet_32/48[random]", "frechet[random]", "frechet_40[random]",
                     "frechet_random_p24min24max30[random]"]


def test_law_few_images_are_told_of(real, other):
    few = evaluate(distances(count_a=20, count_b=21), str(real), str(other), network=random_network(30))
    assert few.counts == {"a": 20, "b": 21} and "20 images for 30 features: a covariance is singular" in few.notes[0]
    by_kid = distances(count_a=20, count_b=21, metrics=("kid",), kid=KidConfig(subset_size=5))
    assert evaluate(by_kid, str(real), str(other), network=random_network(30)).notes == ()      # it says nothing of KID
    assert evaluate(distances(), str(real), str(other), network=NETWORK).notes == ()


def test_law_a_dataset_is_a_source_as_its_files_are(real, tmp_path):
    files = [(f"s3://b/{file.name}", file.read_bytes()) for file in sorted(real.iterdir())]
    config = IngestConfig(tile_px=64, codec="png", min_side_px=32, val_fraction=0)
    dataset = write_dataset(files, str(tmp_path / "set"), config).snapshot_uri
    found = evaluate(distances(OneCrop(p=48, r=48)), str(real), dataset, network=NETWORK)
    assert found.metrics[0].value <= 1e-9
    assert found.sources[1]["kind"] == "dataset" and found.sources[1]["uri"] == dataset


@pytest.mark.slow
def test_law_a_bucket_is_a_source_as_a_folder_is(bucket, real, other):
    for file in sorted(real.iterdir()):
        storage.put_atomic(f"{bucket}/deep/{file.name}", file.read_bytes())
    away, here = (evaluate(distances(), str(other), where, network=NETWORK, cache=cache)
                  for where, cache in ((bucket, f"{bucket}-cache"), (str(real), "")))
    assert away.metrics == here.metrics and away.sources[1]["fingerprint"] == here.sources[1]["fingerprint"]
    assert away.sources[1]["uri"] == bucket and list(storage.list_objects(f"{bucket}-cache"))
    storage.delete_prefix(f"{bucket}-cache")
    storage.put_atomic(f"{bucket}/deep/img005.png", b"words")
    with pytest.raises(PhotoError, match=r"s3://.*/deep/img005\.png: unsupported"):
        evaluate(distances(), str(other), bucket, network=NETWORK)


# ---------------------------------------------------------------- cache


class Counting:
    """Counts images through a network."""

    def __init__(self) -> None:
        self.seen = 0

    def network(self, **changes: object) -> features.FeatureNetwork:
        def trunk(images: torch.Tensor) -> torch.Tensor:
            self.seen += len(images)
            return NETWORK.trunk(images)

        return dataclasses.replace(NETWORK, trunk=trunk, **changes)


def test_law_statistics_of_the_real_set_are_kept_by_content(real, other, tmp_path):
    cache, counting = str(tmp_path / "cache"), Counting()
    network = counting.network()
    plain = evaluate(distances(), str(real), str(other), network=network)
    first = evaluate(distances(), str(real), str(other), network=network, cache=cache)
    assert counting.seen == 160
    again = evaluate(distances(), str(real), str(other), network=network, cache=cache)
    assert counting.seen == 200 and plain.to_json() == first.to_json() == again.to_json()
    copy = changed(tmp_path / "copy", real, lambda image: image)          # other bytes, other etags: another content
    (copy / "img000.png").write_bytes((real / "img000.png").read_bytes() + b"\0")
    evaluate(distances(), str(copy), str(other), network=network, cache=cache)
    assert counting.seen == 280


@pytest.mark.parametrize("change", [{"seeds": (1,)}, {"batch": 4}, {"crops": OneCrop(p=24, r=48)}, {"count_a": 39},
                                    {"network": {"sha256": "1" * 64}}, {"network": {"input": "other"}}])
def test_law_no_other_choice_takes_them(real, other, tmp_path, change):
    counting = Counting()
    evaluate(distances(), str(real), str(other), network=counting.network(), cache=str(tmp_path))
    assert counting.seen == 80
    changes = dict(change)
    network = counting.network(**changes.pop("network", {}))
    found = evaluate(distances(**changes), str(real), str(other), network=network, cache=str(tmp_path))
    assert counting.seen == 80 + sum(found.counts.values())


def test_law_what_only_needs_moments_keeps_no_features(real, other, tmp_path):
    evaluate(distances(metrics=("frechet",)), str(real), str(other), network=NETWORK, cache=str(tmp_path))
    assert [file.name.split(".")[1] for file in tmp_path.iterdir()] == ["moments"]
    evaluate(distances(), str(real), str(other), network=NETWORK, cache=str(tmp_path))
    assert sorted(file.name.split(".")[1] for file in tmp_path.iterdir()) == ["features", "moments"]


@pytest.mark.parametrize("part", ["moments", "features"])
def test_error_a_damaged_cache_is_named(real, other, tmp_path, part):
    evaluate(distances(), str(real), str(other), network=NETWORK, cache=str(tmp_path))
    file = next(tmp_path.glob(f"*.{part}.*"))
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(EvaluationError, match=f"{file.name}: cannot be read as {part} .*; delete it, and it is made anew"):
        evaluate(distances(), str(real), str(other), network=NETWORK, cache=str(tmp_path))


# ---------------------------------------------------------------- rules


def test_error_fewer_images_than_needed(real, other):
    for change, rule in (({"min_images": 50}, r"protocol pfid_infd \(min_images\) needs at least 50"),
                         ({"kid": KidConfig(subset_size=41)}, r"kid\.subset_size \(--kid-subset-size\) needs at least 41"),
                         ({"metrics": ("precision_recall",), "precision_recall": PrecisionRecallConfig(k=40)},
                          r"precision_recall\.k needs at least 41"), ({"count_b": 41}, "needs at least 41")):
        with pytest.raises(EvaluationError, match=f"(real|other): 40 images; .*{rule}"):
            evaluate(distances(**change), str(real), str(other), network=NETWORK)


def test_error_comes_before_any_feature(real, tmp_path):
    odd = changed(tmp_path / "odd", real, lambda image: image)
    (odd / "img039.png").write_bytes(encoded(picture(40, 48)))
    counting = Counting()
    with pytest.raises(EvaluationError, match=r"img039\.png: 40x48; crops\.prepare=exact needs 48x48"):
        evaluate(distances(), str(real), str(odd), network=counting.network())
    with pytest.raises(EvaluationError, match=r"img039\.png: 40x48; whole images must have one size"):
        evaluate(distances(WholeImages()), str(real), str(odd), network=counting.network())
    assert counting.seen == 0


@pytest.mark.slow
def test_error_a_corrupt_file_ends_it_by_name(real, tmp_path):
    odd = changed(tmp_path / "odd", real, lambda image: image)
    data = (odd / "img020.png").read_bytes()
    (odd / "img020.png").write_bytes(data[:len(data) // 2])
    with pytest.raises(PhotoError, match=r"img020\.png: truncated: .*mend it or take it away"):
        evaluate(distances(), str(real), str(odd), network=NETWORK)


@pytest.mark.parametrize(("make", "field"), [
    (lambda: distances(seeds=()), "seeds"), (lambda: distances(seeds=(1, 1)), "must differ"),
    (lambda: distances(WholeImages(), seeds=(0, 1)), "whole images are not drawn"), (lambda: distances(metrics=()), "metrics"),
    (lambda: distances(min_images=1), "min_images=1"), (lambda: distances(batch=0), "batch=0"),
    (lambda: Pairs(name="x", sizes=(8,)), "sizes"), (lambda: Pairs(name="x", psnr_pool=0), "psnr_pool"),
    (lambda: protocols.Consistency(resizes=()), "resizes"),
    (lambda: Spectra(crops=OneCrop(p=16, r=16), count_a=-1), "count_a")])
def test_error_config(make, field):
    with pytest.raises(ConfigError, match=field):
        make()


def test_error_number_of_sources(real):
    with pytest.raises(EvaluationError, match="protocol fid: 1 sources; expected two, the truth first"):
        evaluate(protocols.fid(), str(real))


def test_law_published_protocols_by_name():
    assert protocols.pfid_infd(256, 1024).crops == OneCrop(p=256, r=1024) and protocols.pfid_infd(256, 1024).ddof == 1
    anyres = protocols.pfid_anyres(256, 256)
    assert anyres.crops == RandomScales(p=256, r_min=256, r_max=0, count=50_000) and anyres.ddof == 0
    assert protocols.fid().network.name == "inception-v3-compat"
    assert protocols.super_resolution(85).psnr_pool == 8


# ---------------------------------------------------------------- pairs


PAIRS = Pairs(name="reconstruction", metrics=("psnr", "psnr_y", "ssim", "ssim_y", "lpips_vgg", "lpips_alex"))


@pytest.mark.slow
def test_law_identity_pairs(real, random_lpips):
    found = evaluate(PAIRS, str(real), str(real))
    values = {one.name: one.value for one in found.metrics}
    assert values == {"psnr": math.inf, "psnr_y": math.inf, "ssim": 1, "ssim_y": 1, "lpips_vgg": 0, "lpips_alex": 0}
    assert found.notes == ("40 compared images are equal: their PSNR is infinite and does not count",)
    assert b'"inf"' in found.to_json()


@pytest.mark.slow
def test_law_equal_pairs_do_not_make_the_mean_infinite(real, tmp_path, random_lpips):
    near = changed(tmp_path / "near", real, lambda image: DEGRADATIONS["noise"](image, 1))
    (near / "img003.png").write_bytes((real / "img003.png").read_bytes())
    found = evaluate(PAIRS, str(real), str(near))
    psnr = found.metrics[0]
    assert psnr.values[3] == math.inf and 30 < psnr.value < 35 and psnr.value == np.mean(np.delete(psnr.values, 3))
    assert found.notes[0].startswith("1 compared images are equal") and found.items[3] == "img003" and psnr.over == "images"


@pytest.mark.slow
@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_law_worse_pairs_score_worse(real, tmp_path, kind, random_lpips):
    found = []
    for level in (1, 2, 3):
        worse = changed(tmp_path / str(level), real, lambda image, level=level: DEGRADATIONS[kind](image, level))
        found.append(evaluate(Pairs(**{**vars(PAIRS), "count": 8}), str(real), str(worse)))
    for index, first in enumerate(found[0].metrics):
        values = [one.metrics[index].value for one in found]
        assert values == sorted(values, reverse=first.better == "higher") and len(set(values)) == 3, first.name


@pytest.mark.slow
def test_law_sizes_bring_both_to_a_side_whatever_their_own(real, tmp_path, random_lpips):
    larger = changed(tmp_path / "large", real,
                     lambda image: np.asarray(Image.fromarray(image).resize((96, 96), Image.Resampling.LANCZOS)))
    found = evaluate(Pairs(**{**vars(PAIRS), "metrics": ("psnr", "ssim"), "sizes": (24, 32)}), str(real), str(larger))
    assert [one.name for one in found.metrics] == ["psnr@24", "ssim@24", "psnr@32", "ssim@32"]
    assert found["psnr@24"] > 30 and found["ssim@24"] > 0.97
    with pytest.raises(EvaluationError, match=r"large/img000\.png: 96x96; .*img000\.png is 48x48; pairs must have one size"):
        evaluate(PAIRS, str(real), str(larger))


def test_ref_psnr_pooled_over_pairs(real, tmp_path):
    levels = iter(range(1, 41))
    near = changed(tmp_path / "near", real, lambda image: np.clip(image + 1 + 0.4 * next(levels), 0, 255).astype(np.uint8))
    single = evaluate(Pairs(name="x", metrics=("psnr",)), str(real), str(near))
    pooled = evaluate(Pairs(name="x", metrics=("psnr",), psnr_pool=8), str(real), str(near))
    errors = 255**2 / 10 ** (np.array(single.metrics[0].values) / 10)
    np.testing.assert_allclose(pooled.metrics[0].values, 10 * np.log10(255**2 / errors.reshape(5, 8).mean(1)), rtol=1e-9)
    assert pooled.metrics[0].value < single.metrics[0].value                                   # Jensen


def test_ref_psnr_without_a_border(real, tmp_path):
    framed = changed(tmp_path / "framed", real, lambda image: np.pad(np.clip(image[2:-2, 2:-2] + 3.0, 0, 255).astype(np.uint8),
                                                                    ((2, 2), (2, 2), (0, 0))))
    found = evaluate(Pairs(name="x", metrics=("psnr",), border_px=2), str(real), str(framed))
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / 9), abs=0.2)
    assert evaluate(Pairs(name="x", metrics=("psnr",)), str(real), str(framed))["psnr"] < 20


def test_ref_super_resolution_brings_the_truth_down_as_its_papers_do(tmp_path):
    """The centre square, all of its pixels, PIL's bicubic; errors pooled over 8 pairs. Judged images have the size already."""
    truth = folder(tmp_path / "truth", [(90, 64)] * 10)
    judged = folder(tmp_path / "judged", [(40, 40)] * 10, seed=90)
    found = evaluate(dataclasses.replace(protocols.super_resolution(40), metrics=("psnr",)), str(truth), str(judged))
    errors = []
    for path in sorted(truth.iterdir()):
        with Image.open(path) as photo, Image.open(judged / path.name) as image:
            wanted = photo.convert("RGB").crop((13, 0, 77, 64)).resize((40, 40), Image.Resampling.BICUBIC)
            errors.append(np.square(np.asarray(wanted, float) - np.asarray(image.convert("RGB"), float)).mean())
    pools = [10 * np.log10(255**2 / np.mean(errors[start:start + 8])) for start in (0, 8)]
    assert found.metrics[0].name == "psnr@40" and found.metrics[0].over == "pools"
    np.testing.assert_allclose(found.metrics[0].values, pools, rtol=1e-12)


def test_error_images_without_a_partner(real, tmp_path):
    less = changed(tmp_path / "less", real, lambda image: image)
    (less / "img007.png").unlink()
    for sides, named in (((real, less), r"real/img007\.png: no image img007\.\* in .*less"),
                         ((less, real), r"real/img007\.png: no image img007\.\* in .*less")):
        with pytest.raises(EvaluationError, match=named):
            evaluate(Pairs(name="x", metrics=("psnr",)), *map(str, sides))
    (less / "img007.png").write_bytes((real / "img007.png").read_bytes())
    (less / "img007.jpg").write_bytes(encoded(picture(48, 48), "JPEG"))
    with pytest.raises(EvaluationError, match=r"img007\.png: a second image of the name img007"):
        evaluate(Pairs(name="x", metrics=("psnr",)), str(real), str(less))


# ---------------------------------------------------------------- sizes of one field, spectra


@pytest.mark.slow
@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_law_consistency_of_renders_at_several_sides(real, tmp_path, kind):
    def at(side: int, worse: int = 0) -> str:
        def shrunk(image: np.ndarray) -> np.ndarray:
            image = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))
            return DEGRADATIONS[kind](image, worse) if worse else image

        root = tmp_path / f"{side}-{worse}"
        return str(changed(root, real, shrunk))

    protocol = protocols.Consistency(count=2)
    found = evaluate(protocol, at(48), at(24), at(32))
    assert found.counts == {"fields": 2, "sides": 3} and len(found.items) == 2
    assert {"self_ssim[lanczos]_24/48", "self_ssim[nearest]_48/32", "mean_shift_24"} <= {one.name for one in found.metrics}
    assert found["mean_shift_24"] == 0
    previous = found
    for level in (1, 2, 3):
        worse = evaluate(protocol, at(48), at(24, level), at(32))
        assert worse["mean_shift_24"] > previous["mean_shift_24"]
        assert worse["self_ssim[lanczos]_24/48"] < previous["self_ssim[lanczos]_24/48"]
        previous = worse
    with pytest.raises(EvaluationError, match=r"renders of sides \[48, 48\]; expected a side of its own"):
        evaluate(protocol, at(48), at(48, 1))
    (tmp_path / "24-0" / "img001.png").write_bytes(encoded(picture(25, 24)))
    with pytest.raises(EvaluationError, match=r"24-0/img001\.png: render of 25x24: expected 24x24"):
        evaluate(protocol, at(48), str(tmp_path / "24-0"))
    with pytest.raises(EvaluationError, match="1 source; expected one a side"):
        evaluate(protocol, at(48))


def test_law_spectra_of_equal_sets_are_equal_and_of_blurred_ones_fall(real, tmp_path):
    same = evaluate(protocols.spectra(32, 48), str(real), str(real))
    assert same["spectrum_db_32/48"] == 0 and len(same.curves["power_a"]) == 17 == len(same.curves["cycles_per_image"])
    blurred = changed(tmp_path / "blur", real, lambda image: DEGRADATIONS["blur"](image, 3))
    found = evaluate(protocols.spectra(32, 48), str(real), str(blurred))
    assert found["spectrum_db_32/48"] > 3
    assert all(b < a for a, b in zip(found.curves["power_a"][6:], found.curves["power_b"][6:], strict=True))
    assert found.choices["crops.kind"] == "OneCrop" and found.choices["crops.p"] == 32


# ---------------------------------------------------------------- torch-fidelity


def assert_agrees(real: Path, other: Path, state: dict[str, torch.Tensor], path: str, *, layer: str) -> None:
    """FID, KID, precision and recall of two folders by torch-fidelity's own program are ours."""
    torchvision_ready()
    import torch_fidelity

    torch.save(state, path)
    layers = {f"feature_layer_{metric}": layer for metric in ("fid", "kid", "prc")}
    theirs = torch_fidelity.calculate_metrics(
        input1=str(other), input2=str(real), fid=True, kid=True, prc=True, cuda=False, cache=False, verbose=False, batch_size=8,
        kid_subsets=10, kid_subset_size=8, feature_extractor=features.INCEPTION, feature_extractor_weights_path=path,
        save_cpu_ram=True, **layers)
    network = features.placed(features.inception(state), "cpu")
    if layer != "2048":
        module = torch_fidelity.FeatureExtractorInceptionV3("x", [layer], feature_extractor_weights_path=path)
        network = dataclasses.replace(network, dim=int(layer), trunk=features.First(module))
    protocol = Distances(name="fid", crops=WholeImages(), metrics=ALL, kid=KidConfig(subsets=10, subset_size=8))
    # They draw the first source's subset first, and so do we: their first is the generated set.
    ours, swapped = (evaluate(protocol, *map(str, sides), network=network) for sides in ((real, other), (other, real)))
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], abs=1e-3) and ours["fid"] > 1e-2
    assert swapped["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4, abs=1e-6)
    assert ours["precision[inception-v3-compat]"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours["recall[inception-v3-compat]"] == pytest.approx(theirs["recall"], abs=1e-6)


@pytest.mark.slow
def test_ref_figures_of_two_folders_are_torch_fidelitys_with_random_weights(tmp_path):
    real, other = (folder(tmp_path / name, [(40, 40)] * 12, seed=seed) for name, seed in (("real", 0), ("other", 90)))
    assert_agrees(real, other, inception_state(), str(tmp_path / "w.pth"), layer="192")


@pytest.mark.slow
@pytest.mark.skipif(weights.check("inception-fid").state != "ok", reason="Inception's real weights are not here")
def test_ref_figures_are_torch_fidelitys_with_the_real_weights(tmp_path):
    real = folder(tmp_path / "real", [(96, 96)] * 24)
    other = changed(tmp_path / "other", real, lambda image: DEGRADATIONS["jpeg"](image, 2))
    assert_agrees(real, other, weights.load_weights("inception-fid"), str(tmp_path / "w.pth"), layer="2048")


# ---------------------------------------------------------------- real photographs and weights


@pytest.mark.skipif(weights.check("lpips-alex").state != "ok", reason="the real weights are not here")
def test_law_a_real_network_sees_photographs_get_worse(tmp_path):
    from data import photographs

    real = tmp_path / "real"
    real.mkdir()
    for name, data in photographs.files().items():
        photo = photographs.opened(data)
        for index in range(8):
            left, top = 60 * index, 25 * (index % 4)
            (real / f"{name[0]}{index}.png").write_bytes(encoded(photo.crop((left, top, left + 160, top + 160))))
    protocol = Distances(name="fid", crops=WholeImages(), metrics=("frechet", "kid"), batch=8,
                         kid=KidConfig(subsets=20, subset_size=12), network=NetworkConfig(name="lpips-alex"))
    found = [evaluate(protocol, str(real), str(real))]
    for level in (1, 2, 3):
        worse = changed(tmp_path / str(level), real, lambda image, level=level: DEGRADATIONS["blur"](image, level))
        found.append(evaluate(protocol, str(real), str(worse), cache=str(tmp_path / "cache")))
    values = [one["frechet[lpips-alex]"] for one in found]
    assert values[0] < 1e-6 < values[1] < values[2] < values[3]
    assert found[1]["kid[lpips-alex]"] < found[2]["kid[lpips-alex]"] < found[3]["kid[lpips-alex]"]
    assert found[0].choices["network.name"] == "lpips-alex" and "network.mean" not in found[0].choices
    assert found[0].networks[0]["weights_sha256"] == weights.network("lpips-alex").sha256
