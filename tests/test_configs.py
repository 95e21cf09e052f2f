"""Every file in `conf/` and `sweeps/` composes, is typed, and has the partners of its name."""

from __future__ import annotations

from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cai import paths
from cai.config import AuditPhaseConfig, Config, DPOPhaseConfig, RLAIFConfig, SLCAIConfig
from cai.errors import ConfigError
from cai.model_config import ServerConfig
from cai.schema import FEEDBACK, PARTS, PHASES, RUN_GROUPS, SECTIONS, options, to_config

GROUPS = (*SECTIONS, "phase", "feedback", *RUN_GROUPS)
SERVED = ["feedback=endpoint", "feedback.server.model=m"]
PRICES = ["feedback.server.price_input=1", "feedback.server.price_output=2"]
NEEDED = {
    ("model", "local"): ["model.path=/models/mine"],
    ("model", "critic"): ["model.start=null"],
    ("feedback", "endpoint"): SERVED,
    ("server", "local"): SERVED,
    ("server", "openai"): [*SERVED, *PRICES],
    ("engine", "endpoint"): ["phase.feedback_model.engine.server.model=m"],
}
"""Settings that an option cannot do without."""
PLUGINS = ("optuna_kl_coef",)
"""Sweeps that ask for a plugin of Hydra's: tests/test_sweeps.py."""
PLACES = {"engine": "phase.feedback_model.engine", "server": "feedback.server"}
"""Where a part of other sections is chosen."""


@pytest.fixture(scope="module", autouse=True)
def _conf():
    with initialize_config_dir(version_base="1.3", config_dir=str(paths.CONF)):
        yield


@cache  # 0.2 s each; nothing here changes what it gets
def composed(*overrides: str) -> DictConfig:
    return compose("config", overrides=list(overrides))


def config_of(*overrides: str) -> Config:
    return to_config(composed(*overrides))


EVERY_OPTION = [
    (group, option) for group in GROUPS for option in options(group) if option not in PLUGINS
]


@pytest.mark.parametrize(("group", "option"), EVERY_OPTION)
def test_every_option_composes_into_dataclasses(group, option):
    config = config_of(f"{group}={option}", *NEEDED.get((group, option), []))
    assert isinstance(config.phase, PHASES[config.phase.name])
    assert type(config.feedback) is FEEDBACK[config.feedback.method]
    assert all(type(vars_of(config)[name]) is kind for name, kind in SECTIONS.items())


@pytest.mark.parametrize(
    ("group", "option"), [(group, option) for group in PARTS for option in options(group)]
)
@pytest.mark.parametrize("phase", ["rlaif", "evaluate"])
def test_every_option_of_a_part_composes_where_it_belongs(group, option, phase):
    place = PLACES[group]
    chosen = config_of(
        f"phase={phase}", f"{group}@{place}={option}", *NEEDED.get((group, option), [])
    )
    part: object = chosen
    for name in place.split("."):
        part = getattr(part, name)
    assert type(part) is PARTS[group]
    assert isinstance(part, ServerConfig) or part.name == option


