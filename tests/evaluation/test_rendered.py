"""Renders as sources: patches are parts of the whole, an image is the same whoever asks, and both stages have their place."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from evaluation.checkpoints import autoencoder_checkpoint, diffusion_checkpoint, encoded_latents, photographs
from evaluation.folders import folder
from pictures import encoded, picture
from PIL import Image

from infd import storage
from infd.config import IngestConfig, SampleConfig
from infd.data.snapshot import write_dataset
from infd.errors import CheckpointError, ConfigError
from infd.evaluation import rendered
from infd.evaluation.errors import EvaluationError
from infd.evaluation.evaluate import matched
from infd.evaluation.rendered import drawn, kind_at, reconstructions, stage_at, stored
from infd.evaluation.sources import DatasetSource, FolderSource
from infd.generation.load import load_autoencoder
from infd.generation.model import load_model
from infd.generation.reconstruct import reconstruct, to_image, to_pixels, to_tensor

QUICK = SampleConfig(steps=2)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> str:
    return autoencoder_checkpoint(tmp_path_factory.mktemp("ae") / "checkpoint")


@pytest.fixture(scope="module")
def second(tmp_path_factory) -> str:
    return diffusion_checkpoint(tmp_path_factory.mktemp("ldm") / "checkpoint")


@pytest.fixture
def truth(tmp_path) -> FolderSource:
    return FolderSource(str(folder(tmp_path / "photos", [(70, 50), (50, 64), (48, 48)])))


def test_law_reconstructions_are_those_of_the_library(first, truth):
    source = reconstructions(truth, first, side=40)
    autoencoder = load_autoencoder(first)
    assert [source.name(index) for index in range(3)] == [truth.name(index) for index in range(3)] and len(source) == 3
    for index in range(3):
        image = Image.fromarray(truth.read(index))
        [(_, expected)] = reconstruct(autoencoder, image, [40], lowres_px=32)
        assert np.abs(source.read(index).astype(int) - np.asarray(expected, int)).max() <= 1
    assert source.sides(0) == (40, 40) and reconstructions(truth, first).sides(1) == (50, 50)
    assert np.abs(source.read(0).astype(int) - source.read(1)).max() > 0


def test_law_the_encoder_sees_the_bytes_that_a_dataset_stores_for_it(first, tmp_path):
    dataset = photographs(tmp_path / "data")
    source = DatasetSource(dataset, split="val")
    fields = reconstructions(source, first).fields
    row = int(source.rows[1])
    np.testing.assert_array_equal(rendered.lowres(source, 1, 32), dataset.lowres(row, size=32))
    assert fields.name(1) == f"photo-{row:02d}.png" and "row" in fields.address(1)


def test_ref_super_resolution_shows_the_encoder_its_own_truth_brought_down(first, truth):
    """Bicubic to the truth's side, and bicubic again from there: what a low-resolution input of those papers is."""
    fields = reconstructions(truth, first, through_px=40).fields
    image = Image.fromarray(truth.read(0)).crop((10, 0, 60, 50))                         # the centre of 70 x 50
    wanted = image.resize((40, 40), Image.Resampling.BICUBIC).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(rendered.lowres(truth, 0, 32, 40), np.asarray(wanted))
    autoencoder = load_autoencoder(first)
    with torch.no_grad():
        field = autoencoder.field(autoencoder.encode(to_tensor(wanted)))
    np.testing.assert_array_equal(to_pixels(fields.make(0).render(40, 40)), to_pixels(field.render(40, 40)))
    with pytest.raises(EvaluationError, match="its encoder sees 32 px; a truth of 24 px holds no more than that"):
        reconstructions(truth, first, through_px=24)


@pytest.mark.parametrize("split", ["all", "val"])
def test_law_latents_show_what_their_autoencoder_reconstructs(first, tmp_path, split):
    dataset = photographs(tmp_path / "data")
    uri = encoded_latents(tmp_path / "latents", dataset, first)
    assert kind_at(uri) == "latents" and kind_at(first) == "autoencoder" and kind_at(str(tmp_path)) == ""
    truth = DatasetSource(dataset, split=split)
    found, wanted = stored(uri, truth, side=48), reconstructions(truth, first, side=48)
    assert len(found) == len(truth) and found.sides(0) == (48, 48)
    for index in (0, len(truth) - 1):
        assert found.name(index) == truth.name(index)
        assert np.abs(found.read(index).astype(int) - wanted.read(index)).max() <= 1     # two sizes of batch
    assert stored(uri, truth).sides(1) == reconstructions(truth, first).sides(1)
    alone = stored(uri, split=split, side=48)                                            # nothing to match them with
    np.testing.assert_array_equal(alone.read(0), found.read(0))
    assert alone.name(0) == dataset[int(truth.rows[0])]["image_id"] and alone.fingerprint() == found.fingerprint()
    other = DatasetSource(photographs(tmp_path / "other", count=5))
    assert len(stored(uri, other, side=48)) == len(dataset)                              # of another snapshot


def test_law_photos_of_one_name_are_matched_with_their_own_reconstructions(first, tmp_path):
    files = [(f"s3://b/{place}/photo.png", encoded(picture(64, 64, place))) for place in range(3)]
    truth = DatasetSource(write_dataset(files, str(tmp_path), IngestConfig(min_side_px=64, val_fraction=0)))
    assert matched((truth, reconstructions(truth, first)), 0) == [("photo", (index, index)) for index in range(3)]
    with pytest.raises(EvaluationError, match="needs at least 4"):
        matched((truth, reconstructions(truth, first)), 4)


