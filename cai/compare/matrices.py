"""The steering matrix of a run of `phase=matrix`, as its `matrix.json` has it."""

from __future__ import annotations

import json
from typing import Any

from cai.compare.runs import Run
from cai.compare.story import SteeringMatrix
from cai.errors import UserError
from cai.matrix.record import FILE, SCHEMA, SCHEMA_VERSION

TITLES = {
    "effect": "effect, less the mean of the column (judges differ in leniency)",
    "win_rate": "P(policy preferred to the base)",
}


def steering_matrices(run: Run) -> tuple[SteeringMatrix, ...]:
    """The run's effects and win rates; none when it has no matrix.

    Raises:
        UserError: when the file is damaged or of another version of the program.
    """
    path = run.folder / FILE
    if not path.is_file():
        return ()
    try:
        record = json.loads(path.read_bytes())
        if (record["schema"], record["schema_version"]) != (SCHEMA, SCHEMA_VERSION):
            raise ValueError(f"{record['schema']} {record['schema_version']}")
        return tuple(_read(str(run.folder), record, quantity) for quantity in TITLES)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read as a steering matrix ({type(error).__name__}: {error}). It is "
            f"damaged or of another version; make it again, every stage is reused: "
            f"{run.manifest['command']}"
        ) from error


def _read(folder: str, record: dict[str, Any], quantity: str) -> SteeringMatrix:
    cells = {
        (cell["train"], cell["judge"]): cell[quantity]
        for cell in record["cells"]
        if cell[quantity] is not None
    }
    names = [one["name"] for one in record["constitutions"]]
    judges = [name for name in names if any(judge == name for _, judge in cells)]
    values = [[cells.get((name, judge)) for judge in judges] for name in names]
    return SteeringMatrix(
        folder=folder,
        title=TITLES[quantity],
        rows=tuple(names),
        columns=tuple(judges),
        values=tuple(tuple(one and float(one["value"]) for one in row) for row in values),
        real=tuple(
            tuple(bool(one and quantity == "effect" and one["real"]) for one in row)
            for row in values
        ),
    )
