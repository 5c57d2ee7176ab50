"""What a language model gains when a slice of it drafts: tokens per second over plain decoding, and what explains them.

Every draft is measured with every draft length on the same prompts: a round generates one prompt once with each of
them and once without, in an order that is shuffled anew, all of them warm. Beside the measured ratio stand what it
follows from: c, the time of a draft's step in plain steps; v, that of a verification; alpha, how often a drafted
token that came to be judged was accepted; and what the formula (1 - alpha^(g+1)) / ((1 - alpha) (c g + 1)) makes of
alpha with the measured c and with c by bytes of weights alone, which is the floor of a machine that only waits for
memory. It checks that greedy output is the same.

It cannot show: what a server does beside it; prompts far longer than the ones given; other machines.

    python -m benchmarks.speculative runs/matlm
    python -m benchmarks.speculative runs/matlm --device cuda --temperature 0.8
    python -m benchmarks.speculative runs/matlm --independent runs/small --transformers
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.speculative.assisted import Assisted
from benchmarks.speculative.prompts import cut_prompts
from elastic.lm.checkpoint import load_matlm
from elastic.lm.drafts import Draft, DraftConfig, OwnCacheDraft, most_frequent
from elastic.lm.gamma import expected_tokens, speedup
from elastic.lm.generate import GenerationConfig, Generator, Step
from elastic.lm.sampling import Sampling
from elastic.model.decoder import Decoder, parameters_by_part
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.submodel import Submodel

RESULTS = Path(__file__).parents[1] / "results"

Gamma = int | Literal["auto"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Tokens per second with drafts over those without."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Directory of a finished run of a language model."""
    text: Path | None = None
    """UTF-8 file whose first half gives the prompts, and whose second the frequent tokens; by default the bundled text:
    what the recipes hold out, and what they train on."""
    gammas: tuple[Gamma, ...] = (1, 2, 3, 4, 6, 8, "auto")
    """Draft lengths."""
    drafts: tuple[str, ...] = ()
    """Only these drafts, by the names in the table; all if left out."""
    temperature: float = 0.0
    """0: greedy; above: sampled."""
    num_prompts: int = 6
    """Prompts, from places spread over the text."""
    prompt_tokens: int = 32
    """Of each prompt."""
    max_new_tokens: int = 96
    """Of each continuation."""
    rounds: int = 3
    """Times that every prompt is continued in every way."""
    threads: tuple[int, ...] = (1, 2)
    """Threads of torch, one after the other; on a GPU the first alone."""
    device: str = "cpu"
    """Where it runs."""
    independent: Path | None = None
    """A run that was trained apart, whose full model drafts too."""
    transformers: bool = False
    """Measure transformers' generate and its assisted generation with the exported pair as well."""
    seed: int = 0
    """Of the order of calls, the sampling and the bootstrap."""
    out: Path = RESULTS / "speculative.json"
    """Where the JSON goes."""


Cell = tuple[str, Gamma]
"""(draft, gamma); plain decoding is ("plain", 0)."""
PLAIN: Cell = ("plain", 0)


@dataclass(slots=True)
class Measured:
    """All generations of one cell."""

    seconds: list[float]
    """One for each generation, in the order of rounds and prompts."""
    tokens: list[list[int]]
    """What was generated, likewise."""
    steps: list[Step]
    """All steps but the first of every generation, which reads the prompt."""


def main(options: Options) -> None:
    """Measure, print, and write the JSON."""
    console = Console()
    decoder, _, tokenizer = load_matlm(options.run)
    generator = Generator(decoder.to(options.device).requires_grad_(False), clock=clock_of(options.device))
    prompts, counted = cut_prompts(tokenizer, options.text, options.num_prompts, options.prompt_tokens)
    drafts = drafts_of(generator.decoder, counted, options)
    report: dict[str, Any] = asdict(collect(device_fingerprint(options.device)))
    report |= {
        "model": options.run.name,
        "options": json.loads(json.dumps(asdict(options), default=str)),
        "results": [],
    }
    for threads in options.threads[: 1 if options.device != "cpu" else None]:
        torch.set_num_threads(threads)
        with Progress(console=console, transient=True) as progress:
            found = measure(generator, prompts, drafts, options, progress)
        rows = [summarise(generator.decoder, cell, found, drafts, options) for cell in found]
        console.print(render(rows, f"{options.run.name}, {threads} threads, {options.device}"))
        result: dict[str, Any] = {"num_threads": threads, "rows": rows}
        if options.transformers:
            result["transformers"] = Assisted(generator.decoder).measure(
                prompts, options.max_new_tokens, options.rounds
            )
            console.print(result["transformers"])
        report["results"].append(result)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    console.print(f"wrote {options.out}")