@pytest.mark.parametrize("mode", ["whole", "window", "reference"])
def test_law_a_patch_is_the_crop_of_the_render_of_its_view(second, mode):
    source = drawn(second, range(3), side=64, config=SampleConfig(steps=2, mode=mode))
    image = source.read(2)
    part = source.patch(2, side=64, y=5, x=11, p=30)
    assert image.shape == (64, 64, 3) and np.abs(part.astype(int) - image[5:35, 11:41]).max() <= 1
    assert source.patch(2, side=40, y=0, x=0, p=40).shape == (40, 40, 3)


def test_law_seeds_are_the_models_own_in_any_order_and_from_threads(second, monkeypatch):
    monkeypatch.setattr(rendered, "UNIT", 4)
    monkeypatch.setattr(rendered, "TOGETHER", 2)
    monkeypatch.setattr(rendered, "KEPT_UNITS", 1)
    monkeypatch.setattr(rendered, "KEPT_FIELDS", 1)
    source = drawn(second, range(5, 12), side=32, config=QUICK)
    forward = [source.read(index) for index in range(7)]
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(source.read, [6, 0, 3, 5, 1, 4, 2]))
    for index, image in zip([6, 0, 3, 5, 1, 4, 2], again, strict=True):
        np.testing.assert_array_equal(image, forward[index])
    model = load_model(second)
    for index, seed in enumerate(range(5, 12)):
        alone = np.asarray(to_image(model.sample(seed, steps=2).render(32, 32)), int)
        assert np.abs(forward[index].astype(int) - alone).max() <= 1
    assert source.name(0) == "seed-00000005" and len({image.tobytes() for image in forward}) == 7


def test_law_kept_latents_are_read_and_not_sampled_again(second, tmp_path, monkeypatch):
    kept = str(tmp_path / "work")
    before = drawn(second, range(3), side=32, config=QUICK, kept=kept).read(2)
    monkeypatch.setattr(rendered.Drawn, "_sampled", lambda *_: pytest.fail("sampled again"))
    np.testing.assert_array_equal(drawn(second, range(3), side=32, config=QUICK, kept=kept).read(2), before)
    monkeypatch.undo()
    other = drawn(second, range(3), side=32, config=SampleConfig(steps=3), kept=kept).read(2)
    assert not np.array_equal(other, before)
    for info in storage.list_objects(kept):
        storage.put_atomic(info.uri, b"no tensors")
    with pytest.raises(EvaluationError, match="latents-.*cannot be read as latents.*delete it"):
        drawn(second, range(3), side=32, config=QUICK, kept=kept).read(0)


def test_law_fingerprints_tell_apart_all_that_changes_the_images(first, second, truth, tmp_path):
    other = autoencoder_checkpoint(tmp_path / "other", seed=1)
    sources = [drawn(second, range(3), side=32, config=QUICK), drawn(second, range(4), side=32, config=QUICK),
               drawn(second, range(3), side=40, config=QUICK), drawn(second, range(3), side=32),
               drawn(second, range(3), side=32, config=SampleConfig(steps=2, mode="whole")),
               reconstructions(truth, first), reconstructions(truth, first, side=40), reconstructions(truth, other)]
    assert len({source.fingerprint() for source in sources}) == len(sources)
    copy = storage.join(str(tmp_path), "copy")
    diffusion_checkpoint(copy)
    assert drawn(copy, range(3), side=32, config=QUICK).fingerprint() == sources[0].fingerprint()
    described = sources[1].describe()
    assert described["kind"] == "seeds" and described["seeds"] == "0 … 3" and described["images"] == 4


def test_error_a_context_that_is_none(second, tmp_path):
    where = tmp_path / "caption.npy"
    np.save(where, np.zeros(3))
    for damage, message in ((None, r"holds \(3,\); expected S x K"), (b"words", "expected a .npy file of S x K numbers")):
        if damage:
            where.write_bytes(damage)
        with pytest.raises(EvaluationError, match=message):
            drawn(second, range(2), side=32, config=SampleConfig(context=str(where))).fingerprint()
    np.save(where, np.zeros((2, 3)))
    with pytest.raises(ConfigError, match="the model has no condition on captions"):
        drawn(second, range(2), side=32, config=SampleConfig(context=str(where))).read(0)


def test_the_stage_of_an_address(first, second, tmp_path):
    assert stage_at(first) == "autoencoder" and stage_at(second) == "latent_diffusion" and stage_at(str(tmp_path)) == ""
    assert stage_at(f"{tmp_path}/checkpoints/best") == ""


def test_error_of_another_stage_without_a_side_or_too_large(first, second, truth):
    with pytest.raises(CheckpointError, match="stage latent_diffusion; an autoencoder was expected"):
        reconstructions(truth, second)
    with pytest.raises(CheckpointError, match="stage autoencoder; a denoiser was expected"):
        drawn(first, range(3), side=32)
    with pytest.raises(EvaluationError, match="seeds have no size of their own"):
        drawn(second, range(3), side=0)
    with pytest.raises(EvaluationError, match="no fields were asked for"):
        drawn(second, range(0), side=32)
    with pytest.raises(EvaluationError, match="48x48; side 64 was asked for and nothing is enlarged"):
        reconstructions(truth, first, side=48).patch(0, side=64, y=0, x=0, p=8)