def test_a_server_may_have_every_role_and_trains_adapters_only():
    place = "phase.critique_models.main.engine"
    config = config_of(f"engine@{place}=endpoint", f"{place}.server.model=m")
    assert config.phase.critique_models["main"].engine.server.model == "m"
    assert config.model.engine.name == config.phase.feedback_model.engine.name == "transformers"
    served = ["engine@model.engine=endpoint", "model.engine.server.model=m"]
    assert config_of(*served).model.engine.server.model == "m"
    with pytest.raises(ConfigError, match="adapter=none cannot be sampled from by engine=endpoint"):
        config_of(*served, "model.adapter=none")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("feedback.server.url=http://me:hunter2@host/v1", "must hold no password"),
        ("feedback.server.url='http://host/v1?k=hunter2'", "must hold no password"),
        ("feedback.server.key_env=sk-hunter2", "name of an environment variable"),
        ("feedback.server.url=host:8000", "must begin with http"),
        ("feedback.server.num_parallel=0", "num_parallel must be above 0"),
    ],
)
def test_a_server_s_settings_hold_no_secret(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config_of(*SERVED, override)
    assert "hunter2" not in str(caught.value)


def vars_of(config: Config) -> dict[str, object]:
    return {name: getattr(config, name) for name in SECTIONS}


def test_every_group_of_conf_is_tested():
    folders = {path.name for path in paths.CONF.iterdir() if path.is_dir()} - {"hydra"}
    assert folders == {*GROUPS, *PARTS}


@pytest.mark.parametrize("group", ["model", "constitution", "phase", "data", "hardware"])
def test_an_option_and_the_name_it_sets_are_the_same_word(group):
    for option in options(group):
        cfg = composed(f"{group}={option}", *NEEDED.get((group, option), []))
        assert cfg[group].name == option


def test_a_phase_is_one_word_in_four_places():
    modules = {path.stem for path in (paths.PACKAGE / "phases").glob("*.py")} - {"__init__"}
    assert set(options("phase")) == set(PHASES) == modules
    for name, kind in PHASES.items():
        # `DPOConfig` is the training's.
        word = kind.__name__.removesuffix("Config").removesuffix("Phase")
        assert word.lower() == name.replace("_", "")


def test_every_constitution_option_has_its_document_and_every_document_its_option():
    documents = {path.stem for path in paths.CONSTITUTIONS.glob("*.yaml")}
    assert set(options("constitution")) == documents
    for option in documents:
        assert composed(f"constitution={option}").constitution.document == f"{option}.yaml"


def test_every_domain_has_its_prompts():
    domains = {
        composed(f"constitution={option}").constitution.domain for option in options("constitution")
    }
    shipped = {
        path.stem.removeprefix("domain_")
        for path in (paths.PACKAGE / "datasets").glob("domain_*.jsonl")
    }
    assert domains - {None} == shipped


@pytest.mark.parametrize("phase", options("phase"))
def test_debug_tiny_makes_every_phase_smaller(phase):
    tiny, full = config_of("debug=tiny", f"phase={phase}"), config_of(f"phase={phase}")
    assert tiny.evaluation.sampling.max_new_tokens < full.evaluation.sampling.max_new_tokens
    assert tiny.evaluation.num_feedback_tests < full.evaluation.num_feedback_tests
    if isinstance(tiny.phase, SLCAIConfig):
        assert tiny.phase.prompts.num_red_team < full.phase.prompts.num_red_team
    if isinstance(tiny.phase, RLAIFConfig):
        assert tiny.phase.ppo.num_iterations < full.phase.ppo.num_iterations
    if isinstance(tiny.phase, AuditPhaseConfig):
        assert tiny.audit.num_pairs < full.audit.num_pairs
        assert tiny.phase.sampling.max_new_tokens < full.phase.sampling.max_new_tokens
    if isinstance(tiny.phase, DPOPhaseConfig):
        assert tiny.phase.dpo.batch_size < full.phase.dpo.batch_size


def test_debug_tiny_follows_the_phase_that_an_experiment_chooses():
    config = config_of("debug=tiny", "experiment=final_revisions")
    assert config.phase.name == "sl_cai"
    assert config.phase.prompts.num_red_team == 6
    assert config.phase.sl_policy.revisions == "final"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("sl_cai", "rlaif"),
        ("sl_cai", "dpo"),
        ("sl_cai", "critique_model"),
        ("sl_cai", "critique_rl"),
        ("rlaif", "dpo"),
        ("rlaif", "matrix"),
        ("dpo", "matrix"),
        ("rlaif", "hybrid"),
    ],
)
@pytest.mark.parametrize("debug", [[], ["debug=tiny"]])
def test_phases_that_share_stages_have_the_same_values_for_them(first, second, debug):
    one, other = (composed(f"phase={name}", *debug).phase for name in (first, second))
    shared = set(one) & set(other) - {"name"}
    assert "sl_policy" in shared
    assert ("comparisons" in shared) == ("pairs" in shared) == (first != "sl_cai")
    assert all(one[key] == other[key] for key in shared)


@pytest.mark.parametrize("debug", [[], ["debug=tiny"]])
def test_rlhf_has_the_same_settings_by_itself_and_in_a_hybrid(debug):
    alone, hybrid = (config_of(f"phase={name}", *debug) for name in ("rlhf", "hybrid"))
    assert alone.phase.training == hybrid.phase.rlhf
    assert alone.phase.prompts == hybrid.phase.prompts
    assert alone.data == hybrid.data
    assert alone.data.human_comparisons.path == "human_comparisons"
    rlaif = config_of("phase=rlaif", *debug)
    assert rlaif.data.human_comparisons.path is None
    assert alone.phase.ppo == rlaif.phase.ppo
    assert alone.phase.preference_model == rlaif.phase.preference_model


