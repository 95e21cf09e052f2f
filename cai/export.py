"""A trained policy as a plain model: `python -m cai.export FOLDER --to DIR`.

FOLDER is a run (`outputs/<phase>/<constitution>/<time>`; `--policy` says which of its policies) or
an artifact (`outputs/store/policy/<digest>`). DIR gets what `AutoModelForCausalLM` and
`AutoTokenizer` load by themselves: weights in safetensors, an adapter merged into them,
`config.json`, `generation_config.json`, the tokenizer with its chat template; and `cai.json`, which
says what it was made from. DIR appears when all of it has been read back by these classes, gives
the logits of base and adapter, and answers a question.

Weights are float32: a sum that is rounded to bfloat16 loses part of what was learned. Who loads it
with `dtype=torch.bfloat16` has that rounding and half the memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cai import adapters, embedded, models
from cai.adapters import HEAD_FILE, IDENTITY_FILE
from cai.artifacts import Artifact, write_atomically, write_json
from cai.errors import UserError
from cai.full_weights import Tuned, causal_of, read_plain, write_plain
from cai.model_card import FILE as CARD
from cai.models import POLICY
from cai.trained_policies import FOLDER, STAGES, find

QUESTION = "How do you say hello?"
TOLERANCE = 1e-4
"""Largest difference of logits, as a share of the largest logit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What reading the exported model back has shown."""

    gap: float
    """Largest difference of its logits from base and adapter, as a share of the largest logit."""
    answer: str
    """Its greedy answer to `QUESTION`."""
    system_prompt: str | None
    """System turn of the conversations that it was trained on."""


def _base(artifact: Artifact, given: Path | None) -> tuple[Path, str]:
    """Folder and sha256 of the model that a policy was trained on."""
    identity = json.loads((artifact.folder / FOLDER / IDENTITY_FILE).read_bytes())
    base_id: str = identity["base_id"]
    known = {model.model_id: model for model in embedded.MODELS.values()}
    if given is None and base_id in known:
        return embedded.verify(known[base_id]), known[base_id].gguf_sha256
    folder = given or Path(base_id).expanduser()
    try:
        if not (folder / "config.json").is_file():
            if given is not None:
                raise UserError(f"{given} has no config.json")
            folder = models.hub_folder(base_id, revision=None)
        sha256 = models.folder_sha256(folder)
        if sha256 != identity["base_sha256"]:
            raise UserError(
                f"the model in {folder} is another one (sha256 {sha256[:12]}, expected "
                f"{identity['base_sha256'][:12]})"
            )
    except UserError as error:
        raise UserError(
            f"{artifact.short} was trained on {base_id}: {error}. Name its folder with --base DIR"
        ) from error
    return folder, sha256


@torch.no_grad()
def _logits(model: Tuned, ids: Tensor) -> Tensor:
    """Logits (1, S, V) by the training engine."""
    mask = torch.ones_like(ids, dtype=torch.bool)
    hidden = adapters.forward_hidden(model, ids, mask, adapter=POLICY)
    return causal_of(model, POLICY).get_output_embeddings()(hidden)


def _conversation(system_prompt: str | None) -> list[dict[str, str]]:
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": QUESTION}]


@torch.no_grad()
def _answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None
) -> str:
    inputs = tokenizer.apply_chat_template(
        _conversation(system_prompt),
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _end_as_trained(model: PreTrainedModel, eos_id: int) -> None:
    """Make generation end at the token that ended responses in training, whatever else ends it."""
    config = model.generation_config
    ends = config.eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if eos_id not in ends:
        config.eos_token_id = [*ends, eos_id]
    if config.pad_token_id is None:
        config.pad_token_id = eos_id


def _write_and_check(artifact: Artifact, base: Path, base_sha256: str, target: Path) -> Exported:
    trained = artifact.verified_folder() / FOLDER
    if (trained / HEAD_FILE).is_file():
        raise UserError(f"{artifact.short} has a head for scores: it is no policy")
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    tuned = adapters.load(read_plain(base), trained, adapter=POLICY, base_sha256=base_sha256)
    plain = adapters.merged_copy(tuned, POLICY)
    _end_as_trained(plain, tokenizer.eos_token_id)
    write_plain(plain, target)
    tokenizer.save_pretrained(target)
    identity = json.loads((trained / IDENTITY_FILE).read_bytes())
    system_prompt = artifact.manifest()["key"]["identity"]["model"]["system_prompt"]
    write_json(
        target / IDENTITY_FILE,
        {
            "artifact": f"{artifact.stage}/{artifact.digest}",
            "base_id": identity["base_id"],
            "base_sha256": base_sha256,
            "system_prompt": system_prompt,
        },
    )
    read = read_plain(target).eval()
    ids = torch.tensor([identity["probe"]["ids"]])
    expected = _logits(tuned, ids)
    with torch.no_grad():
        gap = float((read(ids).logits - expected).abs().max() / expected.abs().max())
    if not gap <= TOLERANCE:
        raise UserError(
            f"the exported model's logits are off by {gap:.1%} from those of {artifact.short}; "
            "nothing was exported. The disk may be faulty, or another version of transformers "
            "computes otherwise than the one that was trained with"
        )
    return Exported(
        gap=gap,
        answer=_answer(read, AutoTokenizer.from_pretrained(target), system_prompt),
        system_prompt=system_prompt,
    )


def export(artifact: Artifact, to: Path, *, base: Path | None) -> Exported:
    """Write a policy as a plain model and check it.

    Args:
        artifact: A policy.
        to: Made; it must not be there.
        base: Folder of the model it was trained on; None: where that model was found in training.

    Raises:
        UserError: when the folder is there, the base cannot be had or is another one, or the
            exported model does not compute what the policy does.
    """
    if to.exists():
        raise UserError(f"{to} is there already, and nothing is overwritten; name another folder")
    folder, sha256 = _base(artifact, base)
    part = to.with_name(f".{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        exported = _write_and_check(artifact, folder, sha256, part)
        part.rename(to)
    except OSError as error:
        raise UserError(f"Cannot write to {to}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return exported


def put_card(run: Path, artifact: Artifact, target: Path) -> None:
    """The run's model card as the folder's README, where the run has one."""
    card = run / CARD
    if card.is_file():
        text = card.read_text("utf-8").rstrip("\n")
        text += f"\n\n## This folder\n\n{artifact.short}, merged into its base, in float32.\n"
        write_atomically(target / "README.md", text.encode("utf-8"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Export a policy and say what it answers."""
    parser = argparse.ArgumentParser(
        prog="python -m cai.export",
        description="Write a trained policy as a plain model folder, merged and checked.",
    )
    parser.add_argument("folder", type=Path, help="a run's folder or a policy's in the store")
    parser.add_argument("--to", type=Path, required=True, help="the new folder")
    parser.add_argument("--policy", choices=list(STAGES), help="which of the run's policies")
    parser.add_argument("--base", type=Path, help="folder of the base model, if it was moved")
    given = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        artifact = find(given.folder, policy=given.policy)
        exported = export(artifact, given.to, base=given.base)
        put_card(given.folder, artifact, given.to)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    print(
        f"{given.to}: {artifact.short} in float32; read back, its logits are off those of training "
        f"by at most {exported.gap:.1e} of the largest"
    )
    if exported.system_prompt:
        print(f"It was trained with this system turn: {exported.system_prompt}")
    print(f"{QUESTION} -> {exported.answer}")


if __name__ == "__main__":
    main()
