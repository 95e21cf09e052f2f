"""Each option of `conf/feedback/` becomes its method, found by all that the method says."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from cai import paths
from cai.choices import PrincipleSampling
from cai.config import Config, RLAIFConfig
from cai.constitution import Constitution
from cai.feedback.build import Surroundings, build, identity, judges_in
from cai.feedback.chain_of_thought import ChainOfThought
from cai.feedback.likelihood import Likelihood
from cai.feedback.multiple_choice import MultipleChoice
from cai.feedback.pointwise import Pointwise
from cai.feedback.score import Score
from cai.models import Models
from cai.schema import to_config

METHODS = {
    "multiple_choice": MultipleChoice,
    "chain_of_thought": ChainOfThought,
    "likelihood": Likelihood,
    "pointwise": Pointwise,
    "score": Score,
}


def config_of(feedback: str, model: Path) -> Config:
    overrides = [
        f"feedback={feedback}",
        "model@phase.feedback_model=local",
        f"phase.feedback_model.path={model}",
        "hardware.precision=fp32",
    ]
    with initialize_config_dir(version_base="1.3", config_dir=str(paths.CONF)):
        return to_config(compose("config", overrides=overrides))


@pytest.mark.parametrize("name", METHODS)
def test_an_option_builds_its_method(name: str, tiny_folder: Path, medical: Constitution) -> None:
    config = config_of(name, tiny_folder)
    assert isinstance(config.phase, RLAIFConfig)
    around = Surroundings(
        models=Models(config.hardware),
        model=config.phase.feedback_model,
        constitution=medical,
        sampling=PrincipleSampling.weighted,
        fitted={},
    )
    assert type(build(config.feedback, around)) is METHODS[name]


def test_every_method_is_found_by_a_wording_of_its_own(tiny_folder: Path) -> None:
    wordings = set()
    for name in METHODS:
        config = config_of(name, tiny_folder)
        assert isinstance(config.phase, RLAIFConfig)
        wordings.add(identity(config.feedback, config.phase.feedback_model)["wording"])
    assert len(wordings) == len(METHODS)


def test_a_judge_is_its_method_and_model_whatever_its_settings(tiny_folder: Path) -> None:
    config = config_of("likelihood", tiny_folder)
    assert isinstance(config.phase, RLAIFConfig)
    model = config.phase.feedback_model
    own = identity(config.feedback, model)
    other = {**own, "settings": {**own["settings"], "clamp": 0.1}}
    assert other != own
    assert judges_in(other) == judges_in(own)
    score = identity(config_of("score", tiny_folder).feedback, model)
    assert not judges_in(score) & judges_in(own)
    several = {"settings": {}, "members": {"a": score, "b": own}}
    assert judges_in(several) == judges_in(score) | judges_in(own)
