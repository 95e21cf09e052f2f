"""From one evaluated response of a finished run back to the training that was nearest to it.

Nothing is trained or sampled. The frozen base of the run's policy reads the run's prompts once
(kept in the run's own store); everything else is in the run's artifacts.
"""

from __future__ import annotations

from dataclasses import dataclass

from cai.artifacts import Artifact
from cai.config import TraceConfig
from cai.context import RunContext
from cai.model_config import ModelConfig
from cai.stages.prompt_embeddings import prompt_embeddings
from cai.trace.evidence import gather
from cai.trace.story import TraceStory
from cai.trace.traced import Asked, TracedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What is traced."""

    run: TracedRun
    asked: Asked
    model: ModelConfig
    """The base of the run's policy."""
    link: str
    """Address of the run's report, as `TraceStory.link`."""
    in_report: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What was found."""

    embeddings: Artifact
    story: TraceStory | None
    """None for a plan."""


def run(config: TraceConfig, inputs: Inputs, context: RunContext) -> Outputs:
    """Find the nearest training prompts, and everything that was made of them."""
    prompts = inputs.run.artifacts["prompts"]
    embeddings = prompt_embeddings(
        context,
        model=inputs.model,
        prompts=prompts,
        num=prompts.manifest()["counts"]["prompts"],
    )
    if context.plan:
        return Outputs(embeddings=embeddings, story=None)
    story = gather(
        config,
        inputs.run,
        inputs.asked,
        embeddings=embeddings,
        link=inputs.link,
        in_report=inputs.in_report,
    )
    return Outputs(embeddings=embeddings, story=story)
