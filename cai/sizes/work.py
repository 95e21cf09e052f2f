"""What a stage of a plan takes: memory on a device, tokens, floating-point operations.

A stage is known by its own settings, as they are in its digest: whatever has `ppo_epochs` is PPO,
whatever has `max_new_tokens` samples. So a new phase that is made of known kinds of stages is
sized without a word here.

Operations: 2 per parameter and token of a forward pass, and 4 A D per layer for each token that is
attended to (Kaplan et al. 2020, arXiv:2001.08361, sec. 2.1); the way back is as much again for the
gradients of activations, and once more for those of weights where all of them learn. Sampling reads
all weights once for every token of a batch, which is what limits it while a batch is small (Pope et
al. 2022, arXiv:2211.05102, sec. 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cai.choices import ValueAdapter
from cai.feedback.features import BATCH
from cai.feedback_config import TunedConfig
from cai.model_config import LoRAConfig
from cai.sizes import memory
from cai.sizes.memory import FLOAT, Memory, Place
from cai.sizes.shape import Shape
from cai.sizes.texts import Texts

JUDGED = 1024
"""Tokens of a question to a judge, at most: conversation, two responses and worked examples."""
JUDGED_AT_ONCE = 16
"""Questions of a batch: eight pairs in both orders."""
PAIR_STAGES = (
    "feedback_check", "judge_check", "comparisons", "control_comparisons", "matches",
    "principle_scores", "edge_labels", "audit_labels", "judge_attacks", "steering",
    "audit_wordings",
)  # fmt: skip
FEATURES = ("feedback_features", "tuned_feedback")
READ = {"likelihoods": (8, 2), "capability": (8, 4), "base_likelihoods": (8, 1)}
"""Texts that are read in one call, and texts of an item."""
SCORED = ("evaluation", "snapshot_scores")
"""Scored by a preference model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A base and what is trained on it."""

    shape: Shape
    lora: LoRAConfig | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """A model that compares, and how it is asked."""

    shape: Shape
    tuned: TunedConfig | None
    """None: it is asked in words."""
    scores: bool
    """Whether it scores whole responses, not one token of an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What all stages of a run share."""

    place: Place
    policy: Trained
    preference: Trained
    """The preference model's base."""
    critique: Shape | None
    """None: nobody critiques in this process."""
    judges: tuple[Judge, ...]
    """Who judges in this process."""
    extra: Memory
    """Process, every base that is loaded, and what other engines take."""
    loading: Memory
    """The largest file that a base is read from, while it is read."""
    texts: Texts
    micro_batch_size: int
    spare: LoRAConfig
    """The policy's adapter settings, which are there even where all weights are trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a stage takes."""

    memory: Memory
    """At its peak, on one device."""
    read: int = 0
    """Tokens of forward passes, about."""
    written: int = 0
    """Tokens that are sampled, at most."""
    learned: int = 0
    """Tokens of forward and backward passes, at most."""
    operations: float = 0.0
    """Floating-point operations, of all devices together."""
    weight_bytes: float = 0.0
    """Bytes of weights that sampling reads, token by token."""


def forward_operations(shape: Shape, num_tokens: float, length: float) -> float:
    """Of one forward pass over tokens that see `length / 2` tokens on average."""
    inner = 2 * shape.per_layer * shape.layers + 2 * shape.hidden * shape.vocabulary
    attended = 4 * shape.layers * shape.heads * shape.head_dim * length / 2
    return num_tokens * (inner + attended)


def learning_operations(trained: Trained, place: Place, num_tokens: float, length: float) -> float:
    """Of a forward and a backward pass, and of another forward pass where layers are recomputed."""
    shape = trained.shape
    passes = (2 if trained.lora is not None else 3) + place.checkpointing
    return passes * forward_operations(shape, num_tokens, length)


