"""The report of a MatLM evaluation: tables and a plot. Every number is read from the scores, never typed."""

import math
from pathlib import Path

from matplotlib.figure import Figure

from elastic.evaluate.report import markdown_table, provenance_section
from elastic.lm.evaluation import LmEvaluation
from elastic.submodel import Submodel

REPORT, PLOT = "report.md", "nats_vs_params.png"


def write_report(folder: Path, found: LmEvaluation) -> None:
    """Write `report.md` and the plot it shows."""
    plot(found).savefig(folder / PLOT, dpi=140)
    (folder / REPORT).write_text(report(found), encoding="utf-8")


def report(found: LmEvaluation) -> str:
    """Granularities, then Mix'n'Match submodels."""
    space = found.config.space
    full = space.name(space.full)
    facts = (
        f"{found.num_tokens:,} held-out tokens in blocks of {found.block_size}, {found.bytes_per_token:.2f} bytes a "
        f"token. Every token is predicted from the true text before it in its block. *Agreement*: share of positions "
        f"at which the most likely token is {full}'s. *KL*: KL({full} || submodel) of the next token, in nats. "
        "FLOPs: of one token at the end of a block, two per multiply-accumulate."
    )
    uniform, mixed = list(space.granularities.values()), [s for s in found.scores if not s.is_uniform]
    mixes = [
        [f"`{submodel}`", *row(found, submodel)[:2], f"{found.above_line(submodel):+.4f}", *row(found, submodel)[3:]]
        for submodel in mixed
    ]
    note = (
        "Never trained: the smaller size in the first blocks, the next larger in the last. *Above the line*: nats "
        "above the straight line, in parameters, between the two sizes that are mixed; below 0 is better."
    )
    header = ["submodel", "nats/token", "perplexity"]
    costs = ["agreement", "KL", "params, non-embedding", "MFLOPs/token"]
    sections = [
        f"# `{found.run_name}` on held-out text",
        facts,
        f"![nats over parameters]({PLOT})",
        "## Granularities",
        markdown_table(
            [*header, "nats/byte", *costs],
            [[f"**{space.name(submodel)}** `{submodel}`", *row(found, submodel)] for submodel in uniform],
        ),
        "## Mix'n'Match",
        note,
        markdown_table([*header, "above the line", *costs], mixes) if mixes else "",
        provenance_section(found.provenance),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def row(found: LmEvaluation, submodel: Submodel) -> list[str]:
    """Loss per token, perplexity, loss per byte, agreement, KL, parameters and MFLOPs of one submodel."""
    scores, cost = found.scores[submodel], found.cost(submodel)
    return [
        f"{scores.nats:.4f}",
        f"{math.exp(scores.nats):.2f}",
        f"{scores.nats / found.bytes_per_token:.4f}",
        f"{scores.agreement:.3f}",
        f"{scores.kl:.4f}",
        f"{cost.params:,}",
        f"{cost.flops / 1e6:.2f}",
    ]


def plot(found: LmEvaluation) -> Figure:
    """Nats per token over non-embedding parameters."""
    space = found.config.space
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    uniform, mixed = list(space.granularities.values()), [s for s in found.scores if not s.is_uniform]
    for submodels, style, label in (
        (uniform, "o-", "granularities, trained"),
        (mixed, "o", "Mix'n'Match, never trained"),
    ):
        x = [found.cost(submodel).params for submodel in submodels]
        axes.plot(x, [found.scores[submodel].nats for submodel in submodels], style, label=label)
    for name, submodel in space.granularities.items():
        place = (found.cost(submodel).params, found.scores[submodel].nats)
        axes.annotate(name, place, xytext=(6, 6), textcoords="offset points", weight="bold")
    first, full = found.scores[space.smallest], found.scores[space.full]
    name, gap = space.name(space.smallest), first.nats - full.nats
    axes.set_title(f"{name} costs {gap:.3f} nats, agrees at {first.agreement:.0%} of positions")
    axes.set_xlabel("non-embedding parameters")
    axes.set_ylabel("nats per held-out token")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
