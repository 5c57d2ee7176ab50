"""The Markdown report of an evaluation. Every number is read from the tables, never typed."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from elastic.evaluate.result import BASELINE_LABELS, Evaluation
from elastic.profile.flops import count_image
from elastic.profile.provenance import Provenance
from elastic.profile.tables import ALL, MEAN, Metric
from elastic.submodel import Submodel

REPORT = "report.md"
METRIC_LABELS: dict[Metric, str] = {"recall_at_1": "R@1", "mmp_at_5": "mMP@5"}


def write_report(path: Path, evaluation: Evaluation, plots: Sequence[Path]) -> None:
    """Write the report; `plots` are linked relative to its folder."""
    sections = [
        _header(evaluation),
        _summary(evaluation),
        *(f"![{plot.stem.replace('_', ' ')}]({plot.relative_to(path.parent)})" for plot in plots),
        _widths(evaluation),
        _mixes(evaluation),
        _compatibility(evaluation),
        _domains(evaluation),
        _captions(evaluation),
        provenance_section(evaluation.quality.provenance),
    ]
    path.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _header(evaluation: Evaluation) -> str:
    domains = len(evaluation.quality.domains())
    facts = (
        f"`{evaluation.source}`, split `{evaluation.split}`: {evaluation.num_images:,} images of "
        f"{evaluation.num_classes:,} classes in {domains} domains. Every image is a query against all the others, of "
        "all domains (merged index); right means another image of the same class. `mean` is over domains, `all` over "
        "queries."
    )
    if evaluation.num_broken:
        facts += f" {evaluation.num_broken} images could not be decoded and were left out."
    if evaluation.num_lonely:
        facts += f" {evaluation.num_lonely} queries have no other image of their class and count as failed."
    return f"# Retrieval quality of `{evaluation.run_name}`\n\n{facts}"


def _summary(evaluation: Evaluation) -> str:
    header = ["", "embed_dim", "params", "MFLOPs", "R@1 mean", "R@1 all", "mMP@5 mean", "mMP@5 all"]
    rows = []
    for name, scores in evaluation.baselines.items():
        values = [scores[domain] for domain in (MEAN, ALL)]
        metrics = [f"{value.recall_at_1:.3f}" for value in values] + [f"{value.mmp_at_5:.3f}" for value in values]
        rows.append([BASELINE_LABELS[name], "", "", "", *metrics])
    for name, submodel in evaluation.config.space.granularities.items():
        cost = count_image(evaluation.config, submodel)
        metrics = [
            f"{evaluation.value(submodel, metric=metric, domain=domain):.3f}"
            for metric in METRIC_LABELS
            for domain in (MEAN, ALL)
        ]
        size = [str(evaluation.config.embed_dim), f"{cost.params:,}", f"{cost.flops / 1e6:.1f}"]
        rows.append([f"**{name}** `{submodel}`", *size, *metrics])
    error = evaluation.standard_error(evaluation.config.space.full)
    note = (
        "Queries and index are embedded by the same submodel. One multiply-accumulate is two FLOPs. The standard error "
        f"of `R@1 mean` over queries is {error:.3f}; smaller differences say little."
    )
    return f"## Granularities at full width, and baselines\n\n{note}\n\n{markdown_table(header, rows)}"


def _widths(evaluation: Evaluation) -> str:
    parts = ["## Granularity x embedding width", "Mean over domains, queries and index at the same width."]
    for metric, label in METRIC_LABELS.items():
        parts.append(f"**{label}**\n\n" + _grid(evaluation, lambda s, w, m=metric: evaluation.value(s, s, w, metric=m)))
    return "\n\n".join(parts)


def _grid(evaluation: Evaluation, value: Callable[[Submodel, int], float]) -> str:
    space = evaluation.config.space
    rows = [
        [f"**{name}**", *(f"{value(submodel, width):.3f}" for width in space.embed_dims)]
        for name, submodel in space.granularities.items()
    ]
    return markdown_table(["", *(str(width) for width in space.embed_dims)], rows)


def _mixes(evaluation: Evaluation) -> str:
    """Mix'n'Match beside what a straight line between its two neighbouring granularities would give."""
    space, full = evaluation.config.space, evaluation.config.space.full
    flops = {submodel: count_image(evaluation.config, submodel).flops for submodel in space.mixes()}
    uniform = list(space.granularities.values())
    rows = []
    for mix in space.mixes():
        own = evaluation.value(mix)
        low = max((s for s in uniform if flops[s] <= flops[mix]), key=lambda s: flops[s])
        high = min((s for s in uniform if flops[s] >= flops[mix]), key=lambda s: flops[s])
        share = (flops[mix] - flops[low]) / max(flops[high] - flops[low], 1)
        line = evaluation.value(low) + share * (evaluation.value(high) - evaluation.value(low))
        above = "" if mix.is_uniform else f"{own - line:+.3f}"
        name = f"**{space.name(mix)}**" if mix.is_uniform else f"`{mix}`"
        against_full = f"{evaluation.value(mix, full):.3f}"
        rows.append([name, f"{flops[mix] / 1e6:.1f}", f"{own:.3f}", above, against_full])
    header = ["submodel", "MFLOPs", "R@1, own index", "above the line", f"R@1, {space.name(full)} index"]
    note = (
        "R@1, mean over domains, full width. *Above the line*: difference to the straight line (in FLOPs) between the "
        "two granularities that are mixed."
    )
    return f"## Mix'n'Match\n\n{note}\n\n{markdown_table(header, rows)}"


def _compatibility(evaluation: Evaluation) -> str:
    space = evaluation.config.space
    parts = ["## Compatibility: query submodel (row) x index submodel (column)", "R@1, mean over domains."]
    for width in sorted({space.embed_dims[0], space.full_embed_dim}, reverse=True):
        rows = [
            [f"**{name}**", *(f"{evaluation.value(query, i, width):.3f}" for i in space.granularities.values())]
            for name, query in space.granularities.items()
        ]
        parts.append(f"embed_dim {width}\n\n{markdown_table(['', *space.granularities], rows)}")
    return "\n\n".join(parts)


def _domains(evaluation: Evaluation) -> str:
    space, quality = evaluation.config.space, evaluation.quality
    names = list(evaluation.baselines)
    header = ["domain", "queries", *(BASELINE_LABELS[name] for name in names), *space.granularities]
    rows = []
    for domain in quality.domains():
        own = [evaluation.value(submodel, domain=domain) for submodel in space.granularities.values()]
        count = quality.row(space.full, space.full, space.full_embed_dim, domain=domain).num_queries
        values = [evaluation.baselines[name][domain].recall_at_1 for name in names] + own
        rows.append([domain, str(count), *(f"{value:.3f}" for value in values)])
    return f"## R@1 by domain, full width\n\n{markdown_table(header, rows)}"


def _captions(evaluation: Evaluation) -> str:
    """Text-to-image retrieval, if the model has a text tower and the data captions."""
    quality, space, text_space = evaluation.quality, evaluation.config.space, evaluation.config.text_space
    if text_space is None or not quality.query_submodels("text_to_image"):
        return ""
    parts = ["## Text to image", f"A caption finds any image of its class; index by {space.name(space.full)}."]
    for domain in (MEAN, ALL):
        rows = [
            [f"**{name}**"]
            + [
                f"{quality.row(text, space.full, width, task='text_to_image', domain=domain).recall_at_1:.3f}"
                for width in space.embed_dims
            ]
            for name, text in text_space.granularities.items()
        ]
        header = [f"R@1 {domain}", *(str(width) for width in space.embed_dims)]
        parts.append(markdown_table(header, rows))
    return "\n\n".join(parts)


def provenance_section(origin: Provenance) -> str:
    """The part of a report that says on what device, by which code and command its numbers were made."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(origin.versions.items()))
    lines = [f"device: {origin.device}", f"commit: {origin.commit}", f"command: `{origin.command}`", versions]
    return "## How this was measured\n\n" + "\n".join(f"- {line}" for line in lines)
