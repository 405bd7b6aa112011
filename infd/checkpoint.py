"""Checkpoints: a folder that is whole or does not exist.

    RUN/checkpoints/step-00000500/model.safetensors         networks: autoencoder.…, discriminator.…
                                  train_state.safetensors   optimizers
                                  meta.json                 config, step, snapshot, metrics, versions
                                  complete.json             sha256 and size of the three, written last
                                  evaluation.json           figures that were made of it afterwards, if any
    RUN/checkpoints/last.json, best.json                    {"checkpoint": "step-00000500"}

A folder without complete.json does not exist. Reading never unpickles, and checks every hash.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from infd import storage
from infd.errors import CheckpointError

FORMAT = 1
MODEL, TRAIN_STATE, META, COMPLETE = "model.safetensors", "train_state.safetensors", "meta.json", "complete.json"
EVALUATION = "evaluation.json"
POINTERS = ("last", "best")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. Tensors are read when asked for, and checked against complete.json."""

    uri: str
    meta: dict[str, Any]
    files: dict[str, dict[str, Any]]

    @property
    def step(self) -> int:
        return int(self.meta["step"])

    def model(self, prefix: str = "") -> dict[str, Tensor]:
        """Network tensors on the CPU whose names begin with `prefix`, the prefix taken off."""
        return self._tensors(MODEL, prefix)

    def train_state(self) -> dict[str, Tensor]:
        """Optimizer tensors on the CPU."""
        return self._tensors(TRAIN_STATE, "")

    def _tensors(self, name: str, prefix: str) -> dict[str, Tensor]:
        tensors = safetensors.torch.load(_checked(self.uri, name, self.files))
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def save(uri: str, *, model: dict[str, Tensor], train_state: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write the checkpoint folder `uri`; complete.json comes last, so that a killed write leaves nothing to load."""
    for name in (COMPLETE, EVALUATION):
        if storage.exists(storage.join(uri, name)):
            storage.delete(storage.join(uri, name))
    contents = {
        MODEL: safetensors.torch.save(_plain(model)),
        TRAIN_STATE: safetensors.torch.save(_plain(train_state)),
        META: _json({"format": FORMAT, **meta}),
    }
    files = {}
    for name, data in contents.items():
        storage.put_atomic(storage.join(uri, name), data)
        files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    storage.put_atomic(storage.join(uri, COMPLETE), _json({"format": FORMAT, "files": files}))


def judged(uri: str, figures: dict[str, float]) -> None:
    """Keep figures that were made after the checkpoint `uri` was whole; `load` adds them to its metrics."""
    storage.put_atomic(storage.join(uri, EVALUATION), _json(figures))


def load(uri: str) -> Checkpoint:
    """The checkpoint at `uri`: its folder, or RUN/checkpoints/last or /best.

    Raises CheckpointError where there is none, where it is incomplete, or of another format.
    """
    uri = uri.rstrip("/")
    if uri.rsplit("/", 1)[-1] in POINTERS:
        if not storage.exists(f"{uri}.json"):
            raise CheckpointError(f"checkpoint {uri}: no {uri}.json; a run writes it with its first checkpoint; "
                                  "check the address, or name a step-… folder")
        uri = storage.join(storage.parent(uri), json.loads(storage.read_bytes(f"{uri}.json"))["checkpoint"])
    if not storage.exists(storage.join(uri, COMPLETE)):
        instead = (f"it is a run; name one of its checkpoints, as {storage.join(uri, 'checkpoints', 'best')}"
                   if storage.exists(storage.join(uri, "run.json")) else "check the address, or use another step")
        raise CheckpointError(f"checkpoint {uri}: no {COMPLETE}; a whole checkpoint has one; {instead}")
    complete = json.loads(storage.read_bytes(storage.join(uri, COMPLETE)))
    if complete["format"] != FORMAT:
        raise CheckpointError(f"checkpoint {uri}: format {complete['format']}; this version reads {FORMAT}; "
                              "use the version that wrote it")
    meta = json.loads(_checked(uri, META, complete["files"]))
    if storage.exists(storage.join(uri, EVALUATION)):
        meta["metrics"] = meta["metrics"] | json.loads(storage.read_bytes(storage.join(uri, EVALUATION)))
    return Checkpoint(uri, meta, complete["files"])


def is_whole(uri: str) -> bool:
    """Whether a whole checkpoint lies in the folder `uri`."""
    return storage.exists(storage.join(uri, COMPLETE))


def newest(run: str) -> Checkpoint | None:
    """The checkpoint that a run resumes from, or None before its first: what `last` means, or, where that was being written
    anew, the newest whole one."""
    step = pointed(run, "last")
    if step is None:
        return None
    if not storage.exists(storage.join(step_uri(run, step), COMPLETE)):
        step = max(steps(run), default=step)
    return load(step_uri(run, step))


def put_into(what: str, module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load a checkpoint's tensors. Raises CheckpointError naming what is missing, left over or of another shape."""
    wanted = module.state_dict()
    other = [f"{name} {tuple(weights[name].shape)}, not {tuple(value.shape)}" for name, value in wanted.items()
             if name in weights and weights[name].shape != value.shape]
    problems = {"missing": sorted(wanted.keys() - weights.keys()), "left over": sorted(weights.keys() - wanted.keys()),
                "of another shape": other}
    if any(problems.values()):
        raise CheckpointError(f"{what}: " + "; ".join(
            f"{len(names)} tensors {kind} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
            for kind, names in problems.items() if names) + "; take a checkpoint of the same model")
    module.load_state_dict(weights)


def step_uri(run: str, step: int) -> str:
    return storage.join(run, "checkpoints", f"step-{step:08d}")


def point(run: str, pointer: str, step: int) -> None:
    """Let RUN/checkpoints/`pointer` mean the checkpoint of `step`."""
    storage.put_atomic(storage.join(run, "checkpoints", f"{pointer}.json"), _json({"checkpoint": f"step-{step:08d}"}))


def pointed(run: str, pointer: str) -> int | None:
    """The step that a pointer means, or None."""
    uri = storage.join(run, "checkpoints", f"{pointer}.json")
    if not storage.exists(uri):
        return None
    return int(json.loads(storage.read_bytes(uri))["checkpoint"].removeprefix("step-"))


def steps(run: str) -> list[int]:
    """Steps of the complete checkpoints of a run, ascending."""
    return sorted(step for step, names in folders(run).items() if COMPLETE in names)


def folders(run: str) -> dict[int, set[str]]:
    """Names of the files of each checkpoint folder of a run, complete or not."""
    found: dict[int, set[str]] = {}
    for info in storage.list_objects(storage.join(run, "checkpoints")):
        folder, name = info.uri.split("/")[-2:]
        if folder.startswith("step-"):
            found.setdefault(int(folder.removeprefix("step-")), set()).add(name)
    return found


def prune(run: str, *, keep_every: int) -> None:
    """Remove all checkpoints but the newest two, best, and multiples of `keep_every`; complete.json goes first.

    The one before the last stays for whoever is just reading it. What a killed save or removal left goes too.
    """
    found = folders(run)
    whole = sorted(step for step, names in found.items() if COMPLETE in names)
    keep = {*(pointed(run, pointer) for pointer in POINTERS), *whole[-2:]}
    for step in sorted(found):
        if step not in keep and (step % keep_every or COMPLETE not in found[step]):
            if COMPLETE in found[step]:
                storage.delete(storage.join(step_uri(run, step), COMPLETE))
            storage.delete_prefix(step_uri(run, step))


def _checked(uri: str, name: str, files: dict[str, dict[str, Any]]) -> bytes:
    data = storage.read_bytes(storage.join(uri, name))
    found = hashlib.sha256(data).hexdigest()
    if found != files[name]["sha256"]:
        raise CheckpointError(f"checkpoint {uri}: {name} has {len(data)} bytes and sha256 {found[:12]}…; {COMPLETE} says "
                              f"{files[name]['bytes']} and {files[name]['sha256'][:12]}…; use another step")
    return data


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()
