"""Feature networks: published behaviour, weights by hash, names that do not claim to be FID's."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from data import photographs
from evaluation.networks import inception_state
from PIL import Image
from torch import nn

from infd import fetching, weights
from infd.compat import torchvision_ready
from infd.errors import ConfigError, WeightsError
from infd.evaluation import features
from infd.evaluation.efficientnet import EfficientNetLite0, SameConv
from infd.evaluation.features import INCEPTION, NetworkConfig, open_network


def needs(name: str) -> pytest.MarkDecorator:
    """Real weights that lie in this user's weights folder; nothing is fetched."""
    return pytest.mark.skipif(weights.check(name).state != "ok", reason=f"the real weights {name} are not here")


def noise(count: int = 3, side: int = 48, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return inception_state()


# ---------------------------------------------------------------- Inception


def test_ref_inception_features_are_torch_fidelitys(state, tmp_path):
    torchvision_ready()
    from torch_fidelity import FeatureExtractorInceptionV3

    torch.save(state, tmp_path / "w.pth")
    reference = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(tmp_path / "w.pth"))
    images = noise(2, 40)
    expected = reference(torch.from_numpy(images).permute(0, 3, 1, 2))[0].numpy()
    network = features.inception(state)
    np.testing.assert_array_equal(network(images), expected)
    fast = features.placed(network, "cpu")                           # other kernels, which add up in another order
    np.testing.assert_allclose(fast(images), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert network.dim == 2048 and expected.std() > 0.01 and "TensorFlow 1" in str(network.describe()["input"])


def test_law_inceptions_file_as_downloaded_and_the_converted_one_are_the_same_network(state, tmp_path, monkeypatch):
    file = io.BytesIO()
    torch.save(state, file)
    path = tmp_path / "pt_inception.pth"
    path.write_bytes(file.getvalue())
    official = weights.OfficialFile(url="https://example.org/pt_inception.pth", convert=weights.torch_tensors,
                                    sha256=hashlib.sha256(file.getvalue()).hexdigest()[:8])
    entry = weights.Network(name="inception-fid", use="", licence="", origin="", sources=(official,))
    monkeypatch.setitem(weights.NETWORKS, "inception-fid", entry)
    fetching.put(entry, fetching.encode(state), weights.weights_uri("inception-fid", str(tmp_path / "root")))
    downloaded = features.load_state(NetworkConfig(weights=str(path)))
    converted = features.load_state(NetworkConfig(weights=str(tmp_path / "root")))
    assert features.tensors_sha256(downloaded) == features.tensors_sha256(converted) == features.tensors_sha256(state)
    path.write_bytes(file.getvalue()[:-1] + b"\1")
    with pytest.raises(WeightsError, match=r"pt_inception\.pth has sha256 .*; expected https://example\.org"):
        features.load_state(NetworkConfig(weights=str(path)))


def test_error_absent_inception_says_file_hash_address_and_place_and_fetches_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("it reached for the network"))
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("it ran a program"))
    monkeypatch.setenv("INFD_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("INFD_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WeightsError) as found:
        open_network(NetworkConfig())
    for part in (f"no file {tmp_path}/inception-fid.safetensors", "https://github.com/mseitzer/pytorch-fid/releases/",
                 "sha256 6726825d", "into", "jobs/weights.py get inception-fid"):
        assert part in str(found.value)
    with pytest.raises(WeightsError, match="no file .*/none.pth; expected https://github.com/mseitzer"):
        open_network(NetworkConfig(weights=str(tmp_path / "none.pth")))


def test_error_state_of_another_network(state):
    with pytest.raises(WeightsError, match=f"{INCEPTION}: .*; expected the published state"):
        features.inception({name: value for name, value in state.items() if not name.startswith("fc.")})
    with pytest.raises(WeightsError, match="efficientnet-lite0: .*; expected its published state"):
        EfficientNetLite0.of(state)


# ---------------------------------------------------------------- the others


