"""Where metrics go: the run folder always, Weights & Biases as a mirror of it.

`FileTracker` is the record: `metrics.jsonl` (one ASCII JSON object a line, flushed at once; NaN and
infinities as strings) and `tables/<name>.json`. `WandbTracker` repeats it for wandb and can never
stop or fail a run: any exception from wandb switches the mirror off with one warning.

Measured with wandb 0.31.0, and what follows from it:

* A failed online `init` costs up to 102 s and poisons later offline ones in the process
  (wandb#9865), so offline or online is decided first (connectivity.py). No question is ever asked.
* `WANDB_DATA_DIR` and its kin default to the home folder, where an offline run's artifacts would be
  lost when the output folder is copied: they are set under the output root.
* A live run is silently reused by the next `init` in the process: `reinit="create_new"`, and
  `close` in the caller's `finally`, keep the jobs of a multirun apart.
* argv, git remotes and machine data can carry secrets: switched off. The config that is logged is
  an allow-list (`config_record`) with the values of secret environment variables blotted out.
* `wandb.Html` writes model text verbatim, so it is not used: tables hold plain strings.
* Killing the wandb-core process makes `run.log` raise in the training process: hence the guard.

Each group of metrics has a step axis of its own (`ppo/step` for `ppo/*`).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cai.artifacts import write_atomically
from cai.choices import LoggerKind, WandbMode
from cai.config import LoggerConfig
from cai.connectivity import choose_mode
from cai.wandb_charts import charts_of
from cai.wandb_lineage import LineageNode, give

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

INIT_SECONDS = 10.0
FINISH_SECONDS = 60.0
"""Longest wait for uploads at the end; what is left can be sent with `wandb sync`."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_SECRET_NAME = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
_USER_INFO = re.compile(r"(?<=://)[^/\s@]+@")
_REDACTED = "<redacted>"

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


class Tracker(Protocol):
    """Receives what a run measures."""

    def log(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of one step; `group` names the step axis and prefixes every key."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table of plain cells, e.g. samples; the same name replaces it."""

    def artifact(self, node: LineageNode) -> None:
        """A finished folder, e.g. an adapter, which does not change any more."""

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Final numbers, `group/name: value`."""

    def notice(self) -> str | None:
        """One line for the person about where the mirror is or how to upload it."""

    def close(self, exit_code: int) -> None:
        """End; a second call does nothing."""


class FileTracker:
    """`metrics.jsonl` and `tables/` in the run folder; appends to what an earlier start left."""

    def __init__(self, run_dir: Path) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self._tables = run_dir / "tables"
        self._file = (run_dir / "metrics.jsonl").open("a", encoding="ascii")

    def log(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line."""
        _check_name(group)
        self._append(
            {"kind": "metrics", "group": group, "step": step, "metrics": _numbers(metrics)}
        )

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Write `tables/<name>.json`."""
        cells = _cells(name, columns, rows)
        self._tables.mkdir(exist_ok=True)
        text = json.dumps({"columns": list(columns), "rows": cells}) + "\n"
        write_atomically(self._tables / f"{name}.json", text.encode("ascii"))
        self._append(
            {"kind": "table", "name": name, "file": f"tables/{name}.json", "num_rows": len(cells)}
        )

    def artifact(self, node: LineageNode) -> None:
        """Note the folder; nothing is copied."""
        _check_name(node.name)
        kept = {"name": node.name, "type": node.kind, "folder": str(node.folder)}
        made_from: Json = list(node.inputs)
        self._append({"kind": "artifact", **kept, "inputs": made_from, "reused": node.reused})

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Append one line."""
        self._append({"kind": "summary", "metrics": _numbers(metrics)})

    def notice(self) -> str | None:
        """Nothing to say: the run folder is named elsewhere."""
        return None

    def close(self, exit_code: int) -> None:
        """Append the exit code and close the file."""
        if not self._file.closed:
            self._append({"kind": "exit", "exit_code": exit_code})
            self._file.close()

    def _append(self, record: dict[str, Json]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=True, allow_nan=False) + "\n")
        self._file.flush()


