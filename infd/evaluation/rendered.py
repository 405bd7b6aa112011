"""Images that a checkpoint renders when they are asked for: reconstructions of other images, seeds of a second stage, latents.

No image is written. A field has no size of its own: a patch of a view of side s is that part of the render at s x s, not
of a larger render brought down. Shapes: z (n, Z, l, l); images uint8 (H, W, 3).
"""

import hashlib
import io
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from infd import checkpoint, storage
from infd.config import DEFAULT_MODE, Mode, SampleConfig
from infd.config_form import flat
from infd.data.latents import MANIFEST, PINS, open_latents
from infd.errors import CheckpointError
from infd.evaluation.collect import versions
from infd.evaluation.errors import EvaluationError
from infd.evaluation.sources import DatasetSource, Sides, Source, Split, bicubic, require_side, rows_of, square
from infd.generation.load import autoencoder_config, denoiser_config, load_autoencoder
from infd.generation.model import Model, load_model
from infd.generation.reconstruct import To8Bits, to_pixels
from infd.generation.registry import resolve
from infd.models.autoencoder import Autoencoder
from infd.models.fields import Field

KEPT_FIELDS = 4
UNIT = 32
"""Seeds whose latents are kept as one file."""
KEPT_UNITS = 64
"""Units of latents that stay in memory."""
TOGETHER = 16
"""Seeds of a unit that are sampled at once."""


class Fields(Protocol):
    """Fields by index, from 0 on."""

    uri: str

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def address(self, index: int) -> str:
        """For messages."""
        ...

    def native(self, index: int) -> int:
        """The side, in pixels, of the image that the field stands for; 0: it stands for none."""
        ...

    def make(self, index: int) -> Field:
        """A field of one image. Called by one thread at a time."""
        ...

    def facts(self) -> dict[str, object]:
        """All that the fields depend on, for the report; `kind` among them."""
        ...


class RenderedSource:
    """Renders of fields, a `Source` of square images. Law: a patch is the crop of the render of its view."""

    def __init__(self, fields: Fields, *, side: int, mode: Mode = DEFAULT_MODE, to_8_bits: To8Bits = "nearest") -> None:
        """`side` of the images, pixels; 0: of what each field stands for. `mode`: of the renderer's norms.

        Raises EvaluationError: no field, or side 0 and fields that stand for no image.
        """
        self.fields, self.side, self.uri = fields, side, fields.uri
        self.mode: Mode = mode
        self.to_8_bits: To8Bits = to_8_bits
        if not len(fields):
            raise EvaluationError(f"{self.uri}: no fields were asked for; expected some; ask for seeds, or name images")
        if not side and not fields.native(0):
            raise EvaluationError(f"{self.uri}: seeds have no size of their own; expected a side in pixels; choose one")
        self._lock = threading.Lock()
        self._made: OrderedDict[int, Field] = OrderedDict()

    def __len__(self) -> int:
        return len(self.fields)

    def name(self, index: int) -> str:
        return self.fields.name(index)

    def address(self, index: int) -> str:
        return self.fields.address(index)

    def sides(self, index: int) -> Sides:
        side = self.side or self.fields.native(index)
        return Sides(side, side)

    def read(self, index: int) -> np.ndarray:
        side = self.sides(index).short
        return to_pixels(self.field(index).render(side, side, statistics=self.mode), to_8_bits=self.to_8_bits)

    def patch(self, index: int, *, side: int, y: int, x: int, p: int, offset: float | str = "center") -> np.ndarray:
        """The part of the render at side x side; `offset` says nothing of a square."""
        require_side(self, index, side)
        rgb = self.field(index).render(side, side, box=(y, x, y + p, x + p), statistics=self.mode)
        return to_pixels(rgb, to_8_bits=self.to_8_bits)

    def field(self, index: int) -> Field:
        """The field of an image; the most recent stay."""
        with self._lock:
            if index not in self._made:
                self._made[index] = self.fields.make(index)
            self._made.move_to_end(index)
            while len(self._made) > KEPT_FIELDS:
                self._made.popitem(last=False)
            return self._made[index]

    def fingerprint(self) -> str:
        return digest({"fields": self.fields.facts(), "side": self.side, "mode": self.mode, "to_8_bits": self.to_8_bits})

    def describe(self) -> dict[str, object]:
        return {"uri": self.uri, "images": len(self), "side": self.side, "mode": self.mode, "to_8_bits": self.to_8_bits,
                "fingerprint": self.fingerprint(), **self.fields.facts()}