def sampling_bytes(shape: Shape, place: Place, *, num: int, rows: int, new: int) -> float:
    """Bytes of weights that are read to write `new` tokens of `num` responses, `rows` at a time."""
    batches = -(-num // max(rows, 1))
    return float(batches * new * shape.parameters * place.number_bytes)


def _sampled(
    scene: Scene, shape: Shape, *, num: int, rows: int, prompt: float, longest: int, new: int
) -> Work:
    rows = min(rows, num)
    longest = max(1, min(longest, scene.texts.context - new))
    prompt = min(prompt, longest)
    read, written = num * prompt, num * new
    return Work(
        memory=memory.sampling_memory(shape, scene.place, rows=rows, prompt=longest, new=new),
        read=round(read),
        written=written,
        operations=forward_operations(shape, read + written, prompt + new),
        weight_bytes=sampling_bytes(shape, scene.place, num=num, rows=rows, new=new),
    )


def _sampling(scene: Scene, key: Mapping[str, Any], counts: Mapping[str, int]) -> Work:
    """A policy's, or the base's, responses to prompts."""
    config = key["config"]["sampling"]
    texts = scene.texts
    work = _sampled(
        scene,
        scene.policy.shape,
        num=counts["responses"],
        rows=config["shard_size"],
        prompt=texts.prompt_mean,
        longest=texts.prompt_longest,
        new=config["max_new_tokens"],
    )
    if key["identity"].get("policy") == "base":
        return work
    merged = memory.merged_memory(scene.policy.shape, scene.policy.lora, scene.place)
    return replace(work, memory=work.memory + merged)


def _revising(scene: Scene, config: Mapping[str, Any], counts: Mapping[str, int]) -> Work:
    """Critiques and revisions, behind worked examples."""
    shape = scene.critique or scene.policy.shape
    texts, draft = scene.texts, config["revision"]["max_new_tokens"]
    critique = config["critique"]["max_new_tokens"]
    asked = texts.critique_request + draft
    parts = []
    for request, new in (
        (asked, critique),
        (asked + critique + texts.revision_request, draft),
    ):
        parts.append(
            _sampled(
                scene,
                shape,
                num=-(-counts["texts"] // 2),
                rows=config["revision"]["shard_size"],
                prompt=request + texts.prompt_mean,
                longest=request + texts.prompt_longest,
                new=new,
            )
        )
    return _together(parts)


def _together(parts: Sequence[Work]) -> Work:
    """One after the other."""
    return Work(
        memory=memory.largest([part.memory for part in parts]),
        read=sum(part.read for part in parts),
        written=sum(part.written for part in parts),
        learned=sum(part.learned for part in parts),
        operations=sum(part.operations for part in parts),
        weight_bytes=sum(part.weight_bytes for part in parts),
    )


def _reading(
    scene: Scene, shape: Shape, *, num: int, rows: int, mean: float, longest: int, scored: int
) -> Work:
    longest = min(longest, scene.texts.context)
    return Work(
        memory=memory.reading_memory(shape, scene.place, rows=rows, length=longest, scored=scored),
        read=round(num * mean),
        operations=forward_operations(shape, num * mean, mean),
    )


def _example(scene: Scene, limit: int) -> tuple[float, int]:
    """Tokens of an example of a training, on average and at most."""
    texts = scene.texts
    longest = max(texts.prompt_longest + texts.response, texts.people)
    return min(texts.prompt_mean + texts.response, limit), min(longest, limit)


def _learning(scene: Scene, trained: Trained, *, roles: int, rows: int, longest: int) -> Memory:
    """Roles, what one of them keeps to learn, and a micro-batch."""
    return memory.fit_memory(
        trained.shape,
        trained.lora,
        scene.place,
        roles=roles,
        learning=1,
        rows=rows,
        length=longest,
    )


def _fine_tune(scene: Scene, config: Mapping[str, Any], counts: Mapping[str, int]) -> Work:
    mean, longest = _example(scene, config["max_length"])
    trained, num = scene.policy, counts["examples"]
    return Work(
        memory=_learning(scene, trained, roles=1, rows=scene.micro_batch_size, longest=longest),
        learned=round(num * mean),
        operations=learning_operations(trained, scene.place, num * mean, mean),
    )


def _pairs(
    scene: Scene,
    config: Mapping[str, Any],
    counts: Mapping[str, int],
    *,
    trained: Trained,
    roles: int,
) -> Work:
    """Pairs of responses; on a CPU both behind one prompt (`adapters.forward_pairs`)."""
    mean, longest = _example(scene, config["max_length"])
    response, pairs = scene.texts.response, max(1, scene.micro_batch_size // 2)
    joined = scene.place.on_cpu and trained.shape.written_out
    tokens = counts["pairs"] * (mean + response if joined else 2 * mean)
    return Work(
        memory=_learning(
            scene,
            trained,
            roles=roles,
            rows=pairs if joined else 2 * pairs,
            longest=min(longest + response, 2 * longest) if joined else longest,
        ),
        learned=round(tokens),
        operations=learning_operations(trained, scene.place, tokens, mean),
    )


def _scoring_memory(scene: Scene, roles: int) -> Memory:
    """A preference model's passes without a way back."""
    texts, trained = scene.texts, scene.preference
    one = memory.reading_memory(
        trained.shape,
        scene.place,
        rows=scene.micro_batch_size,
        length=texts.prompt_longest + texts.response,
        scored=0,
    )
    held = memory.roles_memory(trained.shape, trained.lora, roles, scene.place)
    return held + replace(one, kv_cache=0, copies=0)


def _ppo(scene: Scene, config: Mapping[str, Any], counts: Mapping[str, int]) -> Work:
    """Rounds of sampling, measuring and updating; the preference model's adapter is on the base.

    Where it is on another base, that base is loaded too.
    """
    policy, place, texts = scene.policy, scene.place, scene.texts
    new, num = config["max_new_tokens"], counts["rollouts"]
    own = config["value_adapter"] == ValueAdapter.own
    learning = 2 if own else 1
    roles = 3 + own
    merged = memory.merged_memory(policy.shape, policy.lora, place)
    held = memory.rollout_memory(policy.shape, policy.lora, place, roles=roles, learning=learning)
    sampled = _sampled(
        scene,
        policy.shape,
        num=num,
        rows=config["rollouts_per_iteration"],
        prompt=texts.prompt_mean,
        longest=texts.prompt_longest,
        new=new,
    )
    update = memory.fit_memory(
        policy.shape,
        policy.lora,
        place,
        roles=roles,
        learning=learning,
        rows=scene.micro_batch_size,
        length=texts.prompt_longest + new,
    )
    length = texts.prompt_mean + new
    tokens = num * length
    measured = (2 + own) * forward_operations(policy.shape, tokens, length)
    measured += forward_operations(scene.preference.shape, tokens, length)
    learned = tokens * config["ppo_epochs"] * (1 + own)
    return Work(
        memory=merged + memory.largest([held + sampled.memory, update]),
        read=sampled.read + round(tokens * (3 + own)),
        written=sampled.written,
        learned=round(learned),
        operations=sampled.operations
        + measured
        + learning_operations(policy, place, learned, length),
        weight_bytes=sampled.weight_bytes,
    )


def _features(scene: Scene, shape: Shape, config: TunedConfig, *, num: int) -> Work:
    """Middle layers of responses and questions behind their conversations, in full batches.

    A batch has hidden states of every depth, also in float32, and a mask of who sees whom
    (`feedback/features.py`).
    """
    length, place = config.max_length, scene.place
    one = memory.reading_memory(shape, place, rows=BATCH, length=length, scored=0)
    states = BATCH * length * shape.hidden * len(config.depths) * (place.number_bytes + FLOAT)
    mask = BATCH * length * length * (1 + place.number_bytes)
    mean = scene.texts.prompt_mean + 3 * scene.texts.response
    held = replace(one, activations=one.activations + states + mask, kv_cache=0, copies=0)
    return Work(
        memory=held,
        read=round(num * mean),
        operations=max(config.depths) * forward_operations(shape, num * mean, mean),
    )


def _judging(scene: Scene, counts: Mapping[str, int], *, asked: bool) -> Work:
    """Pairs of responses and questions about them, by every judge.

    Args:
        scene: The run's.
        counts: How many.
        asked: Whether pairs are judged; otherwise features of labelled ones are read.
    """
    num = next(
        (counts[name] for name in ("questions", "pairs", "labels", "tests") if name in counts), 0
    )
    mean = scene.texts.prompt_mean + 4 * scene.texts.response
    parts = []
    for judge in scene.judges:
        if judge.tuned is not None:
            pairs = counts.get("pairs", counts.get("matches", num))
            parts.append(_features(scene, judge.shape, judge.tuned, num=pairs))
        elif asked:
            parts.append(
                _reading(
                    scene,
                    judge.shape,
                    num=2 * num,
                    rows=JUDGED_AT_ONCE,
                    mean=mean,
                    longest=JUDGED,
                    scored=scene.texts.response if judge.scores else 1,
                )
            )
    return _together(parts) if parts else Work(memory=Memory())


def _scoring(scene: Scene, counts: Mapping[str, int]) -> Work:
    num = next(iter(counts.values()), 0)
    mean = scene.texts.prompt_mean + scene.texts.response
    return Work(
        memory=_scoring_memory(scene, 1),
        read=round(num * mean),
        operations=forward_operations(scene.preference.shape, num * mean, mean),
    )


def _kind(
    name: str, scene: Scene, key: Mapping[str, Any], counts: Mapping[str, int]
) -> Work | None:
    """What a stage takes on top of the bases; None: it asks no model, or nobody knows."""
    settings: Mapping[str, Any] = key["config"]
    if "ppo_epochs" in settings:
        return _ppo(scene, settings, counts)
    if "principles_per_score" in settings:
        members = settings["num_members"]
        return _pairs(scene, settings, counts, trained=scene.preference, roles=members)
    if "beta" in settings:
        return _pairs(scene, settings, counts, trained=scene.policy, roles=2)
    if {"max_length", "batch_size"} <= settings.keys():
        return _fine_tune(scene, settings, counts)
    if "sampling" in settings:
        return _sampling(scene, key, counts)
    revisions = settings.get("revisions", settings)
    if isinstance(revisions, Mapping) and {"critique", "revision"} <= revisions.keys():
        return _revising(scene, revisions, counts)
    if name in FEATURES or name in PAIR_STAGES:
        return _judging(scene, counts, asked=name in PAIR_STAGES)
    if name in SCORED:
        return _scoring(scene, counts)
    if name in READ:
        rows, texts = READ[name]
        mean = scene.texts.prompt_mean + scene.texts.response
        longest = scene.texts.prompt_longest + scene.texts.response
        num = next(iter(counts.values()), 0) * texts
        return _reading(
            scene,
            scene.policy.shape,
            num=num,
            rows=rows,
            mean=mean,
            longest=longest,
            scored=scene.texts.response,
        )
    return None


def work_of(
    name: str, key: Mapping[str, Any], counts: Mapping[str, int], scene: Scene
) -> Work | None:
    """What a stage takes; None: it asks no model.

    Args:
        name: The stage's.
        key: As in its digest: `config` and `identity`.
        counts: How much there is to do, as in a plan.
        scene: What all stages share.
    """
    found = _kind(name, scene, key, counts)
    if found is None:
        return None
    return replace(found, memory=scene.extra + memory.with_heap(found.memory, scene.place))
