"""The content-addressed store: what a stage made, found again by what went into it.

`<output_dir>/store/<stage>/<digest>/` holds a stage's files and, written last, `manifest.json`:
its existence means that the artifact is complete. The digest is the sha256 of the stage's name and
version, its own config section, its inputs' digests, the model's weight hash and the seed; so the
same work asked for by any phase, sweep job or later run is found, and a changed setting re-runs
only what it touches. Hardware is not part of it; precision and threads are in the manifest.

Until the manifest is there, `work/` inside the folder holds finished shards and checkpoints. A
shard is a fixed range of rows in a fixed batch: rows are redone only in whole shards, because
sampled text depends on the composition of its batch. Every file's sha256 is in the manifest (a
shard's is in its name) and is checked whenever it is read: nothing else notices a flipped bit.

Several processes of a run (`cai.ranks`) share the shards out, each taking the next one that nobody
has, so records do not depend on how many there are. They see one file system. Final files are
written by rank 0 alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cai import preemption, ranks
from cai.errors import UserError
from cai.faults import fault
from cai.locks import held, sign
from cai.progress import Bar, bar
from cai.types import dump_line, parse_lines

R = TypeVar("R")
I = TypeVar("I")  # noqa: E741

MANIFEST = "manifest.json"
RECORDS = "records.jsonl"
DIGEST_CHARS = 16
POLL_SECONDS = 0.05
"""Between two looks of a process whose shards are done at those of the others."""


def canonical_json(value: Any) -> str:
    """JSON with one spelling per value, for hashing."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def digest_of(value: Any) -> str:
    """Sha256 of a JSON value, hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"Cannot write {path} ({len(data):,} bytes): {error.strerror}. What was finished "
            "before is kept; free some space or choose another folder with output_dir=..., then "
            "run the same command again."
        ) from error
    _fsync_folder(path.parent)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write a JSON file whose bytes are a function of the value."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, indent=1, sort_keys=True)
    write_atomically(path, (text + "\n").encode("ascii"))


def write_document(path: Path, value: Mapping[str, object]) -> None:
    """Write a JSON file that people read too: its keys stay in the order given."""
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode("ascii"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A stage's output by address; it may not have been made yet (a plan)."""

    stage: str
    digest: str
    folder: Path

    @property
    def complete(self) -> bool:
        """Whether the manifest is there."""
        return (self.folder / MANIFEST).is_file()

    @property
    def short(self) -> str:
        """`stage/digest` as people see it."""
        return f"{self.stage}/{self.digest[:DIGEST_CHARS]}"

    def manifest(self) -> dict[str, Any]:
        """The manifest as written.

        Raises:
            UserError: when it is not valid JSON.
        """
        path = self.folder / MANIFEST
        try:
            return json.loads(path.read_bytes())
        except ValueError as error:
            raise UserError(
                f"{path}: damaged ({error}). Delete {self.folder} to compute it again."
            ) from error

    def file(self, name: str) -> Path:
        """Path of one of the artifact's files, after its sha256 was checked.

        Raises:
            UserError: when the file is missing or is not what was written.
        """
        expected = self.manifest()["files"].get(name)
        path = self.folder / name
        if expected is None:
            raise UserError(f"{self.short} has no file {name}")
        found = file_sha256(path) if path.is_file() else "missing"
        if found != expected["sha256"]:
            raise UserError(
                f"{path}: sha256 is {found}, but the manifest says {expected['sha256']}. The file "
                f"was changed or damaged. Delete {self.folder} to compute it again."
            )
        return path

    def verified_folder(self) -> Path:
        """The folder, after every file in it was checked."""
        for name in self.manifest()["files"]:
            self.file(name)
        return self.folder

    def records(self, kind: type[R], name: str = RECORDS) -> list[R]:
        """The records of a JSONL file."""
        path = self.file(name)
        return list(parse_lines(kind, path.read_text("ascii"), str(path)))

    def json(self, name: str) -> Any:
        """A JSON file's value."""
        return json.loads(self.file(name).read_bytes())


