"""Whole runs in forked children: imports are paid once, a child can be killed like any process."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cai.session  # noqa: F401 - imported before forking, so that a run takes a second
from cai import faults
from cai.run import main


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a run ended."""

    code: int
    """Exit status; minus the signal's number when a signal ended it."""
    output: str
    folder: Path
    """Where it ran."""

    def run_dirs(self) -> list[Path]:
        """Run folders, oldest first."""
        found = self.folder.glob("outputs/*/*/*/manifest.json")
        kept = [path for path in found if path.parts[-4] != "store"]
        return [path.parent for path in sorted(kept, key=lambda path: path.stat().st_mtime_ns)]

    def manifest(self) -> dict[str, Any]:
        """Manifest of the newest run."""
        return json.loads((self.run_dirs()[-1] / "manifest.json").read_text())

    def statuses(self) -> dict[str, list[str]]:
        """What happened to each stage in the newest run, by name."""
        found: dict[str, list[str]] = {}
        for stage in self.manifest()["stages"]:
            found.setdefault(stage["stage"], []).append(stage["status"])
        return found


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: a run on local models may talk to this machine only."""
    here = (None, "127.0.0.1", "::1", "localhost")
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host not in here:
        raise ConnectionRefusedError(f"a test run tried to reach {host}")


def run(folder: Path, *arguments: str, fault: str | None = None, **environment: str) -> Finished:
    """Run `python -m cai.run` with these arguments in a folder, as a child of this process."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "terminal.txt"
    log.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 99
        try:
            terminal = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(terminal, 1)
            os.dup2(terminal, 2)
            sys.stdout, sys.stderr = (
                os.fdopen(1, "w", closefd=False),
                os.fdopen(2, "w", closefd=False),
            )
            os.chdir(folder)
            for logger in (logging.getLogger(), logging.getLogger("cai")):
                logger.handlers.clear()  # of tests before this one, on streams that are closed
            sys.addaudithook(_refuse_network)
            os.environ.update(environment)
            if fault:
                os.environ["CAI_FAULT"] = fault
                faults._passed.clear()  # of tests before this one, which the child inherits
            sys.argv = ["cai", *arguments]
            code = main()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return Finished(
        code=os.waitstatus_to_exitcode(status),
        output=log.read_text("utf-8", "replace"),
        folder=folder,
    )


def tiny_arguments(model: Path, phase: str = "rlaif") -> list[str]:
    """Settings of a run in seconds: the tiny random model in every role."""
    roles = ["feedback_model"] + (
        [] if phase in ("evaluate", "audit", "rlhf") else ["critique_models.main"]
    )
    arguments = [
        f"phase={phase}",
        "constitution=medical",
        "debug=tiny",
        "hardware.precision=fp32",
        "hardware.num_threads=1",
        "model=local",
        f"model.path={model}",
        "model.max_context=6000",
    ]
    for role in roles:
        arguments += [
            f"model@phase.{role}=local",
            f"phase.{role}.path={model}",
            f"phase.{role}.max_context=6000",
        ]
    return arguments


def artifact_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of every artifact in a store; manifests without what may differ between runs."""
    found = {}
    for path in sorted((folder / "outputs" / "store").rglob("*")):
        if path.is_file() and path.suffix != ".lock":
            content = path.read_bytes()
            if path.name == "manifest.json":
                manifest = json.loads(content)
                for volatile in ("seconds", "continued"):
                    manifest.pop(volatile)
                content = json.dumps(manifest, sort_keys=True).encode()
            found[str(path.relative_to(folder))] = content
    return found


def stage_lines(output: str) -> list[str]:
    """The lines of a plan's list of stages, without the table of sizes behind it."""
    return [line for line in output.split("Nothing was run.")[0].splitlines() if line.strip()]
