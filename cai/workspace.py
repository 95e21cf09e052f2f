"""A wandb workspace as code: what to look at first, in sections, for every run of a project.

`SECTIONS` is the whole of it, as plain data; `build` makes wandb's objects from it, and only it
needs `wandb-workspaces` (the extra `workspace`). Keys are those that the tracker gives wandb: a
curve's are `<stage>/<metric>` against `<stage>/step`, final numbers are `<group>/<name>`, and a
custom chart's rows are the run's table of that name (`cai.wandb_charts`).

A workspace is stored on the server, so making one needs a key and the network. The panels are of
runs; runs that were logged offline show up in them after `wandb sync`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

from cai import paths
from cai.choices import PanelKind
from cai.connectivity import choose_mode
from cai.errors import UserError
from cai.wandb_charts import CHARTS, chart_key

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import BarPlot, CustomChart, LinePlot, ScatterPlot
    from wandb_workspaces.workspaces import Workspace

NAME = "Constitutional AI"
INSTALL = "pip install -e '.[workspace]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One chart over the runs that are shown."""

    title: str
    kind: PanelKind
    keys: tuple[str, ...]
    """Lines: metrics by step, of one stage. Bars: final numbers. Scatter: x and y, the last value
    of a run each. Chart: the name of one custom chart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Panels under one heading."""

    name: str
    panels: tuple[Panel, ...]


def _lines(title: str, *keys: str) -> Panel:
    return Panel(title=title, kind=PanelKind.lines, keys=keys)


def _bars(title: str, *keys: str) -> Panel:
    return Panel(title=title, kind=PanelKind.bars, keys=keys)


def _scatter(title: str, x: str, y: str) -> Panel:
    return Panel(title=title, kind=PanelKind.scatter, keys=(x, y))


def _chart(name: str) -> Panel:
    return Panel(title=CHARTS[name].title, kind=PanelKind.chart, keys=(name,))


def _policies(key: str) -> tuple[str, ...]:
    """One number for each policy of phase 2."""
    return tuple(key.format(policy=policy) for policy in ("base", "sl_cai", "rl_cai"))


SECTIONS = (
    Section(
        name="Feedback",
        panels=(
            _bars("Accuracy on labelled pairs", "feedback/accuracy"),
            _bars("Expected calibration error", "feedback/ece"),
            _chart("reliability"),
        ),
    ),
    Section(
        name="SL-CAI",
        panels=(
            _lines("Loss, nats per token", "sl_policy/train/loss"),
            _lines("Gradient norm", "sl_policy/train/grad_norm"),
        ),
    ),
    Section(
        name="Preference model",
        panels=(
            _lines("Accuracy in training", "preference_model/train/accuracy"),
            _lines("Margin in training", "preference_model/train/margin"),
            _bars("Accuracy on held-out pairs", "preference_model/accuracy"),
            _bars("Expected calibration error", "preference_model/ece"),
        ),
    ),
    Section(
        name="PPO",
        panels=(
            _lines(
                "Reward, SL-CAI standard deviations",
                "policy/objective/scores",
                "policy/objective/rlhf_reward",
            ),
            _lines("KL to SL-CAI, nats per response", "policy/objective/kl"),
            _chart("kl_reward"),
            _scatter(
                "Reward against KL, last round of each run",
                "policy/objective/kl",
                "policy/objective/scores",
            ),
            _lines("Entropy, nats per token", "policy/objective/entropy"),
            _lines("Response length, tokens", "policy/val/response_length"),
        ),
    ),
    Section(
        name="Evaluation",
        panels=(
            _bars("Red team: compliance", *_policies("eval/{policy}/red_team/compliance_rate")),
            _bars("Red team: refusal", *_policies("eval/{policy}/red_team/refusal_rate")),
            _bars("Over-refusal", *_policies("eval/{policy}/contrast/over_refusal_rate")),
            _bars("Elo: harmlessness", *_policies("elo/harmlessness/{policy}")),
            _bars("Elo: helpfulness", *_policies("elo/helpfulness/{policy}")),
        ),
    ),
    Section(
        name="Capability",
        panels=(
            _bars("Easy questions answered", *_policies("capability/{policy}/accuracy")),
            _bars("Perplexity of held-out text", *_policies("capability/{policy}/perplexity")),
        ),
    ),
)


def build(entity: str, project: str) -> Workspace:
    """`SECTIONS` as wandb's objects; nothing is sent."""
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(
            name=section.name, panels=[_panel(panel) for panel in section.panels], is_open=True
        )
        for section in SECTIONS
    ]
    return ws.Workspace(entity=entity, project=project, name=NAME, sections=sections)


def _panel(panel: Panel) -> LinePlot | BarPlot | ScatterPlot | CustomChart:
    import wandb_workspaces.reports.v2 as wr

    match panel.kind:
        case PanelKind.lines:
            stage = panel.keys[0].partition("/")[0]
            return wr.LinePlot(title=panel.title, x=f"{stage}/step", y=list(panel.keys))
        case PanelKind.bars:
            return wr.BarPlot(title=panel.title, metrics=list(panel.keys))
        case PanelKind.scatter:
            x, y = panel.keys
            return wr.ScatterPlot(title=panel.title, x=x, y=y)
        case PanelKind.chart:
            (name,) = panel.keys
            chart = CHARTS[name]
            return wr.CustomChart(
                query={"summaryTable": {"tableKey": f"{chart_key(name)}_table"}},
                chart_name=chart.spec,
                chart_fields=chart.fields,
                chart_strings={"title": chart.title},
            )


def save(entity: str | None, project: str) -> str:
    """Make the workspace on the server; its address.

    Raises:
        UserError: without the library, a key, a host that answers, or the server's consent.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError(
            f"A workspace is made by wandb-workspaces, which is not installed. Type: {INSTALL}"
        )
    import wandb

    base_url = wandb.setup(wandb.Settings(silent=True)).settings.base_url
    off = os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled")
    # Decided before wandb could ask for a key or wait for a server that does not answer.
    if choose_mode("offline" if off else "auto", base_url) != "online":
        raise UserError(
            f"A workspace is stored on the server, and {base_url} cannot be used now: it takes a "
            "key (wandb login, or WANDB_API_KEY), the network, and WANDB_MODE other than offline. "
            "To see the panels as JSON, type: python -m cai.workspace --dry-run"
        )
    try:
        owner = entity or wandb.Api().default_entity
        return build(owner, project).save().url
    # wandb documents no list of errors, and each is the server's answer to this one request.
    except Exception as error:
        raise UserError(
            f"wandb did not make the workspace: {type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}"
        ) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the workspace, or print what it would be made of."""
    shipped = yaml.safe_load((paths.CONF / "logger" / "wandb.yaml").read_text("utf-8"))
    parser = argparse.ArgumentParser(
        prog="python -m cai.workspace",
        description="Make a wandb workspace for the runs of a project: feedback, SL-CAI, "
        "preference model, PPO, evaluation, capability.",
    )
    parser.add_argument("--entity", default=shipped["entity"], help="as logger.entity of the runs")
    parser.add_argument(
        "--project", default=shipped["project"], help="as logger.project (default: %(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the panels as JSON instead")
    options = parser.parse_args(arguments)
    if options.dry_run:
        told = {"project": options.project, "name": NAME}
        sections = [dataclasses.asdict(section) for section in SECTIONS]
        print(json.dumps(told | {"sections": sections}, indent=1))
        return
    try:
        print(save(options.entity, options.project))
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