def digest(facts: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- reconstructions


def reconstructions(
    truth: Source, uri: str, *, side: int = 0, mode: Mode = DEFAULT_MODE, to_8_bits: To8Bits = "nearest", through_px: int = 0,
    device: str = "cpu",
) -> RenderedSource:
    """The centred views of `truth`, such as a dataset's split, through the autoencoder of a checkpoint and back.

    `side` of the renders, pixels; 0: the short side of each image. `through_px`: as `Reconstructed`.
    Raises CheckpointError: none, or of another stage.
    """
    fields = Reconstructed(truth, uri, through_px=through_px, device=device)
    return RenderedSource(fields, side=side, mode=mode, to_8_bits=to_8_bits)


class Reconstructed:
    """The fields of images, which the encoder sees as it saw those of its training: at its lowres side."""

    def __init__(self, truth: Source, uri: str, *, through_px: int = 0, device: str = "cpu") -> None:
        """`through_px`: what the encoder sees is made, bicubic, from the image brought to this side, bicubic too, as papers of
        super-resolution make their inputs; 0: from the image itself, by Lanczos. Raises EvaluationError: a side below it.
        """
        found = checkpoint.load(resolve(uri))
        autoencoder_config(found)
        self.truth, self.uri, self.device = truth, found.uri, device
        self.sha256, self.step = found.files[checkpoint.MODEL]["sha256"], found.step
        self.lowres_px, self.through_px = encoder_side(found), through_px
        if 0 < through_px < self.lowres_px:
            raise EvaluationError(f"{uri}: its encoder sees {self.lowres_px} px; a truth of {through_px} px holds no more than "
                                  "that; expected a larger one; choose larger sizes")

    def __len__(self) -> int:
        return len(self.truth)

    def name(self, index: int) -> str:
        return self.truth.name(index)

    def address(self, index: int) -> str:
        return f"reconstruction of {self.truth.address(index)}"

    def native(self, index: int) -> int:
        return self.truth.sides(index).short

    def make(self, index: int) -> Field:
        return reconstructed_field(self.autoencoder, self.truth, index, lowres_px=self.lowres_px, through_px=self.through_px)

    @cached_property
    def autoencoder(self) -> Autoencoder:
        return load_autoencoder(self.uri, device=self.device)

    def facts(self) -> dict[str, object]:
        return {"kind": "reconstructions", "checkpoint_sha256": self.sha256, "step": self.step,
                "of": self.truth.fingerprint(), "lowres_px": self.lowres_px, "through_px": self.through_px}


def encoder_side(found: checkpoint.Checkpoint) -> int:
    """The side in pixels that the encoder of a stage-one checkpoint sees."""
    return int(found.meta["config"]["crop.lowres_px"])


def reconstructed_field(
    autoencoder: Autoencoder, truth: Source, index: int, *, lowres_px: int, through_px: int = 0,
) -> Field:
    """The field of an image, through the encoder and the decoder."""
    seen = lowres(truth, index, lowres_px, through_px)
    rgb = torch.from_numpy(np.ascontiguousarray(seen.transpose(2, 0, 1)))[None]
    device = next(autoencoder.parameters()).device
    with torch.no_grad():
        return autoencoder.field(autoencoder.encode(rgb.to(device).float() / 127.5 - 1))


def lowres(truth: Source, index: int, side: int, through_px: int = 0) -> np.ndarray:
    """What an encoder sees of an image, uint8 (L, L, 3); of a dataset the bytes that it stores for this."""
    if through_px:
        return bicubic(square(truth, index, through_px, resample="bicubic"), side)
    if isinstance(truth, DatasetSource):
        return truth.dataset.lowres(int(truth.rows[index]), size=side)
    return truth.patch(index, side=side, y=0, x=0, p=side)


# ---------------------------------------------------------------- seeds


DEFAULT_SAMPLE = SampleConfig()


def drawn(uri: str, seeds: Sequence[int], *, side: int, config: SampleConfig = DEFAULT_SAMPLE, to_8_bits: To8Bits = "nearest",
          device: str = "cpu", kept: str = "") -> RenderedSource:
    """One image a seed of a stage-two checkpoint, rendered at `side`. `kept`: a folder or prefix where latents are kept.

    Raises CheckpointError: none, or of another stage.
    """
    return RenderedSource(Drawn(uri, seeds, config, device=device, kept=kept), side=side, mode=config.mode, to_8_bits=to_8_bits)


class Drawn:
    """The fields of seeds. Seeds are sampled in fixed groups, whatever is asked for first.

    Law: the latent of a seed depends on the seed alone, but for rounding, which the group that it is sampled in decides.
    """

    def __init__(self, uri: str, seeds: Sequence[int], config: SampleConfig, *, device: str = "cpu", kept: str = "") -> None:
        found = checkpoint.load(resolve(uri))
        denoiser_config(found)
        self.uri, self.seeds, self.config = found.uri, seeds, config
        self.device, self.kept = device, kept
        self.sha256, self.step = found.files[checkpoint.MODEL]["sha256"], found.step
        self._units: OrderedDict[int, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self.seeds)

    def name(self, index: int) -> str:
        return f"seed-{self.seeds[index]:08d}"

    def address(self, index: int) -> str:
        return f"{self.uri} seed {self.seeds[index]}"

    def native(self, index: int) -> int:
        return 0

    def make(self, index: int) -> Field:
        unit, inside = divmod(index, UNIT)
        return self.model.field(self.latents(unit)[inside][None].to(self.device))

    @property
    def units(self) -> int:
        """Number of units of UNIT seeds; the last may be smaller."""
        return -(-len(self.seeds) // UNIT)

    def latents(self, unit: int) -> Tensor:
        """z float32 (n, Z, l, l) of a unit's seeds, on the CPU; from where they are kept, else sampled and put there."""
        if unit not in self._units:
            self._units[unit] = self._from_kept(unit)
            while len(self._units) > KEPT_UNITS:
                self._units.popitem(last=False)
        self._units.move_to_end(unit)
        return self._units[unit]

    def kept_at(self, unit: int) -> str:
        """Address of a unit's latents; the name stands for all that they depend on."""
        facts = self.facts() | {"seeds": told(self.seeds[unit * UNIT:(unit + 1) * UNIT]), "device": self.device,
                                 "versions": versions()}
        return storage.join(self.kept, f"latents-{digest(facts)[:32]}.safetensors")

    def _from_kept(self, unit: int) -> Tensor:
        if not self.kept:
            return self._sampled(unit)
        where = self.kept_at(unit)
        if not storage.exists(where):
            storage.put_atomic(where, safetensors.torch.save({"z": self._sampled(unit)}))
        try:
            return safetensors.torch.load(storage.read_bytes(where))["z"]
        except (SafetensorError, KeyError) as error:
            raise EvaluationError(f"{where}: cannot be read as latents ({type(error).__name__}); expected a safetensors file; "
                                  "delete it, and it is made anew") from error

    def _sampled(self, unit: int) -> Tensor:
        config, seeds = self.config, self.seeds[unit * UNIT:(unit + 1) * UNIT]
        groups = [self.model.latents(
            seeds[start:start + TOGETHER], steps=config.steps, sampler=None if config.sampler == "auto" else config.sampler,
            eta=config.eta, guidance=config.guidance, group=config.group, context=self.context)
            for start in range(0, len(seeds), TOGETHER)]
        return torch.cat(groups).float().cpu().contiguous()

    @cached_property
    def model(self) -> Model:
        return load_model(self.uri, device=self.device, weights=self.config.weights)

    @cached_property
    def context(self) -> Tensor | None:
        """The embedding of a caption, (S, K), where one was asked for. Raises EvaluationError: no such file."""
        if not self.config.context:
            return None
        try:
            found = np.load(io.BytesIO(storage.read_bytes(self.config.context)), allow_pickle=False)
        except ValueError as error:
            raise EvaluationError(f"{self.config.context}: {error}; expected a .npy file of S x K numbers; name another"
                                  ) from error
        if found.ndim != 2:
            raise EvaluationError(f"{self.config.context}: holds {found.shape}; expected S x K numbers; name another file")
        return torch.from_numpy(found.astype(np.float32))

    def facts(self) -> dict[str, object]:
        sampling = {name: value for name, value in flat(self.config).items() if name != "mode"}
        if self.context is not None:
            sampling["context"] = hashlib.sha256(self.context.numpy().tobytes()).hexdigest()
        return {"kind": "seeds", "checkpoint_sha256": self.sha256, "step": self.step, "seeds": told(self.seeds),
                "sampling": sampling, "sampled_together": TOGETHER}


def told(seeds: Sequence[int]) -> str:
    """ "0 … 99", or all of them where they do not follow one another."""
    first, last = seeds[0], seeds[-1]
    return f"{first} … {last}" if list(seeds) == list(range(first, last + 1)) else " ".join(map(str, seeds))


# ---------------------------------------------------------------- latents


def stored(
    uri: str, truth: Source | None = None, *, split: Split = "all", side: int = 0, mode: Mode = DEFAULT_MODE,
    to_8_bits: To8Bits = "nearest", device: str = "cpu",
) -> RenderedSource:
    """The renders of encoded latents, by the autoencoder that lies with them. Arguments as `Stored`, `reconstructions`."""
    return RenderedSource(Stored(uri, truth, split=split, device=device), side=side, mode=mode, to_8_bits=to_8_bits)


class Stored:
    """The fields of latents: of the photos of `truth`, where it is of the snapshot that was encoded; else of a split's."""

    def __init__(self, uri: str, truth: Source | None = None, *, split: Split = "all", device: str = "cpu") -> None:
        """Raises DatasetError: no latents, or not all yet."""
        self.latents, self.device = open_latents(uri), device
        self.uri = self.latents.uri
        self.truth: DatasetSource | None = None
        if isinstance(truth, DatasetSource) and self.latents.are_of(truth.dataset):
            self.truth, self.rows, self.split = truth, truth.rows, truth.split
        else:
            self.rows, self.split = rows_of(self.latents.manifest, split), split

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """As the photo of the snapshot, or its id."""
        return self.truth.name(index) if self.truth else str(self.latents[int(self.rows[index])]["image_id"])

    def address(self, index: int) -> str:
        return f"{self.uri} row {self.rows[index]}"

    def native(self, index: int) -> int:
        return int(self.latents.manifest.short_side[self.rows[index]])

    def make(self, index: int) -> Field:
        z = torch.from_numpy(self.latents.take("z", int(self.rows[index])).astype(np.float32))[None]
        with torch.no_grad():
            return self.autoencoder.field(z[:, :self.latents.info["z_dim"]].to(self.device))  # of a Gaussian latent its means

    @cached_property
    def autoencoder(self) -> Autoencoder:
        return load_autoencoder(self.latents.autoencoder_uri, device=self.device)

    def facts(self) -> dict[str, object]:
        info = self.latents.info
        return {"kind": "latents", "latents_sha256": self.latents.sha256, "checkpoint_sha256": info["checkpoint_sha256"],
                "snapshot": info["snapshot"], "split": self.split, "dtype": info["dtype"]}


# ---------------------------------------------------------------- which of them


def kind_at(uri: str) -> str:
    """ "autoencoder" or "latent_diffusion" of a checkpoint, "latents" where some lie, whole or begun; "" of all else."""
    if not uri.startswith("models:/") and any(storage.exists(storage.join(uri, name)) for name in (MANIFEST, PINS)):
        return "latents"
    return stage_at(uri)


def stage_at(uri: str) -> str:
    """The stage of the checkpoint at an address, "autoencoder" or "latent_diffusion"; "" where there is no checkpoint."""
    if not (uri.startswith("models:/") or uri.rstrip("/").rsplit("/", 1)[-1] in checkpoint.POINTERS
            or checkpoint.is_whole(uri)):
        return ""
    try:
        return str(checkpoint.load(resolve(uri)).meta.get("stage", "autoencoder"))
    except CheckpointError:
        if uri.startswith("models:/") or storage.exists(f"{uri.rstrip('/')}.json"):
            raise
        return ""