def clock_of(device: str) -> Callable[[], float]:
    """Seconds, on a GPU once it has done what it was given."""
    if device == "cpu":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def drafts_of(decoder: Decoder, counted: list[int], options: Options) -> dict[str, DraftConfig | Draft]:
    """What is measured, by name."""
    space, depth = decoder.space, decoder.config.depth
    small, full = space.smallest, space.full
    second = space.uniform(space.ffn_dims[min(1, len(space.ffn_dims) - 1)])
    quarter = most_frequent(counted, decoder.config.vocab_size // 4)
    half = tuple(sorted({*range(0, depth, 2), depth - 1}))
    prefix = Submodel(full.ffn_dims[:1] + small.ffn_dims[1:])
    drafts: dict[str, DraftConfig | Draft] = {
        "S": DraftConfig(submodel=small),
        "M": DraftConfig(submodel=second),
        "S, own cache": DraftConfig(submodel=small, has_own_cache=True),
        "S, first block XL": DraftConfig(submodel=prefix),
        "S, every other block": DraftConfig(submodel=small, layers=half),
        "S, a quarter of the tokens": DraftConfig(submodel=small, vocabulary=quarter),
        "S, both": DraftConfig(submodel=small, layers=half, vocabulary=quarter),
    }
    if options.independent is not None:
        other, _, _ = load_matlm(options.independent)
        other = other.to(options.device).requires_grad_(False)
        drafts["independent"] = OwnCacheDraft(other, other.space.full)
    return {name: draft for name, draft in drafts.items() if not options.drafts or name in options.drafts}


def measure(
    generator: Generator,
    prompts: list[list[int]],
    drafts: dict[str, DraftConfig | Draft],
    options: Options,
    progress: Progress,
) -> dict[Cell, Measured]:
    """Every prompt in every way, in a new order each time; the first round is thrown away."""
    configs = dict(configurations(drafts, options))
    found = {cell: Measured([], [], []) for cell in configs}
    rng, cells = np.random.default_rng(options.seed), list(configs)
    task = progress.add_task("generations", total=(options.rounds + 1) * len(prompts) * len(cells))
    for number in range(options.rounds + 1):
        for prompt in prompts:
            for index in rng.permutation(len(cells)):
                cell = cells[index]
                steps = list(generator.generate([prompt], configs[cell]))
                progress.advance(task)
                if number:
                    found[cell].seconds.append(sum(step.seconds for step in steps))
                    found[cell].tokens.append([token for step in steps for token in step.tokens[0]])
                    found[cell].steps += steps[1:]
    if options.temperature == 0:
        assert all(cell.tokens == found[PLAIN].tokens for cell in found.values()), "drafts changed the output"
    return found


def configurations(drafts: dict[str, DraftConfig | Draft], options: Options) -> Iterator[tuple[Cell, GenerationConfig]]:
    """Plain decoding, and every draft with every length."""
    sampling = Sampling(temperature=options.temperature)
    plain = GenerationConfig(max_new_tokens=options.max_new_tokens, sampling=sampling, seed=options.seed)
    yield PLAIN, plain
    for name, draft in drafts.items():
        for gamma in options.gammas:
            yield (name, gamma), replace(plain, draft=draft, gamma=gamma)


def summarise(
    decoder: Decoder,
    cell: Cell,
    found: dict[Cell, Measured],
    drafts: dict[str, DraftConfig | Draft],
    options: Options,
) -> dict[str, Any]:
    """What was measured of one cell; ratios are to plain decoding, with a 95 % bootstrap interval over generations."""
    name, gamma = cell
    seconds, plain = np.array(found[cell].seconds), np.array(found[PLAIN].seconds)
    rng = np.random.default_rng(options.seed)
    draws = rng.integers(len(seconds), size=(2000, len(seconds)))
    low, high = np.quantile(plain[draws].sum(1) / seconds[draws].sum(1), (0.025, 0.975))
    row: dict[str, Any] = {"draft": name, "gamma": gamma}
    row |= {"tokens_per_s": sum(map(len, found[cell].tokens)) / seconds.sum()}
    row |= {"ratio": plain.sum() / seconds.sum(), "low": low, "high": high}
    plain_s = np.median([step.seconds for step in found[PLAIN].steps])
    drafted = [step for step in found[cell].steps if step.num_draft_tokens[0]]
    if not drafted:
        return row
    accepted = sum(step.num_accepted_tokens[0] for step in drafted)
    rejected = sum(step.num_accepted_tokens[0] < step.num_draft_tokens[0] for step in drafted)
    length = sum(step.num_draft_tokens[0] for step in drafted) / len(drafted)
    alpha = accepted / (accepted + rejected)
    c = float(np.median([step.draft_s / step.num_draft_tokens[0] for step in drafted]) / plain_s)
    v = float(np.median([step.seconds - step.draft_s for step in drafted]) / plain_s)
    row |= {"c": c, "v": v, "alpha": alpha, "mean_gamma": length, "drafted_rounds": len(drafted)}
    row |= {"mean_acceptance_length": 1 + accepted / len(drafted), "acceptance_rate": accepted / length / len(drafted)}
    row["by_c_and_v"] = expected_tokens(alpha, round(length)) / (c * length + v)
    row["by_c"] = speedup(alpha, c, round(length))
    if isinstance(drafts[name], DraftConfig):
        row["bytes_c"] = bytes_ratio(decoder, drafts[name])
        row["by_bytes"] = speedup(alpha, row["bytes_c"], round(length))
    return row


def bytes_ratio(decoder: Decoder, draft: DraftConfig) -> float:
    """Weights that a step of the draft reads over those that a step of the full model does."""
    config, full = decoder.config, parameters_by_part(decoder.config, decoder.space.full)
    layers = range(config.depth) if draft.layers is None else draft.layers
    ffn = 3 * config.width * sum(draft.submodel.ffn_dims[layer] for layer in layers)
    head = full["head"] * (1 if draft.vocabulary is None else len(draft.vocabulary) / config.vocab_size)
    read = full["attention"] * len(layers) / config.depth + ffn + head
    return read / (full["attention"] + full["ffn"] + full["head"])


def render(rows: list[dict[str, Any]], title: str) -> Table:
    """A line per cell."""
    names = ("draft", "gamma", "tokens/s", "ratio (95 %)", "c", "v", "alpha", "length", "by c, v", "by c", "by bytes")
    table = Table(*names, title=title)
    for row in rows:
        ratio = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        cells = (
            row.get(key) for key in ("c", "v", "alpha", "mean_acceptance_length", "by_c_and_v", "by_c", "by_bytes")
        )
        numbers = ("" if value is None else f"{value:.2f}" for value in cells)
        table.add_row(row["draft"], str(row["gamma"]), f"{row['tokens_per_s']:.0f}", ratio, *numbers)
    return table


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