@dataclass(slots=True)
class Work:
    """A stage's folder while it is being filled; the holder of its lock owns it."""

    artifact: Artifact
    counts: dict[str, int] = field(default_factory=dict)
    """What there was and what became of it, for the manifest and the run's table."""

    @property
    def folder(self) -> Path:
        """Where final files go."""
        return self.artifact.folder

    @property
    def scratch(self) -> Path:
        """Where shards and checkpoints wait; deleted when the artifact is complete."""
        path = self.folder / "work"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the artifact, on rank 0."""
        if not ranks.is_first():
            return
        text = json.dumps(value, ensure_ascii=True, allow_nan=False, indent=1) + "\n"
        write_atomically(self.folder / name, text.encode("ascii"))

    def write_records(self, records: Sequence[Any], name: str = RECORDS) -> None:
        """Write a JSONL file of the artifact, on rank 0."""
        if not ranks.is_first():
            return
        write_atomically(self.folder / name, "".join(map(dump_line, records)).encode("ascii"))


def _finished_shards(folder: Path) -> dict[int, Path]:
    """Shards on disk by number; a damaged or half-named one is deleted and so redone."""
    shards: dict[int, Path] = {}
    for path in folder.glob("*.jsonl"):
        number, sha256, _ = path.name.split(".")
        if file_sha256(path) == sha256:
            shards[int(number)] = path
        else:
            path.unlink()
    return shards


def _claimed(numbers: Sequence[int]) -> Iterator[int]:
    """Those of the numbers that this rank takes; each goes to the one that asks first.

    A rank that has been warned takes no more.
    """
    claims = ranks.Counter()
    while not preemption.warned() and (place := claims.add(1) - 1) < len(numbers):
        yield numbers[place]


def _await_others(written: ranks.Counter, num: int, progress: Bar) -> None:
    """Wait until every shard is written, in steps, so that a signal ends it at once.

    Raises:
        Preempted: when shards are missing and every rank has been warned.
    """
    resting, counted = ranks.Counter(), False
    while written.add(0) < num:
        if preemption.warned() and not counted:
            counted = True
            resting.add(1)
        if resting.add(0) == ranks.num_processes():
            raise preemption.stop()
        progress.update(0)
        time.sleep(POLL_SECONDS)
    progress.update(0)


def in_shards(
    work: Work,
    items: Sequence[I],
    *,
    kind: type[R],
    shard_size: int,
    make: Callable[[Sequence[I], Callable[[int], None]], list[R]],
    unit: str,
    units_per_item: int = 1,
) -> list[R]:
    """Map items to records shard by shard; finished shards survive a kill and are read back.

    Every rank calls it with the same items and gets all records.

    Args:
        work: The stage's folder.
        items: All the rows, in order; the list must be a pure function of the digest.
        kind: The record type, one record per item.
        shard_size: Rows per shard and so per batch.
        make: Computes the records of one shard, by itself; may call its second argument with a
            number of units as it goes, what is left of the shard's units is counted after it.
        unit: What the progress bar counts, plural.
        units_per_item: Units per row.
    """
    folder = work.scratch / "shards"
    folder.mkdir(exist_ok=True)
    shards = ranks.broadcast(_finished_shards(folder) if ranks.is_first() else {})
    chunks = [items[start : start + shard_size] for start in range(0, len(items), shard_size)]
    missing = [number for number in range(len(chunks)) if number not in shards]
    todo = sum(len(chunks[number]) for number in missing)
    made: dict[int, Path] = {}
    written = ranks.Counter()
    with bar(
        len(items) * units_per_item,
        name=work.artifact.stage,
        unit=unit,
        initial=(len(items) - todo) * units_per_item,
        shared=True,
    ) as progress:
        for number in _claimed(missing):
            counted: list[int] = []

            def advance(units: int, counted: list[int] = counted) -> None:
                counted.append(units)
                progress.update(units)

            chunk = chunks[number]
            with ranks.apart():
                shard = make(chunk, advance)
            assert len(shard) == len(chunk), f"{len(shard)} records for {len(chunk)} items"
            data = "".join(map(dump_line, shard)).encode("ascii")
            made[number] = folder / f"{number:05d}.{hashlib.sha256(data).hexdigest()}.jsonl"
            write_atomically(made[number], data)
            fault(f"{work.artifact.stage}:shard")
            progress.update(len(chunk) * units_per_item - sum(counted))
            written.add(1)
        _await_others(written, len(missing), progress)
    for others in ranks.gathered(made):
        shards |= others
    return [record for number in range(len(chunks)) for record in _read(kind, shards[number])]


def _read(kind: type[R], path: Path) -> Iterator[R]:
    """A finished shard's records.

    Raises:
        UserError: when it is not what was written.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != path.name.split(".")[1]:
        raise UserError(
            f"{path}: its bytes are not those of its name. It was damaged while the run went on; "
            "run the same command again, and it is computed again."
        )
    return parse_lines(kind, content.decode("ascii"), str(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """All artifacts under one output folder."""

    root: Path

    def artifact(self, stage: str, key: dict[str, Any]) -> Artifact:
        """The address that a stage's key has."""
        digest = digest_of({"stage": stage, **key})
        return Artifact(stage=stage, digest=digest, folder=self.root / stage / digest)

    @contextlib.contextmanager
    def filling(self, artifact: Artifact) -> Iterator[Work]:
        """Hold an artifact's lock while its folder is being filled; rank 0 holds it for all.

        Another run that fills the same artifact is waited for; what it made is then reused. What
        rank 0 says next tells the others that the lock is held.

        Raises:
            UserError: when the folder cannot be made or written.
        """
        if not ranks.is_first():
            yield Work(artifact=artifact)
            return
        try:
            artifact.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"Cannot make {artifact.folder}: {error.strerror}. Choose another folder with "
                "output_dir=..."
            ) from error
        work = Work(artifact=artifact)
        path = artifact.folder.with_suffix(".lock")
        with held(path, name=artifact.short, work=artifact.folder / "work"):
            if not artifact.complete:
                sign(work.scratch)
            yield work

    def commit(self, work: Work, manifest: dict[str, Any]) -> None:
        """Make an artifact complete, on every rank at once.

        Rank 0 hashes its files, writes the manifest last and drops the scratch when nobody reads
        there any more.
        """
        ranks.barrier()
        if ranks.is_first():
            self._commit(work, manifest)
        ranks.barrier()

    def _commit(self, work: Work, manifest: dict[str, Any]) -> None:
        folder = work.folder
        for orphan in folder.rglob(".*.tmp"):
            orphan.unlink()
        files = {
            str(path.relative_to(folder)): {
                "sha256": file_sha256(path),
                "bytes": path.stat().st_size,
            }
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.relative_to(folder).parts[0] != "work"
        }
        for name in files:
            with (folder / name).open("rb") as stream:
                os.fsync(stream.fileno())
        fault(f"{work.artifact.stage}:commit")
        document = {"stage": work.artifact.stage, "digest": work.artifact.digest, **manifest}
        document |= {"files": files}
        text = json.dumps(document, ensure_ascii=True, allow_nan=False, indent=1) + "\n"
        write_atomically(folder / MANIFEST, text.encode("ascii"))
        shutil.rmtree(folder / "work", ignore_errors=True)
        fault(f"{work.artifact.stage}:done")
