"""One trace from typed settings to a run folder; what is wrong with the settings is said at once.

The folder holds `trace.json` (`cai.trace.record`), `report.html`, and what other runs have.
"""

from __future__ import annotations

from pathlib import Path

from cai.config import Config
from cai.job import Job
from cai.trace.traced import find_example, open_run


def execute(config: Config, job: Job) -> None:
    """Check the run and the example, then trace it.

    Raises:
        UserError: when the run, the example or something that the run made is not there.
    """
    run = open_run(config.run, output_dir=Path(config.output_dir))
    asked = find_example(run, config.example)
    from cai.trace.tracing import trace  # torch: ten seconds that a wrong name need not take

    trace(config, job, run, asked)
