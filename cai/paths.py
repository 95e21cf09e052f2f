"""Where the declarative parts live: `conf/`, `constitutions/`, `sweeps/`, and the user's cache.

In a checkout they stand beside the package; a wheel carries them in `cai/_resources/`.
"""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
_WHEEL_RESOURCES = PACKAGE / "_resources"
ROOT = _WHEEL_RESOURCES if _WHEEL_RESOURCES.is_dir() else PACKAGE.parent

CONF = ROOT / "conf"
CONSTITUTIONS = ROOT / "constitutions"
SWEEPS = ROOT / "sweeps"


def cache_dir() -> Path:
    """Return the folder for converted model weights: `$CAI_CACHE`, else `~/.cache/cai`."""
    return Path(os.environ.get("CAI_CACHE") or "~/.cache/cai").expanduser()