class MemoryTracker:
    """Keeps everything in lists, for tests."""

    def __init__(self) -> None:
        self.logs: list[tuple[str, int, dict[str, float]]] = []
        self.tables: dict[str, tuple[list[str], list[list[str]]]] = {}
        self.artifacts: list[LineageNode] = []
        self.final: dict[str, float] = {}
        self.exit_code: int | None = None

    def log(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        """Remember."""
        _check_name(group)
        self.logs.append((group, step, dict(metrics)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Remember."""
        self.tables[name] = (list(columns), _cells(name, columns, rows))

    def artifact(self, node: LineageNode) -> None:
        """Remember."""
        _check_name(node.name)
        self.artifacts.append(node)

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Remember."""
        self.final.update(metrics)

    def notice(self) -> str | None:
        """Nothing to say."""
        return None

    def close(self, exit_code: int) -> None:
        """Remember the first exit code."""
        if self.exit_code is None:
            self.exit_code = exit_code


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WandbRun:
    """What identifies a run on wandb."""

    project: str
    entity: str | None
    name: str
    group: str
    """Sweep or experiment."""
    job_type: str
    """Phase."""
    tags: tuple[str, ...]
    """Constitution and model."""
    config: dict[str, Json]
    output_dir: Path
    """Absolute; wandb's folders lie in `<output_dir>/wandb`."""


class WandbTracker:
    """Mirror on Weights & Biases; switches itself off, once and audibly, when wandb fails."""

    def __init__(self, identity: WandbRun, mode: WandbMode) -> None:
        self._run: wandb.Run | None = None
        self._groups: set[str] = set()
        self._notice: str | None = None
        self._broken = False
        folders = {
            f"WANDB_{name}_DIR": identity.output_dir / "wandb" / f".{name.lower()}"
            for name in ("DATA", "CACHE", "ARTIFACT")
        }
        # Error reports would go to a third party, and wait for it at exit when it does not answer.
        wanted = {"WANDB_ERROR_REPORTING": "false"} | {k: str(v) for k, v in folders.items()}
        # What the person exported stays; what is set here is taken back in `close`.
        self._set = [name for name in wanted if name not in os.environ]
        os.environ.update({name: wanted[name] for name in self._set})
        with self._guard():
            self._start(identity, mode)

    def log(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        """Log on the group's own step axis."""
        _check_name(group)
        if (run := self._run) is None:
            return
        with self._guard():
            if group not in self._groups:
                run.define_metric(f"{group}/step", hidden=True)
                run.define_metric(f"{group}/*", step_metric=f"{group}/step")
                self._groups.add(group)
            values = {f"{group}/{name}": value for name, value in _numbers(metrics).items()}
            run.log({f"{group}/step": step, **values})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Log a table of plain strings, and its custom chart where it has one."""
        cells = _cells(name, columns, rows)
        if (run := self._run) is None:
            return
        with self._guard():
            import wandb

            table = wandb.Table(columns=list(columns), data=cells)
            run.log({name: table} | charts_of(name, columns, cells))

    def artifact(self, node: LineageNode) -> None:
        """Log or use it, with its inputs in the metadata (`cai.wandb_lineage`)."""
        _check_name(node.name)
        if (run := self._run) is None:
            return
        with self._guard():
            give(run, node)

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Set final numbers."""
        if (run := self._run) is None:
            return
        with self._guard():
            run.summary.update(_numbers(metrics))

    def notice(self) -> str | None:
        """The sync command, the run's address, or why there is no mirror."""
        return self._notice

    def close(self, exit_code: int) -> None:
        """Finish the run, so that the next one in this process is a run of its own."""
        run, self._run = self._run, None
        if run is not None:
            with self._guard():
                run.finish(exit_code=exit_code)
        if self._broken:
            # Drops a dead wandb-core, so that the next job of a multirun starts a fresh one.
            with suppress(Exception):
                import wandb

                wandb.teardown(exit_code)
        self._broken = False
        for name in self._set:
            os.environ.pop(name, None)
        self._set = []

    def _start(self, identity: WandbRun, mode: WandbMode) -> None:
        wanted = os.environ.get("WANDB_MODE") or mode.value
        if wanted == "disabled":
            return
        identity.output_dir.mkdir(parents=True, exist_ok=True)
        import wandb

        base_url = wandb.setup(wandb.Settings(silent=True)).settings.base_url
        chosen = choose_mode(wanted, base_url)
        run = wandb.init(
            project=identity.project,
            entity=identity.entity,
            dir=str(identity.output_dir),
            name=identity.name,
            group=identity.group[:128],
            job_type=identity.job_type[:64],
            tags=[tag[:64] for tag in identity.tags if tag],
            config=identity.config,
            mode=chosen,
            reinit="create_new",
            settings=_settings(),
        )
        self._run = run
        if chosen == "offline":
            folder = shlex.quote(run.settings.sync_dir)
            self._notice = f"wandb is offline; upload this run with: wandb sync {folder}"
        else:
            self._notice = f"wandb: {run.url}"

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        # Anything at all: a mirror must not stop a run, and wandb documents no list of errors.
        except Exception as error:
            self._run = None
            self._broken = True
            reason = textwrap.shorten(str(error), 120, placeholder="...") or "no message"
            self._notice = f"wandb was switched off: {type(error).__name__}: {reason}"
            logger.warning("%s; the run goes on, metrics.jsonl has every metric", self._notice)


class RunTracker:
    """The record first, then its mirror."""

    def __init__(self, record: FileTracker, mirror: Tracker | None) -> None:
        self._trackers: list[Tracker] = [record] if mirror is None else [record, mirror]

    def log(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        """To each."""
        self._each(lambda tracker: tracker.log(group, step, metrics))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """To each."""
        self._each(lambda tracker: tracker.table(name, columns, rows))

    def artifact(self, node: LineageNode) -> None:
        """To each."""
        self._each(lambda tracker: tracker.artifact(node))

    def summary(self, metrics: Mapping[str, float]) -> None:
        """To each."""
        self._each(lambda tracker: tracker.summary(metrics))

    def notice(self) -> str | None:
        """The mirror's line."""
        return self._trackers[-1].notice()

    def close(self, exit_code: int) -> None:
        """Both, the mirror last because it may wait for uploads."""
        self._each(lambda tracker: tracker.close(exit_code))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in self._trackers:
            call(tracker)


def open_tracker(
    config: LoggerConfig,
    *,
    run_dir: Path,
    output_dir: Path,
    group: str,
    job_type: str,
    tags: Sequence[str],
    run_config: Mapping[str, object],
) -> RunTracker:
    """The run's tracker; close it in a `finally`.

    Args:
        config: Which mirror.
        run_dir: Holds `metrics.jsonl`; its last part names the wandb run.
        output_dir: Root under which wandb's own folders are kept.
        group: Sweep or experiment, else the phase and constitution.
        job_type: Phase.
        tags: Constitution and model.
        run_config: Sections of the config, best made by `config_record`; scrubbed again here.
    """
    record = FileTracker(run_dir)
    if config.kind is LoggerKind.none:
        return RunTracker(record, None)
    scrubbed = config_record(run_config)
    assert isinstance(scrubbed, dict)
    identity = WandbRun(
        project=config.project,
        entity=config.entity,
        name=run_dir.name,
        group=group,
        job_type=job_type,
        tags=tuple(tags),
        config=scrubbed,
        output_dir=output_dir.resolve(),
    )
    return RunTracker(record, WandbTracker(identity, config.mode))


def config_record(value: object) -> Json:
    """Plain containers of a validated config: an allow-list of types, with secrets blotted out.

    Enums become their values and paths text. Passwords in addresses, and any text that contains the
    value of an environment variable whose name says key, token, secret, password or credential, are
    replaced.

    Raises:
        TypeError: for anything that is not a dataclass, mapping, sequence or plain value.
    """
    secrets = [v for k, v in os.environ.items() if _SECRET_NAME.search(k) and len(v) >= 8]
    return _plain(value, tuple(secrets))


def _settings() -> wandb.Settings:
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )


def _plain(value: object, secrets: Sequence[str]) -> Json:
    if isinstance(value, Enum):
        return _plain(value.value, secrets)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str | Path):
        text = _USER_INFO.sub(f"{_REDACTED}@", str(value))
        return _REDACTED if any(secret in text for secret in secrets) else text
    if isinstance(value, Mapping):
        return {str(key): _plain(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, secrets) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value), secrets)
    raise TypeError(f"a config holds plain values, not {type(value).__name__}")


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name metrics, tables or artifacts: use {_NAME.pattern}")


def _numbers(metrics: Mapping[str, float]) -> dict[str, Json]:
    """Finite numbers as they are, others as text: `nan`, `inf`, `-inf`."""
    finite = {name: isinstance(v, int) or math.isfinite(v) for name, v in metrics.items()}
    return {
        name: (v if isinstance(v, int) else float(v)) if finite[name] else str(float(v))
        for name, v in metrics.items()
    }


def _cells(name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[list[str]]:
    _check_name(name)
    if uneven := [row for row in rows if len(row) != len(columns)]:
        raise ValueError(f"table {name}: {len(columns)} columns, a row has {len(uneven[0])} cells")
    # Lone surrogates cannot be written as UTF-8, which would switch the mirror off.
    return [
        ["" if c is None else str(c).encode("utf-8", "backslashreplace").decode() for c in row]
        for row in rows
    ]
