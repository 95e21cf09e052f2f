import logging
import random

import pytest
import torch

from cai.checkpoints import (
    VerifiedCheckpointIO,
    checkpoint_path,
    is_valid,
    newest,
    prune,
    step_of,
)
from cai.errors import UserError


def save(folder, step):
    path = checkpoint_path(folder, step)
    VerifiedCheckpointIO().save_checkpoint({"step": step, "weight": torch.ones(64)}, path)
    return path


def test_a_checkpoint_reads_back(tmp_path):
    path = save(tmp_path, 3)
    assert is_valid(path)
    assert step_of(path) == 3
    state = VerifiedCheckpointIO().load_checkpoint(path)
    assert state["step"] == 3
    assert torch.equal(state["weight"], torch.ones(64))


def test_the_newest_is_found_and_two_are_kept(tmp_path):
    for step in (2, 4, 10):
        save(tmp_path, step)
    prune(tmp_path)
    assert newest(tmp_path) == checkpoint_path(tmp_path, 10)
    assert sorted(map(step_of, tmp_path.glob("*.ckpt"))) == [4, 10]
    assert len(list(tmp_path.iterdir())) == 4


def test_nothing_is_found_in_an_empty_folder(tmp_path):
    assert newest(tmp_path) is None


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    path = save(tmp_path, 1)
    data = path.read_bytes()
    rng = random.Random(0)
    for _ in range(60):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        assert not is_valid(path)
        path.write_bytes(data[: rng.randrange(len(data))])
        assert not is_valid(path)
    path.write_bytes(data)
    assert is_valid(path)


def test_a_damaged_newest_falls_back_with_a_warning(tmp_path, caplog):
    for step in (1, 2):
        save(tmp_path, step)
    checkpoint_path(tmp_path, 2).write_bytes(b"torn")
    with caplog.at_level(logging.WARNING):
        assert newest(tmp_path) == checkpoint_path(tmp_path, 1)
    assert "step-00000002.ckpt is damaged" in caplog.text
    assert not checkpoint_path(tmp_path, 2).exists()


def test_a_checkpoint_without_its_hash_does_not_count(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    path.with_name(path.name + ".sha256").unlink()
    assert newest(tmp_path) == checkpoint_path(tmp_path, 1)


def test_orphans_of_a_killed_write_are_swept(tmp_path):
    orphan = tmp_path / ".step-00000003.ckpt.123.tmp"
    orphan.write_bytes(b"half")
    assert newest(tmp_path) is None
    assert not orphan.exists()


def test_objects_are_not_unpickled(tmp_path):
    path = tmp_path / "step-00000001.ckpt"
    torch.save({"object": UserError("x")}, path)
    with pytest.raises(Exception, match="Weights only load failed"):
        VerifiedCheckpointIO().load_checkpoint(path)