def test_comparisons_of_the_command_line_take_the_place_of_the_shipped_ones():
    for phase in ("rlhf", "hybrid"):
        config = config_of(f"phase={phase}", "data.human_comparisons.path=mine.jsonl")
        assert config.data.human_comparisons.path == "mine.jsonl"


def test_an_audit_samples_on_the_prompts_that_training_draws():
    for debug in ([], ["debug=tiny"]):
        audit, sl_cai = (composed(f"phase={name}", *debug).phase for name in ("audit", "sl_cai"))
        assert audit.prompts == sl_cai.prompts


def test_dpo_holds_out_what_the_preference_model_does():
    for debug in ([], ["debug=tiny"]):
        pm, dpo = (config_of(f"phase={name}", *debug).phase for name in ("rlaif", "dpo"))
        assert pm.preference_model.validation_frac == dpo.dpo.validation_frac


def test_the_command_line_beats_an_experiment():
    config = config_of("experiment=control_none", "constitution=medical", "seed=3")
    assert (config.constitution.name, config.seed) == ("medical", 3)


def test_an_override_of_one_role_leaves_the_others_alone():
    config = config_of("model@phase.feedback_model=qwen3_4b", "phase.feedback_model.max_context=99")
    assert (config.phase.feedback_model.name, config.phase.feedback_model.max_context) == (
        "qwen3_4b",
        99,
    )
    assert config.phase.critique_models["main"].name == config.model.name == "smollm2_135m"
    assert config.model.max_context != 99


def test_the_critique_model_is_a_role_of_every_training_phase():
    training = [name for name, kind in PHASES.items() if issubclass(kind, SLCAIConfig)]
    assert {"sl_cai", "rlaif", "dpo", "matrix", "hybrid"} <= set(training)
    for phase in training:
        config = config_of(f"phase={phase}", "model@phase.critique_models.main=qwen3_4b")
        assert config.phase.critique_models["main"].source == "hub"


def test_the_preference_models_base_is_the_policys_unless_one_is_chosen():
    assert config_of().phase.preference_base is None
    config = config_of(
        "model@phase.preference_base=local",
        "phase.preference_base.path=/models/mine",
        "phase.preference_base.lora.rank=3",
    )
    assert (config.phase.preference_base.path, config.phase.preference_base.lora.rank) == (
        "/models/mine",
        3,
    )
    assert config.model.lora.rank != 3
    with pytest.raises(ConfigError, match=r"phase\.preference_base\.engine must be transformers"):
        config_of(
            "model@phase.preference_base=qwen3_4b", "engine@phase.preference_base.engine=vllm"
        )


def test_none_is_a_name_and_not_null():
    config = config_of("constitution=none", "logger=none")
    assert config.constitution.name == "none"
    assert config.logger.kind == "none"


@pytest.mark.parametrize("sweep", [name for name in options("sweeps") if name not in PLUGINS])
def test_every_combination_of_a_sweep_composes(sweep):
    cfg = compose("config", overrides=[f"sweeps={sweep}"], return_hydra_config=True)
    assert cfg.hydra.mode.name == "MULTIRUN"
    for key, values in cfg.hydra.sweeper.params.items():
        for value in str(values).split(","):
            config_of(f"sweeps={sweep}", f"{key}={value}")


@pytest.mark.parametrize("group", ["experiment", "sweeps"])
def test_experiments_and_sweeps_say_why_how_and_how_long(group):
    for option in options(group):
        header = (paths.CONF / group / f"{option}.yaml").read_text().partition("defaults:")[0]
        assert header.startswith("# @package _global_\n")
        for word in ("Question", "Command", "Time", f"{group}={option}"):
            assert word in header, (option, word)


