"""Where a run's artifacts come from: which was computed from which, as a graph.

Every artifact is named by the hash of its settings and of its inputs' digests, so this graph is
what its digests are made of. It is drawn in layers (Sugiyama, Tagawa, Toda 1981): an artifact one
row below the last of its inputs, in a row by the mean place of its inputs. An input that also
reaches an artifact through another input of it gets no line of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import escape

from cai.charts import Chart
from cai.stage_names import stage_names
from cai.story import StageStory, duration, label, visible

if TYPE_CHECKING:  # a document is audited without torch
    from cai.context import StageResult

SHORT = 16
"""Characters of a digest that a story shows."""
MAX_BOXES = 60
"""More cannot be read as one graph; the table has all of it."""
BOX_WIDTH, BOX_HEIGHT = 118.0, 34.0
GAP_X, GAP_Y = 12.0, 30.0
MARGIN = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    stage: StageStory
    number: int
    """Place in the run's table."""
    x: float
    y: float


def stage_stories(results: Sequence[StageResult]) -> tuple[StageStory, ...]:
    """The lines of a run's table, with what each artifact was computed from."""
    return tuple(
        StageStory(
            name=result.name,
            full_name=full_name,
            status=str(result.status),
            seconds=result.seconds,
            num_records=next(iter(result.counts.values()), None),
            digest=result.artifact.digest[:SHORT],
            inputs=tuple(digest[:SHORT] for digest in key["inputs"].values()),
            version=key["version"],
        )
        for result, full_name in zip(results, stage_names(results), strict=True)
        for key in (result.artifact.manifest()["key"],)
    )


def lineage_chart(stages: Sequence[StageStory]) -> Chart | None:
    """The graph; None where nothing was computed from anything else in it, or too much to see.

    Every box is a link to its line of the table.
    """
    known = {stage.digest: stage for stage in stages}
    numbers = {stage.digest: number for number, stage in enumerate(stages, start=1)}
    inputs = {
        stage.digest: [
            one for one in dict.fromkeys(stage.inputs) if one in known and one != stage.digest
        ]
        for stage in known.values()
    }
    if not any(inputs.values()) or len(known) > MAX_BOXES:
        return None
    layers = _layers(inputs)
    widest = max(map(len, layers))
    width = widest * (BOX_WIDTH + GAP_X) - GAP_X + 2 * MARGIN
    height = len(layers) * (BOX_HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
    nodes = {
        digest: _Node(
            stage=known[digest],
            number=numbers[digest],
            x=(width - len(layer) * (BOX_WIDTH + GAP_X) + GAP_X) / 2 + place * (BOX_WIDTH + GAP_X),
            y=MARGIN + row * (BOX_HEIGHT + GAP_Y),
        )
        for row, layer in enumerate(layers)
        for place, digest in enumerate(layer)
    }
    lines = [
        _line(nodes[source], nodes[digest])
        for digest in nodes
        for source in _direct(digest, inputs)
    ]
    told = "; ".join(
        f"{label(stage.name)} from "
        + (
            ", ".join(label(known[one].name) for one in inputs[stage.digest])
            or "nothing in the run"
        )
        for stage in known.values()
    )
    alternative = visible(f"Graph of the run's {len(known)} artifacts. {told}.")
    body = "".join([*lines, *(_box(node) for node in nodes.values())])
    svg = (
        f'<svg class="lineage" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="group" aria-label="{escape(alternative)}">{body}</svg>'
    )
    return Chart(svg=svg, alternative=alternative)


def _layers(inputs: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Digests by the longest way from an artifact without inputs, in order within a layer."""
    depth: dict[str, int] = {}

    def deep(digest: str) -> int:
        if digest not in depth:
            depth[digest] = 1 + max((deep(one) for one in inputs[digest]), default=-1)
        return depth[digest]

    for digest in inputs:
        deep(digest)
    layers: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for digest in inputs:
        layers[depth[digest]].append(digest)
    place: dict[str, float] = {}
    for layer in layers:
        order = {digest: number for number, digest in enumerate(layer)}
        layer.sort(key=lambda digest: (_mean_place(inputs[digest], place), order[digest]))
        place |= {digest: number - (len(layer) - 1) / 2 for number, digest in enumerate(layer)}
    return layers


def _mean_place(sources: Sequence[str], place: Mapping[str, float]) -> float:
    return sum(place[one] for one in sources) / len(sources) if sources else 0.0


def _direct(digest: str, inputs: Mapping[str, Sequence[str]]) -> list[str]:
    """Inputs that no other input was computed from."""
    return [
        one
        for one in inputs[digest]
        if not any(one in _ancestors(other, inputs) for other in inputs[digest] if other != one)
    ]


def _ancestors(digest: str, inputs: Mapping[str, Sequence[str]]) -> set[str]:
    found: set[str] = set()
    left = list(inputs[digest])
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += inputs[one]
    return found


def _line(source: _Node, target: _Node) -> str:
    x0, y0 = source.x + BOX_WIDTH / 2, source.y + BOX_HEIGHT
    x1, y1 = target.x + BOX_WIDTH / 2, target.y
    bend = (y1 - y0) / 2
    return (
        f'<path class="edge" d="M{x0:.1f} {y0:.1f}C{x0:.1f} {y0 + bend:.1f} {x1:.1f} '
        f'{y1 - bend:.1f} {x1:.1f} {y1:.1f}"/>'
    )


def _box(node: _Node) -> str:
    stage = node.stage
    name, status = escape(visible(label(stage.name))), escape(visible(stage.status))
    below = status if stage.seconds < 0.05 else f"{status}, {duration(stage.seconds)}"
    middle = node.x + BOX_WIDTH / 2
    return (
        f'<a href="#stage-{node.number}">'
        f'<rect class="{"reused" if stage.status == "reused" else "made"}" x="{node.x:.1f}" '
        f'y="{node.y:.1f}" width="{BOX_WIDTH:.0f}" height="{BOX_HEIGHT:.0f}" rx="5"/>'
        f'<text x="{middle:.1f}" y="{node.y + 14:.1f}" text-anchor="middle">{name}</text>'
        f'<text class="below" x="{middle:.1f}" y="{node.y + 27:.1f}" text-anchor="middle">'
        f"{below}</text></a>"
    )
