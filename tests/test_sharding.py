"""Shards over several ranks: the same bytes as one process, whoever makes them and whoever dies."""

from __future__ import annotations

import io
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cai import faults, progress, ranks, scoring
from cai.artifacts import Artifact, Store, Work, in_shards
from cai.endpoint import Cache, Client, Meter, Usage
from cai.errors import UserError
from cai.model_config import ServerConfig
from cai.types import Message
from tests.ranks import ended, on_ranks
from tests.tiny import ppo_setup, sft_examples, token_score

KEY = {"config": {"a": 1}}
Make = Callable[[Sequence[int], Callable[[int], None]], list[Message]]


def messages(chunk: Sequence[int], _advance: Callable[[int], None]) -> list[Message]:
    return [Message(role="user", content=f"{number} of {len(chunk)}") for number in chunk]


def work_in(root: Path) -> Work:
    work = Work(artifact=Store(root=root).artifact("drafts", KEY))
    work.folder.mkdir(parents=True, exist_ok=True)
    return work


def shard(root: Path, num: int, *, make: Make = messages, size: int = 3) -> list[Message]:
    return in_shards(
        work_in(root), range(num), kind=Message, shard_size=size, make=make, unit="rows"
    )


def files(root: Path) -> dict[str, bytes]:
    found = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


@pytest.mark.parametrize("size", [2, 3, 5])
def test_any_number_of_ranks_makes_the_bytes_of_one_process(tmp_path: Path, size: int) -> None:
    """No items, one shard for several ranks, uneven ends, more ranks than shards."""
    nums = [0, 1, 3, 7, 20]

    def body() -> list[list[Message]]:
        return [shard(tmp_path / "several" / str(num), num) for num in nums]

    found = on_ranks(size, body)
    alone = [shard(tmp_path / "alone" / str(num), num) for num in nums]
    assert [len(records) for records in alone] == nums
    assert found == [alone] * size
    assert files(tmp_path / "several") == files(tmp_path / "alone")


def test_every_shard_is_made_once_and_the_faster_rank_makes_more(tmp_path: Path) -> None:
    def body() -> list[int]:
        slow, made = ranks.world().rank == 0, []

        def make(chunk: Sequence[int], advance: Callable[[int], None]) -> list[Message]:
            time.sleep(0.3 if slow else 0.02)
            made.append(chunk[0])
            return messages(chunk, advance)

        shard(tmp_path, 10, make=make, size=1)
        return made

    slow, fast = on_ranks(2, body)
    assert sorted(slow + fast) == list(range(10))
    assert 1 <= len(slow) < len(fast)


def test_a_shard_is_work_of_one_rank_alone(tmp_path: Path) -> None:
    def body() -> list[tuple[int, bool, list[int]]]:
        seen = []

        def make(chunk: Sequence[int], advance: Callable[[int], None]) -> list[Message]:
            ranks.barrier()  # nobody to wait for
            rank = 1 - ranks.is_first()
            seen.append((rank, ranks.world().size, ranks.gathered(7), ranks.Counter().add(1)))
            return messages(chunk, advance)

        shard(tmp_path / "first", 3, make=make, size=1)
        shard(tmp_path / "second", 1, make=make, size=1)  # counters are still those of all
        return [*seen, (ranks.world().rank, ranks.world().size, ranks.num_processes(), 1)]

    for rank, (*made, after) in enumerate(on_ranks(2, body)):
        assert set(map(repr, made)) <= {repr((rank, 1, [7], 1))}
        assert after == (rank, 2, 2, 1)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3), (3, 2)])