def test_a_range_error_names_the_whole_key():
    cases = {
        "phase.ppo.clip_ratio=-1": "phase.ppo.clip_ratio must be above 0",
        "phase.ppo.score_clip=0": "phase.ppo.score_clip must be above 0",
        "phase.ppo.kl_where=loss": "phase.ppo.kl_estimator must be k2 or k3 with kl_where=loss",
        "phase.ppo.at_cut=bootstrap": "phase.ppo.missing_eos_penalty must be 0 with at_cut=boot",
        "phase.ppo.value_warmup_iterations=6": r"phase.ppo.value_warmup_iterations \(6\) must",
        "phase.ppo.snapshot_every=0": "phase.ppo.snapshot_every must be above 0",
        "phase.ppo.select=gold_peak": "phase.ppo.select=gold_peak needs a gold preference model",
        "phase.preference_model.human_frac=1.5": "phase.preference_model.human_frac must be betw",
        "phase.preference_model.num_members=0": "phase.preference_model.num_members must be above",
        "phase.drafts.shard_size=0": "phase.drafts.shard_size must be above 0",
        "phase.pairs.sampling.temperature=0": "phase.pairs.sampling.temperature must be above 0",
        "phase.feedback_model.lora.rank=0": "phase.feedback_model.lora.rank must be above 0",
        "model.path=x": "model.path must be one of smollm2_135m, qwen2_5_0_5b",
        "data.evaluation_frac=2": "data.evaluation_frac must be between 0 and 1",
        "seed=-1": "seed must be in",
    }
    dpo = {
        "phase.dpo.beta=0": "phase.dpo.beta must be above 0",
        "phase.dpo.label_smoothing=0.5": "phase.dpo.label_smoothing must be at least 0 and below",
        "phase.dpo.human_frac=2": "phase.dpo.human_frac must be between 0 and 1",
    }
    for override, message in dpo.items():
        with pytest.raises(ConfigError, match=f"^{message}"):
            config_of("phase=dpo", override)
    for override, message in cases.items():
        with pytest.raises(ConfigError, match=f"^{message}"):
            config_of(override)


def test_a_gold_preference_model_needs_samples_and_ppo():
    gold = config_of("phase.gold=true", "phase.ppo.select=gold_peak").phase
    assert gold.gold
    with pytest.raises(ConfigError, match=r"^evaluation\.sampling\.temperature must be above 0"):
        config_of("phase.gold=true", "evaluation.sampling.temperature=0")
    with pytest.raises(ConfigError, match=r"^phase\.gold=true is for PPO, and method=dpo has none"):
        config_of("phase=matrix", "phase.gold=true", "phase.method=dpo")


def test_settings_of_ppo_that_need_each_other_compose_together():
    ppo = config_of(
        "phase.ppo.kl_where=loss",
        "phase.ppo.kl_estimator=k3",
        "phase.ppo.at_cut=bootstrap",
        "phase.ppo.missing_eos_penalty=0",
        "phase.ppo.score_clip=2.5",
        "phase.ppo.value_adapter=own",
        "phase.ppo.value_warmup_iterations=2",
    ).phase.ppo
    assert (ppo.kl_where, ppo.at_cut, ppo.value_adapter) == ("loss", "bootstrap", "own")


def test_what_is_refused_on_purpose_says_why_when_it_is_appended():
    with pytest.raises(ConfigError, match=r"^phase\.ppo\.top_p is refused: a sampler that leaves"):
        config_of("+phase.ppo.top_p=0.9")


def test_a_missing_value_is_named_with_what_to_type():
    with pytest.raises(ConfigError, match=r"model\.path=<value>"):
        config_of("model=local")


def test_an_appended_key_is_refused_and_not_dropped():
    with pytest.raises(ConfigError, match=r"Unknown key phase\.ppo\.extra"):
        config_of("+phase.ppo.extra=1")
    with pytest.raises(ConfigError, match="names code to run"):
        config_of("+phase.ppo._target_=os.system")


def test_the_environment_cannot_be_read_from_a_config(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    cfg = composed("model=local", "model.path='${oc.env:WANDB_API_KEY}'")
    with pytest.raises(ConfigError, match=r"^model\.path: Unsupported interpolation") as caught:
        to_config(cfg)
    assert "hunter2" not in str(caught.value)


def test_no_file_names_code_to_run():
    for path in [*paths.CONF.rglob("*.yaml"), *paths.SWEEPS.glob("*.yaml")]:
        assert "_target_" not in path.read_text(), path


def test_no_option_file_repeats_another():
    for group in SECTIONS:
        contents = [
            OmegaConf.to_yaml(OmegaConf.load(paths.CONF / group / f"{option}.yaml"))
            for option in options(group)
        ]
        assert len(set(contents)) == len(contents)
