"""Temporary folders: the living keep theirs, those of the killed go."""

import os
import signal
import time
from pathlib import Path

import pytest
from pictures import picture

from infd import storage
from infd.config import IngestConfig
from infd.data import pyramid, scratch, shards, snapshot


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_law_a_folder_goes_with_its_block(temporary):
    with pytest.raises(KeyError), scratch.folder("infd-x-") as path:
        Path(path, "file").write_bytes(b"x")
        raise KeyError
    assert not os.listdir(temporary)


def test_law_a_unit_removes_what_a_killed_one_left(temporary):
    """A process dies by SIGKILL in the middle of a shard; another is at work; a third unit tidies up after the first."""
    def rows():
        yield photo
        os.kill(os.getpid(), signal.SIGKILL)

    def more():
        yield photo
        assert len(list(temporary.glob("infd-shard-*"))) == 2

    config = IngestConfig(min_side_px=16)
    photo = shards.photo_row("p.png", "", pyramid.encode(picture(40, 30), "png"), config=config, group="")
    with scratch.folder(snapshot.TEMPORARY) as living, scratch.folder("infd-other-") as other:
        pid = os.fork()
        if pid == 0:
            snapshot.write_shards(rows(), str(temporary / "ds"), config)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        assert len(list(temporary.glob("infd-shard-*"))) == 2
        snapshot.write_shards(more(), str(temporary / "ds"), config)
        assert list(map(str, temporary.glob("infd-shard-*"))) == [living] and os.path.exists(other)


def test_law_a_commit_removes_half_written_files(temporary):
    left = temporary / "ds" / "shards" / "ab" / f".x{storage.PARTIAL}"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    os.utime(left, (0, time.time() - 2 * storage.YOUNG_S))
    sources = [("p.png", pyramid.encode(picture(40, 30), "png"))]
    snapshot.write_dataset(sources, str(temporary / "ds"), IngestConfig(min_side_px=16))
    assert not left.exists()
