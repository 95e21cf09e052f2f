from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
from pathlib import Path

import pytest

from cai.artifacts import (
    MANIFEST,
    Artifact,
    Store,
    Work,
    digest_of,
    in_shards,
    write_atomically,
)
from cai.errors import UserError
from cai.types import Message

KEY = {"config": {"a": 1}}


def messages(chunk: list[int], _advance: object) -> list[Message]:
    return [Message(role="user", content=str(number)) for number in chunk]


def fill(store: Store, items: list[int], make=messages, shard_size: int = 3) -> Artifact:
    artifact = store.artifact("drafts", KEY)
    with store.filling(artifact) as work:
        records = in_shards(
            work, items, kind=Message, shard_size=shard_size, make=make, unit="rows"
        )
        work.write_records(records)
        store.commit(work, {"counts": {}})
    return artifact


def test_an_artifact_is_complete_when_its_manifest_is_there(tmp_path: Path) -> None:
    store = Store(root=tmp_path)
    artifact = fill(store, list(range(7)))
    assert artifact.complete
    assert [m.content for m in artifact.records(Message)] == [str(i) for i in range(7)]
    assert sorted(p.name for p in artifact.folder.iterdir()) == [MANIFEST, "records.jsonl"]
    assert not store.artifact("drafts", {"config": {"a": 2}}).complete


def test_the_digest_depends_on_content_not_on_key_order() -> None:
    assert digest_of({"a": 1, "b": [1.0]}) == digest_of({"b": [1.0], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})
    with pytest.raises(ValueError, match="JSON"):
        digest_of({"a": float("nan")})


def test_finished_shards_are_not_computed_again(tmp_path: Path) -> None:
    store = Store(root=tmp_path)
    seen: list[list[int]] = []

    def dies_at_six(chunk: list[int], advance: object) -> list[Message]:
        seen.append(list(chunk))
        if 6 in chunk:
            raise KeyboardInterrupt
        return messages(chunk, advance)

    with pytest.raises(KeyboardInterrupt):
        fill(store, list(range(9)), make=dies_at_six)
    seen.clear()
    artifact = fill(store, list(range(9)), make=lambda c, a: seen.append(list(c)) or messages(c, a))
    assert seen == [[6, 7, 8]]
    fresh = fill(Store(root=tmp_path / "fresh"), list(range(9)))
    for name in (MANIFEST, "records.jsonl"):
        assert (artifact.folder / name).read_bytes() == (fresh.folder / name).read_bytes()


def test_a_damaged_shard_is_computed_again(tmp_path: Path) -> None:
    store = Store(root=tmp_path)

    def dies(chunk: list[int], advance: object) -> list[Message]:
        if 3 in chunk:
            raise KeyboardInterrupt
        return messages(chunk, advance)

    with pytest.raises(KeyboardInterrupt):
        fill(store, list(range(6)), make=dies)
    (shard,) = (store.artifact("drafts", KEY).folder / "work" / "shards").iterdir()
    shard.write_bytes(shard.read_bytes().replace(b"1", b"2"))
    assert [m.content for m in fill(store, list(range(6))).records(Message)] == list("012345")


def test_every_flipped_bit_and_every_truncation_is_detected(tmp_path: Path) -> None:
    artifact = fill(Store(root=tmp_path), list(range(20)))
    path = artifact.folder / "records.jsonl"
    good = path.read_bytes()
    rng = random.Random(0)
    damaged = [bytearray(good) for _ in range(100)]
    for copy in damaged:
        copy[rng.randrange(len(copy))] ^= 1 << rng.randrange(8)
    for content in [*map(bytes, damaged), *(good[:n] for n in range(0, len(good), 37)), b""]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"records\.jsonl: sha256 is .* Delete"):
            artifact.records(Message)
    path.write_bytes(good)
    assert len(artifact.records(Message)) == 20


def test_a_damaged_manifest_names_itself(tmp_path: Path) -> None:
    artifact = fill(Store(root=tmp_path), [1])
    (artifact.folder / MANIFEST).write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: damaged"):
        artifact.records(Message)


def test_the_manifest_has_the_sha256_of_every_file(tmp_path: Path) -> None:
    artifact = fill(Store(root=tmp_path), [1, 2])
    manifest = json.loads((artifact.folder / MANIFEST).read_text())
    content = (artifact.folder / "records.jsonl").read_bytes()
    assert manifest["files"]["records.jsonl"] == {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"Cannot write .*No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_unwritable_store_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file, not a folder")
    store = Store(root=tmp_path / "store")
    with pytest.raises(UserError, match=r"Cannot make .*output_dir="):
        fill(store, [1])


def _fill_slowly(root: Path, start: object, made: object) -> None:
    store = Store(root=root)
    artifact = store.artifact("drafts", KEY)
    start.wait()
    with store.filling(artifact) as work:
        if not artifact.complete:
            _note(made)
            work.write_records([Message(role="user", content="x")])
            store.commit(work, {"counts": {}})


def _note(made: object) -> None:
    with made.get_lock():
        made.value += 1


def test_two_processes_that_need_one_artifact_compute_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, made = context.Event(), context.Value("i", 0)
    workers = [context.Process(target=_fill_slowly, args=(tmp_path, start, made)) for _ in range(4)]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert made.value == 1


def test_orphans_of_a_killed_write_do_not_become_files(tmp_path: Path) -> None:
    store = Store(root=tmp_path)
    artifact = store.artifact("drafts", KEY)
    artifact.folder.mkdir(parents=True)
    (artifact.folder / ".records.jsonl.99.tmp").write_text("half")
    assert sorted(fill(store, [1]).manifest()["files"]) == ["records.jsonl"]


def test_work_counts_are_part_of_the_folder_owner(tmp_path: Path) -> None:
    artifact = Store(root=tmp_path).artifact("drafts", KEY)
    first, second = Work(artifact=artifact), Work(artifact=artifact)
    first.counts["rows"] = 1
    assert second.counts == {}
