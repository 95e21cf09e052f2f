"""The adapters of a matrix under their constitutions' names, for plain `peft`.

One base serves them all::

    model = PeftModel.from_pretrained(base, f"{run}/adapters/medical", adapter_name="medical")
    model.load_adapter(f"{run}/adapters/none", adapter_name="none")
    model.set_adapter("none")
"""

from __future__ import annotations

import shutil
from pathlib import Path

from cai.adapters import IDENTITY_FILE
from cai.low_rank import ADAPTER_FILE, CONFIG_FILE
from cai.phases.matrix import Outputs

FOLDER = "adapters"


def export_adapters(outputs: Outputs, run_dir: Path, *, seed: int) -> dict[str, str]:
    """Copy one seed's adapters; where each is, below the run folder, by constitution.

    Nothing where all weights are trained (`model.adapter=none`): those are whole models, in the
    store.
    """
    found: dict[str, str] = {}
    for one in outputs.policies:
        source = one.adapter.verified_folder() / "adapter"
        if one.seed != seed or not (source / CONFIG_FILE).is_file():
            continue
        target = run_dir / FOLDER / one.train
        target.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG_FILE, ADAPTER_FILE, IDENTITY_FILE):
            shutil.copyfile(source / name, target / name)
        found[one.train] = f"{FOLDER}/{one.train}"
    return found
