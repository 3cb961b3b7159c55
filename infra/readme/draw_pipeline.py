"""Draws the picture of the front page, for light and for dark pages.

Usage: python infra/readme/draw_pipeline.py       writes pipeline.svg beside this file
"""

from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT, GAP = 1080, 416, 28
EM = 0.58  # of its size, what a letter takes at most on average; fonts differ
STYLE = """
text { font: 15px -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.bold { font-weight: 600 }
.small, .note { font-size: 13px }
.note { fill: #59636e }
rect { fill: none; stroke: #818b98 }
.stage rect { fill: #ddf4ff; stroke: #0969da }
.artifact rect { fill: #f6f8fa }
.optional rect { stroke: #0969da }
.again rect { stroke: #0969da; stroke-dasharray: 5 4 }
path { fill: none; stroke: #59636e; stroke-width: 1.5 }
.reused { stroke: #0969da; stroke-dasharray: 5 4 }
#head path { fill: #59636e; stroke: none }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .note { fill: #9198a1 }
  rect { stroke: #9198a1 }
  .stage rect { fill: #12263f; stroke: #4493f8 }
  .artifact rect { fill: #212830 }
  .optional rect, .again rect { stroke: #4493f8 }
  path { stroke: #9198a1 }
  .reused { stroke: #4493f8 }
  #head path { fill: #9198a1 }
}
"""
RECIPE = ("recipe: what to do", "bold"), ("its fingerprints name every artifact", "note")
CLUSTER = ("cluster: where", "bold"), ("workers, GPUs, folders; they change no result", "note")
HEAD = (
    '<marker id="head" markerWidth="9" markerHeight="8" refX="6" refY="4" orient="auto">'
    '<path d="M0 0L9 4L0 8z"/></marker>'
)


def words(x: float, y: float, text: str, style: str = "plain", anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>'


def box(kind: str, x: float, y: float, width: float, height: float, *lines: tuple[str, str]) -> str:
    """A box, and in its middle lines of (text, style), which must fit."""
    drawn = [f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8"/>']
    for number, (text, style) in enumerate(lines):
        size = 13 if style in ("small", "note") else 15
        assert len(text) * size * EM < width - 8, f"{text!r} does not fit into its box"
        drawn.append(words(x + width / 2, y + height / 2 + 5 + 21 * (number - (len(lines) - 1) / 2), text, style))
    return f'<g class="{kind}">{"".join(drawn)}</g>'


def arrow(path: str, style: str = "plain") -> str:
    return f'<path d="{path}" class="{style}" marker-end="url(#head)"/>'


def ends(triples: float, policy: float, top: float, bottom: float) -> list[str]:
    """What may come before the triples, and after the policy; in rounds the one goes on to the other."""
    row, height, sample, prompts, loop = 266, 52, 218, 391, 356
    middle, right = row + height / 2, WIDTH - 13
    return [
        box("optional", policy - 56, 84, 112, 46, ("evaluate", "bold"), ("optional", "note")),
        arrow(f"M{policy:g} {top - 3}V135"),
        box("triples", prompts - 45, row, 90, height, ("prompts", "bold"), ("your data", "note")),
        arrow(f"M{prompts - 48} {middle:g}H{sample + 67}"),
        box("optional", sample - 62, row, 124, height, ("sample", "bold"), ("optional: vLLM", "note")),
        arrow(f"M{sample - 65} {middle:g}H{triples + 50:g}"),
        box("optional", triples - 45, row, 90, height, ("judge", "bold"), ("optional", "note")),
        arrow(f"M{triples:g} {row - 3}V{bottom + 5}"),
        arrow(f"M{right} {bottom + 3}V{loop - 10}Q{right} {loop} {right - 10} {loop}H{sample + 10}"
              f"Q{sample} {loop} {sample} {loop - 10}V{row + height + 5}"),
        words(600, loop - 8, "on-policy rounds: the policy writes the next triples", "note"),
    ]  # fmt: skip


def picture() -> str:
    top, middle, bottom = 155, 186, 217  # of the row of stages and what they make
    row = [
        ("triples", 90, ("triples", "bold"), ("your data", "note")),
        ("stage", 100, ("shard", "bold"), ("Ray Data", "small")),
        ("artifact", 146, ("PreferencePairs", "plain"), ("token ids", "note")),
        ("stage", 134, ("score", "bold"), ("Ray Data + vLLM", "small")),
        ("artifact", 162, ("ReferenceLogprobs", "plain"), ("numbers in Parquet", "note")),
        ("stage", 148, ("train", "bold"), ("Ray Train + FSDP2", "small")),
        ("artifact", 112, ("Policy", "plain"), ("Checkpoint", "plain")),
    ]
    drawn, centres, left = [], [], 10.0
    for kind, width, *lines in row:
        drawn.append(box(kind, left, top, width, bottom - top, *lines))
        centres.append(left + width / 2)
        drawn.append(arrow(f"M{left + width + 3:g} {middle}H{left + width + GAP - 5:g}"))
        left += width + GAP
    drawn.pop()  # nothing comes after the policy
    triples, _, pairs, score, logprobs, train, policy = centres
    drawn += [
        box("recipe", 10, 14, 526, 56, *RECIPE),
        box("cluster", 564, 14, 506, 56, *CLUSTER),
        arrow(f"M{pairs} {top - 3}C{pairs} {top - 58},{train} {top - 58},{train} {top - 5}"),
        words((pairs + train) / 2, top - 52, "the same token ids: training tokenizes nothing", "note"),
        words(score, bottom + 24, "loads the reference, once", "note"),
    ]
    for y, text in ((244, "train: beta 0.3"), (290, "train: ipo, seed 1")):
        start = f"M{logprobs} {bottom + 3}C{logprobs} {y + 18},{logprobs + 20} {y + 18},{train - 79} {y + 18}"
        drawn += [
            arrow(start, "reused"),
            box("again", train - 74, y, 148, 36, (text, "small")),
            arrow(f"M{train + 77} {y + 18}H{policy - 58}"),
            words(policy, y + 23, "another policy", "note"),
        ]
    drawn += ends(triples, policy, top, bottom)
    drawn += [
        words(10, HEIGHT - 16, "Training reads the cached numbers and never loads the reference.", anchor="start"),
        words(WIDTH - 10, HEIGHT - 16, "Another beta, loss or seed: no reference pass.", anchor="end"),
    ]
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    title = "<title>raydpo: sample and judge may make triples; shard, score, train; evaluate</title>"
    return "\n".join([opening, title, f"<style>{STYLE}</style>", f"<defs>{HEAD}</defs>", *drawn, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_name("pipeline.svg").write_text(picture())
