"""One matrix from typed settings to a run folder.

The folder holds `matrix.json` (`cai.matrix.record`), `adapters/<constitution>/` of the first seed,
`report.html`, and what other runs have. Everything that is trained, sampled or judged is in the
store: the same command goes on after an interruption, and recomputes nothing when it is over.
"""

from __future__ import annotations

import logging

from cai.config import Config, MatrixConfig
from cai.errors import ConfigError
from cai.job import Job
from cai.matrix.subjects import Subject, read_subjects

log = logging.getLogger("cai")

_NOT_HERE = {
    "constitution.document": "phase.constitutions=[{value},none,inverted]",
    "seed": "phase.seeds=[{value}]",
}
"""Settings of a single run -> what to type for a matrix."""


def execute(config: Config, job: Job) -> None:
    """Read the documents and check what was typed, then train and judge.

    Raises:
        UserError: for everything that the user can put right.
    """
    phase = config.phase
    assert isinstance(phase, MatrixConfig)
    _refuse_void(job)
    subjects = read_subjects(phase.constitutions)
    _note_domain(config, subjects)
    from cai.matrix import running  # torch: ten seconds that a wrong name need not take

    running.run(config, job, subjects)


def _refuse_void(job: Job) -> None:
    """Settings that a matrix would not read, and somebody typed."""
    for text in job.overrides:
        name, _, value = text.lstrip("+").partition("=")
        if name in _NOT_HERE:
            raise ConfigError(
                f"{text} says nothing to phase=matrix, which trains every constitution of "
                "phase.constitutions with every seed of phase.seeds.\n"
                f"  Type: {_NOT_HERE[name].format(value=value)}"
            )


def _note_domain(config: Config, subjects: tuple[Subject, ...]) -> None:
    chosen = config.constitution
    if chosen.name not in {subject.name for subject in subjects}:
        log.info(
            "constitution=%s is not trained here: it gives the domain of the prompts (%s) and how "
            "principles are drawn (%s), for all of phase.constitutions alike",
            chosen.name,
            chosen.domain or "none",
            chosen.sampling,
        )
