"""The demo on the real stack: from files to a report, again without training, and away without taking others' data."""

import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from infd import checkpoint, storage
from infd.errors import InfdError
from infra import submit
from pipelines import demo, demo_clean, demo_samples


def jpeg(seed: int, size: tuple[int, int]) -> bytes:
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path):
    """Six photographs, one that is too small, and one that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(6):
        (folder / f"photo {seed}.jpg").write_bytes(jpeg(seed, (340, 300)))
    (folder / "small.jpg").write_bytes(jpeg(9, (200, 100)))
    (folder / "broken.jpg").write_bytes(b"no photograph")
    return folder


def no_network(name: str, *, source: str) -> None:
    raise InfdError(f"{name}: no network")


def checkpoints(run: str) -> dict[str, str]:
    """Addresses and etags of all files of the run's checkpoints."""
    return {info.uri: info.etag for info in storage.list_objects(f"{run}/checkpoints")}


@pytest.mark.slow
def test_the_demo_reports_resumes_and_takes_away_only_its_own(stack, bucket, images, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(demo, "check_weights", lambda net: SimpleNamespace(state="missing"))
    monkeypatch.setattr(demo, "get_weights", no_network)
    monkeypatch.setattr(demo, "BUCKET", bucket)
    monkeypatch.setattr(demo_samples, "STEPS", 5)
    folder = tmp_path / "demo"

    def run() -> str:
        return demo.run_demo(images=str(images), folder=folder, submit=submit.submit_or_follow, started_s=1.0,
                             steps=4).read_text()

    page = run()
    assert "rejected: 1 too_small, 1 unsupported" in page and "LPIPS has weight 0" in page
    assert all(address.startswith("data:") for address in re.findall(r'src="([^"]*)"', page)) and page.count("<img") > 12
    assert not re.findall(r"<(?:script|link)\b", page)
    made = demo_clean.Made(**json.loads(next(folder.glob(demo_clean.RECORD)).read_text()))
    both = sorted(info.uri for info in storage.list_objects(made.dataset) if info.uri.endswith("mlflow.json"))
    denoising, training = map(storage.parent, both)
    before = checkpoints(training), checkpoints(denoising)
    assert "/ldm-tiny-" in denoising
    assert checkpoint.pointed(training, "last") == checkpoint.pointed(denoising, "last") == 4
    assert page.count('alt="generated, ') == 8 + 2 * (4 + 3) and "256 px of 2048 × 2048" in page

    monkeypatch.setattr(submit, "submit_or_follow", None)          # nothing is left to submit
    run()
    assert (checkpoints(training), checkpoints(denoising)) == before

    from mlflow.tracking import MlflowClient

    client, owned = MlflowClient(), [json.loads(storage.read_bytes(uri))["run_id"] for uri in both]
    own = owned[0]
    root = "/".join(bucket.split("/")[:3])
    assert any(own in info.uri for info in storage.list_objects(f"{root}/mlflow"))
    foreign = client.create_run(client.create_experiment(f"foreign-{own}")).info.run_id
    storage.put_atomic(f"{bucket}/datasets/demo-of-mine/shard", b"precious")
    demo_clean.clean(folder)
    assert [info.uri for info in storage.list_objects(bucket)] == [f"{bucket}/datasets/demo-of-mine/shard"]
    assert not any(own in info.uri for info in storage.list_objects(f"{root}/mlflow") for own in owned)
    assert {client.get_run(own).info.lifecycle_stage for own in owned} == {"deleted"}
    assert client.get_run(foreign).info.lifecycle_stage == "active" and not folder.exists()
    assert {root, f"MLflow experiment foreign-{own}"} <= {*demo_clean.others()}
    client.delete_run(foreign)
