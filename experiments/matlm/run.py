"""What does nesting cost a language model, what does distillation add, and is a searched mix better than the heuristic?

    python -m experiments.matlm.run --text FOLDER --quick
    python -m experiments.matlm.run --text FOLDER --device cuda --jobs 12

`FOLDER` is text that `elastic.lm.text.prepare` wrote. Needs neither Ray nor tyro. Each of four sizes is trained alone
on N steps; nested models are trained for 4 N steps of one size each, the same cost (MatFormer's accounting), or with
other objectives at that cost and at as many steps. Beside them XL alone for 4 N steps, and its naive truncation.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from elastic.lm.checkpoint import load_matlm
from elastic.lm.text.config import TextConfig
from elastic.lm.text.prepared import PreparedText
from elastic.lm.training.config import MatlmConfig
from elastic.lm.training.job import MatlmJob
from elastic.lm.training.validation import Scores, compare, measure
from elastic.model.decoder import Decoder, DecoderConfig
from elastic.submodel import Space, Submodel
from elastic.train.optim import OptimConfig
from elastic.train.record import Origin
from elastic.train.submodels import SubmodelSampling
from experiments.harness import Arm, Metrics, Options, Runs, curves, experiment, markdown
from experiments.matlm import acceptance

FOLDER = Path(__file__).parent
WIDTH, DEPTH = 128, 4
FFN_DIMS = (WIDTH // 2, WIDTH, 2 * WIDTH, 4 * WIDTH)
SIZES = ("S", "M", "L", "XL")
SPACE = Space(DEPTH, FFN_DIMS, (WIDTH,))
SKEWED = (0.17, 0.2, 0.22, 0.41)
"""MatFormer's table 6."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How large the experiment is."""

    text: Path
    """Prepared text."""
    device: str = "cpu"
    steps: int = 500
    """N: steps of a size trained alone."""
    block_size: int = 256
    batch_size: int = 16
    search_blocks: int = 32
    """Held-out blocks on which mixes are searched; what is reported is measured on others."""
    test_blocks: int = 128
    """Held-out blocks on which everything is reported."""

    def prepared(self, seed: int) -> PreparedText:
        """The text in the batches of one seed."""
        return PreparedText.load(self.text, block_size=self.block_size, batch_size=self.batch_size, seed=seed)

    def held_out(self, text: PreparedText) -> tuple[list[Tensor], list[Tensor]]:
        """Blocks to search on, and blocks to report on."""
        size = min(self.batch_size, self.search_blocks)
        blocks = [batch.to(self.device) for batch in text.validation(size)]
        search = self.search_blocks // size
        test = blocks[search : search + self.test_blocks // size]
        assert test, "too little text is held out"
        return blocks[:search], test


QUICK = {"steps": 10, "block_size": 64, "batch_size": 4, "search_blocks": 4, "test_blocks": 8}


def alone(seed: int, folder: Path, *, setting: Setting) -> Metrics:
    """Every size as a model of its own, N steps each."""
    models = {}
    for name, dim in zip(SIZES, FFN_DIMS, strict=True):
        models[name] = train(setting, seed, folder / name, SubmodelSampling(), 1, ffn_dims=(dim,))
    predict = {name: partial(model, submodel=model.space.full) for name, model in models.items()}
    _, test = setting.held_out(setting.prepared(seed))
    return by_size(compare(predict, predict["XL"], test)) | acceptance.of_independent(models["XL"], models["S"], test)


def nested(
    seed: int, folder: Path, *, setting: Setting, sampling: SubmodelSampling, length: float, distillation: float = 0.0
) -> Metrics:
    """One model of all sizes, `length` times N steps; its sizes, its mixes, and mixes that were searched."""
    decoder = train(setting, seed, folder, sampling, length, distillation=distillation)
    search, test = setting.held_out(setting.prepared(seed))
    sizes = {submodel: name for name, submodel in SPACE.granularities.items()}
    scores = measure(decoder, test, tuple(SPACE.mixes()))
    found = by_size({sizes[submodel]: value for submodel, value in scores.items() if submodel in sizes})
    # An untrained width between two trained ones.
    between = Submodel((3 * FFN_DIMS[-1] // 8,) * DEPTH)
    found["between"] = measure(decoder, test, (between,))[between].nats
    found |= acceptance.of_nested(decoder, SPACE.smallest, test)
    return found | mixes(decoder, search, test, {submodel: value.nats for submodel, value in scores.items()})


def mixes(decoder: Decoder, search: Sequence[Tensor], test: Sequence[Tensor], nats: dict[Submodel, float]) -> Metrics:
    """Of every Mix'n'Match submodel: against the line between its neighbours, its reverse, and the best of its size.

    The best is looked for among all submodels of at most as many parameters, on other text than is reported.
    """
    everything = [Submodel(dims) for dims in product(FFN_DIMS, repeat=DEPTH)]
    guide = {submodel: value.nats for submodel, value in measure(decoder, search, everything).items()}
    found: Metrics = {}
    for mix in (submodel for submodel in SPACE.mixes() if not submodel.is_uniform):
        low, high = SPACE.uniform(mix.ffn_dims[0]), SPACE.uniform(mix.ffn_dims[-1])
        share = mix.ffn_dims.count(high.ffn_dims[0]) / DEPTH
        allowed = [submodel for submodel in everything if sum(submodel.ffn_dims) <= sum(mix.ffn_dims)]
        best, reverse = min(allowed, key=guide.__getitem__), Submodel(mix.ffn_dims[::-1])
        other = measure(decoder, test, (best, reverse))
        found[f"line/{mix}"] = nats[mix] - (nats[low] + share * (nats[high] - nats[low]))
        found[f"searched/{mix}"] = other[best].nats - nats[mix]
        found[f"reverse/{mix}"] = other[reverse].nats - nats[mix]
    kinds = ("line", "searched", "reverse")
    means = {kind: [value for name, value in found.items() if name.startswith(f"{kind}/")] for kind in kinds}
    return found | {kind: sum(values) / len(values) for kind, values in means.items()}


def train(
    setting: Setting,
    seed: int,
    run_dir: Path,
    sampling: SubmodelSampling,
    length: float,
    *,
    ffn_dims: tuple[int, ...] = FFN_DIMS,
    distillation: float = 0.0,
) -> Decoder:
    """A decoder trained for `length` times N steps with a schedule of that length."""
    torch.set_float32_matmul_precision("high")  # TF32, where there is any
    text, steps = setting.prepared(seed), round(length * setting.steps)
    vocab_size = text.tokenizer.get_vocab_size()
    config = MatlmConfig(
        name="run",
        decoder=DecoderConfig(
            vocab_size=vocab_size,
            width=WIDTH,
            depth=DEPTH,
            num_heads=4,
            num_kv_heads=4,
            head_dim=WIDTH // 4,
            ffn_dims=ffn_dims,
            max_tokens=setting.block_size,
        ),
        text=TextConfig(
            source=(str(setting.text),),
            vocab_size=vocab_size,
            block_size=setting.block_size,
            batch_size=setting.batch_size,
        ),
        steps=steps,
        submodels=sampling,
        distillation=distillation,
        optim=OptimConfig(learning_rate=2e-3, final_fraction=0.1, weight_decay=0.1, betas=(0.9, 0.95), ema_decay=0.0),
        seed=seed,
        device="gpu" if setting.device == "cuda" else "cpu",
        checkpoint_every=steps,
        log_every=steps,
        validation_blocks=1,
    )
    job = MatlmJob(config, text)
    job.start(run_dir, Origin())
    job.work(run_dir, torch.device(setting.device))
    return load_matlm(run_dir)[0].to(setting.device)


def by_size(scores: dict[str, Scores]) -> Metrics:
    """Loss of every size, and how well it stands in for XL."""
    found = {name: value.nats for name, value in scores.items()}
    found |= {f"agreement/{name}": value.agreement for name, value in scores.items()}
    return found | {f"kl/{name}": value.kl for name, value in scores.items()}


NESTED: dict[str, tuple[SubmodelSampling, float, float]] = {
    "uniform": (SubmodelSampling(policy="sample"), 4, 0),
    "skewed": (SubmodelSampling(policy="sample", probabilities=SKEWED), 4, 0),
    "joint": (SubmodelSampling(policy="all"), 1, 0),
    "anchored": (SubmodelSampling(policy="anchored"), 1.69, 0),
    "anchored, KD": (SubmodelSampling(policy="anchored"), 1.69, 0.5),
    "sandwich, KD": (SubmodelSampling(policy="sandwich"), 1.33, 0.5),
    "joint, 4 N": (SubmodelSampling(policy="all"), 4, 0),
    "anchored, 4 N": (SubmodelSampling(policy="anchored"), 4, 0),
    "anchored, KD, 4 N": (SubmodelSampling(policy="anchored"), 4, 0.5),
    "sandwich, KD, 4 N": (SubmodelSampling(policy="sandwich"), 4, 0.5),
    "XL": (SubmodelSampling(policy="anchored", k=0), 4, 0),
}
"""Arm: what a step trains, how many times N steps, and the share of distillation."""
LABELS = {
    "alone": "four models, N steps each",
    "uniform": "one size a step, 4 N steps",
    "skewed": "the same, p = .17/.20/.22/.41",
    "joint": "all sizes, N steps",
    "anchored": "XL and one other, 1.69 N steps",
    "anchored, KD": "the same, half of the other's loss from XL",
    "sandwich, KD": "XL, S and one other, KD, 1.33 N steps",
    "joint, 4 N": "all sizes, 4 N steps",
    "anchored, 4 N": "XL and one other, 4 N steps",
    "anchored, KD, 4 N": "the same, KD",
    "sandwich, KD, 4 N": "XL, S and one other, KD, 4 N steps",
    "XL": "XL alone, 4 N steps, truncated",
}
PAPER = {
    "MatFormer 78M, alone": ("4.011", "3.966", "3.905", "3.830"),
    "MatFormer 78M, nested": ("3.874", "3.820", "3.776", "3.740"),
    "MatFormer 850M, alone": ("3.017", "2.971", "2.910", "2.840"),
    "MatFormer 850M, nested": ("2.987", "2.934", "2.886", "2.843"),
    "MatFormer 850M, all sizes a step": ("2.993", "2.942", "2.895", "2.854"),
    "MatFormer 850M, uniform (table 6)": ("2.970", "2.934", "2.886", "2.846"),
    "MatFormer 850M, skewed (table 6)": ("3.010", "2.943", "2.884", "2.829"),
}
PAIRS = (
    ("uniform", "alone"),
    ("skewed", "uniform"),
    ("joint", "uniform"),
    ("anchored, KD", "uniform"),
    ("sandwich, KD", "uniform"),
    ("anchored, KD", "anchored"),
    ("joint, 4 N", "uniform"),
    ("anchored, KD, 4 N", "uniform"),
    ("anchored, KD, 4 N", "anchored, 4 N"),
    ("sandwich, KD, 4 N", "uniform"),
    ("uniform", "XL"),
    ("anchored, KD, 4 N", "XL"),
)
"""What is compared: arm and base."""


DRAFTS = ("greedy/shared", "greedy/own", "sampled/shared", "sampled/own")


def arms(setting: Setting) -> dict[str, Arm]:
    """Every arm of the experiment."""
    made: dict[str, Arm] = {"alone": partial(alone, setting=setting)}
    for name, (sampling, length, distillation) in NESTED.items():
        made[name] = partial(nested, setting=setting, sampling=sampling, length=length, distillation=distillation)
    return made


def report(runs: Runs, setting: Setting) -> str:
    """The tables."""
    present = [arm for arm in LABELS if runs.values(arm, "XL")]
    tokens = setting.steps * setting.batch_size * setting.block_size
    nats = [[f"*{arm}*: {LABELS[arm]}", *(runs.mean(arm, name) for name in SIZES)] for arm in present]
    gaps = [
        [f"{arm} - {base}", *(runs.difference(arm, base, name) for name in SIZES)]
        for arm, base in PAIRS
        if arm in present and base in present
    ]
    stands_in = ("agreement/S", "kl/S", "agreement/L", "kl/L")
    consistency = [[arm, *(runs.mean(arm, name) for name in stands_in)] for arm in present if arm != "XL"]
    drafts = [[arm, *(_known(runs, arm, f"acceptance/{kind}") for kind in DRAFTS)] for arm in present]
    mixed = [
        [arm, *(runs.mean(arm, name) for name in ("line", "searched", "reverse", "M", "between", "L"))]
        for arm in present
        if arm not in ("alone", "XL")
    ]
    return "\n".join(
        [
            f"Nats per token on held-out text; mean and 95 % interval of seeds. N = {setting.steps} steps of "
            f"{setting.batch_size} x {setting.block_size} tokens ({tokens / 1e6:.2f} M). Paired by seed where one "
            "arm is subtracted from another.",
            "",
            markdown(["nats", *SIZES], nats),
            markdown(["MatFormer, tables 1, 5 and 6", *SIZES], [[name, *values] for name, values in PAPER.items()]),
            markdown(["difference of nats", *SIZES], gaps),
            "Standing in for XL under teacher forcing: share of equal most likely tokens, KL(XL || size) in nats.",
            "",
            markdown(["", "agreement, S", "KL, S", "agreement, L", "KL, L"], consistency),
            f"S drafts {acceptance.GAMMA} tokens for XL: the share that XL accepts. *Shared*: S reads XL's keys and "
            "values. Models that were trained alone cannot.",
            "",
            markdown(["", "greedy, shared", "greedy, own cache", "sampled, shared", "sampled, own cache"], drafts),
            "Mix'n'Match, means over the nine mixes of adjacent sizes, in nats. *Line*: the mix above the straight "
            "line between its two sizes. *Searched*: the best of 256 submodels with at most as many parameters, found "
            "on other text, above the mix. *Reverse*: the larger size first, above the mix. *Between*: the untrained "
            "width 3/8 in all blocks, beside M (1/4) and L (1/2).",
            "",
            markdown(["", "line", "searched", "reverse", "M", "between", "L"], mixed),
        ]
    )


def _known(runs: Runs, arm: str, metric: str) -> object:
    return runs.mean(arm, metric) if runs.values(arm, metric) else ""


def plot(runs: Runs) -> Figure:
    """Nats by size."""
    shown = [arm for arm in LABELS if runs.values(arm, "XL") and arm != "XL"]
    lines = {LABELS[arm]: [runs.mean(arm, name) for name in SIZES] for arm in shown}
    figure = curves(lines, list(SIZES), "Nested language models against one model per size", "nats per held-out token")
    figure.axes[0].set_ylim(auto=True)
    figure.axes[0].autoscale(axis="y")
    return figure


def main() -> None:
    """Run what is missing, then write the report and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder of prepared text")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with one thread")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=Setting.__dataclass_fields__["steps"].default, help="N")
    parser.add_argument("--arms", nargs="*", default=(), choices=tuple(LABELS), help="only these; default: all")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where results.json, report.md and plot.png go")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    chosen = parser.parse_args()
    sizes = QUICK if chosen.quick else {"steps": chosen.steps}
    setting = Setting(text=chosen.text.absolute(), device=chosen.device, **sizes)
    options = Options(seeds=chosen.seeds, processes=chosen.jobs, arms=tuple(chosen.arms))
    chosen.out.mkdir(parents=True, exist_ok=True)
    runs = Runs(experiment(chosen.out, arms(setting), options))
    text = report(runs, setting)
    (chosen.out / "report.md").write_text(text, encoding="utf-8")
    plot(runs).savefig(chosen.out / "plot.png", dpi=130)
    print(text)


if __name__ == "__main__":
    main()