@pytest.mark.parametrize(("side", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (8, 5, 2), (9, 5, 1), (5, 1, 1)])
def test_ref_same_padding_puts_the_odd_pixel_last(side, kernel, stride):
    conv = SameConv(1, 1, kernel, stride)
    x = torch.rand(1, 1, side, side)
    out = -(-side // stride)
    total = max((out - 1) * stride + kernel - side, 0)
    padded = torch.zeros(1, 1, side + total, side + total)
    padded[..., total // 2:total // 2 + side, total // 2:total // 2 + side] = x
    torch.testing.assert_close(conv(x), F.conv2d(padded, conv.weight, stride=stride), rtol=0, atol=1e-6)
    assert conv(x).shape == (1, 1, out, out)


@needs("efficientnet-lite0")
@pytest.mark.parametrize(("name", "label"), [("china.jpg", 698), ("flower.jpg", 985)])    # palace, daisy
def test_golden_efficientnet_knows_what_a_photograph_shows(name, label):
    photo = photographs.opened(photographs.files()[name])
    photo = photo.resize((round(photo.width * 256 / photo.height), 256), Image.Resampling.LANCZOS)
    left = (photo.width - 224) // 2
    rgb = np.asarray(photo.crop((left, 16, left + 224, 240)), np.float32).transpose(2, 0, 1)[None]
    model = EfficientNetLite0.of(weights.load_weights("efficientnet-lite0"))
    assert int(model.classify(torch.from_numpy(rgb)).argmax()) == label


@needs("efficientnet-lite0")
@needs("lpips-alex")
@pytest.mark.parametrize(("name", "dim"), [("efficientnet-lite0", 1280), ("lpips-alex", 256)])
def test_law_real_networks_say_what_they_are(name, dim):
    network = open_network(NetworkConfig(name=name))
    found = network(noise(2, 100))
    assert found.shape == (2, dim) and found.dtype == np.float32 and np.isfinite(found).all() and found.std() > 0
    described = network.describe()
    assert described["weights_sha256"] == weights.network(name).sha256 and described["name"] == name
    np.testing.assert_allclose(network(noise(2, 100)[1:])[0], found[1], rtol=1e-3, atol=1e-4)   # alone as in company


def test_error_damaged_weights_are_refused(tmp_path):
    (tmp_path / "efficientnet-lite0.safetensors").write_bytes(b"other bytes")
    with pytest.raises(WeightsError, match="has sha256 .*; expected f46ec1c3"):
        open_network(NetworkConfig(name="efficientnet-lite0", weights=str(tmp_path)))


# ---------------------------------------------------------------- a network of the user's own


class Pooled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


class Map(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def scripted(module: nn.Module, path: Path, side: int = 32, **changes: object) -> NetworkConfig:
    torch.jit.trace(module, torch.zeros(1, 3, side, side)).save(str(path))
    given = {"name": "torchscript", "weights": str(path), "label": "own-net", "input_px": side,
             "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return NetworkConfig(**(given | changes))


def test_law_a_torchscript_file_is_a_network_under_its_own_name(tmp_path):
    config = scripted(Pooled(), tmp_path / "net.pt", mean=(0.5, 0.25, 0.0), std=(1.0, 0.5, 2.0))
    network = open_network(config)
    images = noise(2, 32)
    expected = (images / 255 - np.array([0.5, 0.25, 0])) / np.array([1, 0.5, 2])
    np.testing.assert_allclose(network(images), expected.mean(axis=(1, 2)), atol=1e-5)
    assert network(noise(2, 80)).shape == (2, 3)
    assert network.describe()["name"] == "own-net" and network.sha256 == config.sha256


def test_error_torchscript(tmp_path):
    config = scripted(Pooled(), tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"own-net: .*net\.pt has sha256 .*; expected 0000"):
        open_network(scripted(Pooled(), tmp_path / "net.pt", sha256="0" * 64))
    with pytest.raises(WeightsError, match="no file .*none.pt; expected a TorchScript file with sha256"):
        open_network(NetworkConfig(name="torchscript", weights=str(tmp_path / "none.pt"), label="x", sha256=config.sha256))
    (tmp_path / "text").write_bytes(b"words")
    with pytest.raises(WeightsError, match="is no TorchScript file"):
        open_network(NetworkConfig(name="torchscript", weights=str(tmp_path / "text"), label="x",
                                   sha256=hashlib.sha256(b"words").hexdigest()))
    with pytest.raises(WeightsError, match=r"gives a tensor of \(1, 3, 32, 32\); expected a tensor \(images, features\)"):
        open_network(scripted(Map(), tmp_path / "map.pt"))


@pytest.mark.parametrize("label", ["fid", "my-FID", "inception-x", "", "a b"])
def test_error_no_other_network_passes_for_fids(label):
    with pytest.raises(ConfigError, match="network.label"):
        NetworkConfig(name="torchscript", weights="x.pt", label=label, sha256="0" * 64)


def test_error_images_must_be_8_bit_rgb():
    from evaluation.networks import random_network

    with pytest.raises(ValueError, match=r"expected uint8 \(B, H, W, 3\)"):
        random_network()(np.zeros((2, 3, 32, 32), np.uint8))
