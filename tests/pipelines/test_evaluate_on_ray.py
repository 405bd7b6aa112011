"""Evaluations on the real stack: two actors make the bytes that this process makes, and a killed job goes on."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evaluation.checkpoints import diffusion_checkpoint
from evaluation.degraded import noisy
from evaluation.folders import changed, folder
from stack import until
from torch import nn

from infd import storage
from infd.config import SampleConfig
from infd.errors import PhotoError
from infd.evaluation import collect
from infd.evaluation.crops import OneCrop
from infd.evaluation.features import NetworkConfig
from infd.evaluation.kid import KidConfig
from infd.evaluation.protocols import Distances, Pairs
from infra.services import s3_client
from jobs import evaluate as job
from pipelines import evaluate as pipeline
from pipelines.evaluation_work import SourceSpec, engine

JOB = Path(__file__).parents[2] / "jobs" / "evaluate.py"


def network(uri: str) -> NetworkConfig:
    """A network in a TorchScript file, which other processes can open."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 6, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    buffer = torch.jit.trace(module, torch.zeros(1, 3, 32, 32)).save_to_buffer()  # pyright: ignore
    storage.put_atomic(uri, buffer)
    return NetworkConfig(name="torchscript", weights=uri, label="texture", input_px=32,
                         sha256=hashlib.sha256(buffer).hexdigest())


def files_below(uri: str) -> dict[str, bytes]:
    return {info.uri.removeprefix(uri): storage.read_bytes(info.uri) for info in storage.list_objects(uri)}


@pytest.mark.slow
def test_law_two_actors_make_what_this_process_makes_byte_for_byte(stack, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "BLOCK", 7)
    monkeypatch.setattr(pipeline, "PAIRS_A_BLOCK", 5)
    real = folder(tmp_path / "real", [(48, 48)] * 12)
    for root in (real, changed(tmp_path / "noisy", real, lambda image: noisy(image, 2))):
        for path in root.iterdir():
            storage.put_file(f"{bucket}/{root.name}/{path.name}", str(path))
    truth, other = SourceSpec(uri=f"{bucket}/real"), SourceSpec(uri=f"{bucket}/noisy")
    drawn = SourceSpec(uri=diffusion_checkpoint(f"{bucket}/model"), side=48, seeds=33, sample=SampleConfig(steps=2))
    distances = Distances(name="frechet", crops=OneCrop(p=32, r=48), network=network(f"{bucket}/network.pt"),
                          metrics=("frechet", "kid"), kid=KidConfig(subsets=4, subset_size=10))
    asked = [(distances, [truth, drawn], True), (Pairs(name="pairs", metrics=("psnr", "ssim")), [truth, other], False)]
    found = {}
    for name in ("here", "two"):
        with engine(ray=name == "two", workers=2, device="cpu") as made:
            for protocol, specs, pictures in asked:
                pipeline.evaluate(protocol, specs, out=f"{bucket}/{name}", engine=made, pictures=pictures)
            if name == "two":
                data = storage.read_bytes(f"{bucket}/noisy/img010.png")
                storage.put_atomic(f"{bucket}/noisy/img010.png", data[:len(data) // 2])
                with pytest.raises(PhotoError, match=r"s3://.*noisy/img010\.png: truncated: .*mend it or take it away"):
                    pipeline.evaluate(distances, [truth, other], out=f"{bucket}/bad", engine=made)
        found[name] = files_below(f"{bucket}/{name}")
    assert found["here"] == found["two"]
    kinds = [name.rsplit(".", 1)[-1] for name in found["two"]]
    assert kinds.count("jpg") == 18 and sum(name.endswith("/result.json") for name in found["two"]) == 2
    assert sum("/work/latents-" in name for name in found["two"]) == 2


@pytest.mark.long
def test_job_that_was_killed_goes_on_from_the_blocks_that_are_done(stack, bucket, capfd):
    """SIGKILL to the driver once some blocks are there; what was finished is neither made nor written again."""
    model = diffusion_checkpoint(f"{bucket}/model")
    asked = ["consistency", model, "--images", "80", "--sizes", "64", "96", "--steps", "2", "--no-pictures"]
    on_ray = [*asked, "--out", f"{bucket}/out", "--workers", "2"]

    def written() -> dict[str, object]:
        """Objects of finished blocks, and when each was written."""
        found = s3_client(stack.env).list_objects_v2(Bucket=bucket.split("/")[2], Prefix=f"{bucket.split('/', 3)[3]}/out/work/")
        return {one["Key"]: (one["LastModified"], one["ETag"]) for one in found.get("Contents", [])}

    def values() -> int:
        return sum("/values-" in key for key in written())

    with subprocess.Popen([sys.executable, str(JOB), *on_ray], stderr=subprocess.PIPE, start_new_session=True) as driver:
        until(lambda: values() >= 2 or driver.poll() is not None)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate()
    before = written()
    assert driver.returncode == -signal.SIGKILL and not any(uri.endswith("result.json") for uri in files_below(f"{bucket}/out"))
    assert sum("/latents-" in key for key in before) == 3 and 2 <= sum("/values-" in key for key in before) < 5
    assert job.main(on_ray) == 0
    address = capfd.readouterr().out.strip()
    after = written()
    assert before.items() <= after.items() and values() == 5
    assert job.main([*asked, "--out", f"{bucket}/whole", "--no-ray", "--device", "cpu"]) == 0
    assert storage.read_bytes(address) == storage.read_bytes(capfd.readouterr().out.strip())