@pytest.mark.parametrize("how", ["raise", "kill"])
def test_a_rank_that_dies_leaves_its_shards_to_any_number_of_others(
    tmp_path: Path, before: int, after: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever passes the second shard dies; nobody goes on as if all shards were there."""
    monkeypatch.setenv(faults.VARIABLE, f"drafts:shard=2:{how}")
    interrupted = ended(before, lambda: shard(tmp_path / "it", 20, make=slowly, size=2))
    monkeypatch.delenv(faults.VARIABLE)
    assert all(one.value is None for one in interrupted)
    dead = [one for one in interrupted if one.code == (-signal.SIGKILL if how == "kill" else 1)]
    assert dead
    if how == "raise":
        assert any("InjectedFaultError: drafts:shard" in (one.error or "") for one in dead)
    there = {path.name for path in (tmp_path / "it").rglob("*.jsonl")}
    assert 2 <= len(there) < 10

    def goes_on() -> tuple[list[int], list[Message]]:
        made: list[int] = []

        def make(chunk: Sequence[int], advance: Callable[[int], None]) -> list[Message]:
            made.append(chunk[0] // 2)
            return messages(chunk, advance)

        return made, shard(tmp_path / "it", 20, make=make, size=2)

    found = on_ranks(after, goes_on)
    again = sorted(number for made, _ in found for number in made)
    assert again == sorted(set(range(10)) - {int(name.split(".")[0]) for name in there})
    assert [records for _, records in found] == [shard(tmp_path / "whole", 20, size=2)] * after
    kept = {name: data for name, data in files(tmp_path / "it").items() if ".tmp" not in name}
    assert kept == files(tmp_path / "whole")


def slowly(chunk: Sequence[int], advance: Callable[[int], None]) -> list[Message]:
    time.sleep(0.02)
    return messages(chunk, advance)


class WarnedError(Exception):
    """What the handler of a signal raises."""


def test_a_rank_that_waits_for_the_shards_of_another_hears_a_signal(tmp_path: Path) -> None:
    """Inside a collective it would hear it when the other is there, which may be never."""

    def warn(_number: int, _frame: object) -> None:
        raise WarnedError

    def make(chunk: Sequence[int], advance: Callable[[int], None]) -> list[Message]:
        time.sleep(0.1 if ranks.is_first() else 60)
        return messages(chunk, advance)

    def body() -> None:
        if ranks.is_first():
            signal.signal(signal.SIGALRM, warn)
            signal.alarm(1)
        shard(tmp_path, 2, make=make, size=1)

    started = time.monotonic()
    waiting, stuck = ended(2, body, seconds=30)
    assert time.monotonic() - started < 15
    assert waiting.code == 1
    assert "WarnedError" in (waiting.error or "")
    assert stuck.code == -signal.SIGKILL


def test_a_shard_that_is_damaged_while_others_are_made_is_told(tmp_path: Path) -> None:
    def make(chunk: Sequence[int], advance: Callable[[int], None]) -> list[Message]:
        for path in tmp_path.rglob("00000.*.jsonl"):
            path.write_bytes(path.read_bytes().replace(b"of", b"oF"))
        return messages(chunk, advance)

    with pytest.raises(UserError, match=r"00000\..*damaged.*same command again"):
        shard(tmp_path, 6, make=make)
    assert [one.content for one in shard(tmp_path, 6)] == [f"{n} of 3" for n in range(6)]


def test_the_bar_counts_all_ranks_and_the_others_are_silent(tmp_path: Path) -> None:
    def body() -> str:
        sys.stderr = io.StringIO()

        def make(chunk: Sequence[int], advance: Callable[[int], None]) -> list[Message]:
            advance(1)
            time.sleep(0.05)
            return messages(chunk, advance)

        shard(tmp_path, 12, make=make)
        return sys.stderr.getvalue()

    first, second = on_ranks(2, body)
    assert first.startswith("drafts: 12/12 rows, took 0:00")
    assert second == ""


def test_a_bar_that_is_not_shared_counts_what_rank_0_counts() -> None:
    def body() -> str:
        out = io.StringIO()
        with progress.bar(3, name="ppo", unit="rounds", stream=out) as bar:
            for _ in range(3):
                bar.update(1)
                bar.note(loss=1.5)
        return out.getvalue()

    first, second = on_ranks(2, body)
    assert first.startswith("ppo: 3/3 rounds")
    assert "loss=1.5" in first
    assert second == ""


def test_rank_0_alone_writes_the_artifact_and_all_find_it_complete(tmp_path: Path) -> None:
    def body() -> tuple[bool, list[Message], dict[str, object]]:
        store, rank = Store(root=tmp_path), ranks.world().rank
        work = work_in(tmp_path)
        if rank == 1:
            time.sleep(0.2)  # rank 0 waits before it drops what others may still read
            assert work.scratch.is_dir()
        work.write_records([Message(role="user", content=f"rank {rank}")])
        work.write_json("note.json", {"rank": rank})
        store.commit(work, {"counts": {}})
        artifact: Artifact = work.artifact
        return artifact.complete, artifact.records(Message), artifact.json("note.json")

    written = [Message(role="user", content="rank 0")]
    assert on_ranks(3, body) == [(True, written, {"rank": 0})] * 3
    (folder,) = (tmp_path / "drafts").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "note.json",
        "records.jsonl",
    ]


def test_every_item_is_in_one_share_and_shares_of_what_is_sorted_are_alike() -> None:
    def body() -> list[list[int]]:
        return [ranks.share(range(num)) for num in (0, 1, 7, 8, 100)]

    assert body() == [list(range(num)) for num in (0, 1, 7, 8, 100)]
    for size in (2, 3):
        for num, *parts in zip((0, 1, 7, 8, 100), *on_ranks(size, body), strict=True):
            assert sorted(item for part in parts for item in part) == list(range(num))
            assert all(part == sorted(part) for part in parts)
            sums, lengths = list(map(sum, parts)), list(map(len, parts))
            assert max(lengths) - min(lengths) <= 1
            assert num % (2 * size) or max(sums) == min(sums)


def test_scores_are_shared_out_and_every_rank_has_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits; none at all, fewer than ranks, and inside a shard, where nobody shares."""
    model, _ = ppo_setup()
    asked = [(e.prompt_ids, e.response_ids) for e in sft_examples(11)]
    score = token_score(model, micro_batch_size=2)

    passes: list[int] = []
    forward = scoring.forward_hidden
    monkeypatch.setattr(
        scoring, "forward_hidden", lambda *a, **k: passes.append(1) or forward(*a, **k)
    )

    def body() -> tuple[list[list[float]], list[Message], int]:
        passes.clear()
        found = [score(asked[:num]) for num in (0, 1, 11)]
        num_passes = len(passes)
        inside = shard(
            tmp_path, 3, make=lambda chunk, _: [said(score([asked[n]])) for n in chunk], size=1
        )
        return found, inside, num_passes

    def said(scores: list[float]) -> Message:
        return Message(role="user", content=repr(scores))

    alone = [score(asked[:num]) for num in (0, 1, 11)]
    assert list(map(len, alone)) == [0, 1, 11]
    for size in (2, 3):
        on_each = on_ranks(size, body)
        assert sum(num_passes for *_, num_passes in on_each) == 0 + 1 + 6
        for found, inside, _ in on_each:
            assert found == alone
            assert [one.content for one in inside] == [repr(score([asked[n]])) for n in range(3)]


def test_an_answer_that_two_ranks_keep_at_once_is_whole(tmp_path: Path) -> None:
    bodies = [{"text": letter * 200_000} for letter in "ab"]

    def body() -> set[str | None]:
        cache, own = Cache(tmp_path), bodies[ranks.world().rank]
        seen = set()
        for _ in range(50):
            cache.put("key", own)
            found = cache.get("key")
            seen.add(found and found["text"][0])
        return seen

    for seen in on_ranks(2, body):
        assert seen <= {"a", "b"}
    assert Cache(tmp_path).get("key") in bodies
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["key.json"]


ASKED = Usage(requests=1, retries=0, cached=0, tokens_in=5, tokens_out=2, microdollars=3.5)


def test_usage_is_added_up_over_ranks_and_over_runs_of_other_numbers(tmp_path: Path) -> None:
    def body() -> Usage:
        meter = Meter(tmp_path / "usage.jsonl")
        for _ in range(ranks.world().rank + 1):
            meter.add(ASKED)
        ranks.barrier()
        return meter.total()

    assert {usage.requests for usage in on_ranks(3, body)} == {6}
    (alone,) = on_ranks(1, body)
    assert (alone.requests, alone.tokens_in, alone.microdollars) == (7, 35, 24.5)


def test_the_limits_of_a_server_are_those_of_all_ranks_together() -> None:
    server = ServerConfig(
        url="http://127.0.0.1:1/v1",
        model="tiny",
        key_env=None,
        num_parallel=5,
        requests_per_minute=120,
        max_retries=0,
        timeout_seconds=1,
        price_input=0,
        price_output=0,
    )

    def body() -> tuple[float, int]:
        with ranks.apart():  # the first to need it may be a shard
            client = Client(server)
        return client._rate_limit.interval, client._in_flight

    assert on_ranks(1, body) == [(0.5, 5)]
    assert on_ranks(2, body) == [(1.0, 2)] * 2
    assert on_ranks(8, body) == [(4.0, 1)] * 8
