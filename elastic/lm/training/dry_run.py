"""What a MatLM run would be, without starting it: what each submodel costs, how much text it reads, and its memory."""

from rich.console import Group, RenderableType
from rich.table import Table

from elastic.lm.training.config import MatlmConfig
from elastic.model.decoder import parameters_by_part
from elastic.profile.flops import count_token

_MIB = 1024**2
_FLOAT_BYTES = 4


def dry_run(config: MatlmConfig) -> RenderableType:
    """The tables to show for a config."""
    return Group(_submodels(config), _summary(config))


def num_parameters(config: MatlmConfig) -> int:
    """Weights of matrices that are trained."""
    decoder = config.decoder
    parts = parameters_by_part(decoder, decoder.space.full)
    return sum(parts.values()) - (parts["head"] if decoder.tied else 0)


def state_bytes(config: MatlmConfig) -> int:
    """Weights, gradients, AdamW's two moments and the averaged weights, if there are any; all fp32."""
    return _FLOAT_BYTES * num_parameters(config) * (4 + (config.optim.ema_decay > 0))


def _submodels(config: MatlmConfig) -> Table:
    table = Table("", "submodel", title=f"cost of one token that attends to {config.text.block_size}")
    for name in ("non-embedding params", "MFLOPs"):
        table.add_column(name, justify="right")
    for name, submodel in config.decoder.space.granularities.items():
        cost = count_token(config.decoder, submodel, config.text.block_size)
        table.add_row(name, str(submodel), f"{cost.params:,}", f"{cost.flops / 1e6:.2f}")
    return table


def _summary(config: MatlmConfig) -> Table:
    text, sampling = config.text, config.submodels
    step_tokens = text.batch_size * text.block_size
    teacher = "" if config.distillation == 0 else f", {config.distillation:g} of their loss from the largest"
    rows = {
        "text": ", ".join(text.source),
        "updates": f"{config.steps:,} of {text.batch_size} x {text.block_size} tokens",
        "tokens": f"{config.steps * step_tokens:,}",
        "workers": f"{config.num_workers} ({config.device}, {config.precision})",
        "submodels of a step": (sampling.policy if sampling.policy == "all" else f"{sampling.policy}, k={sampling.k}")
        + teacher,
        "trained parameters": f"{num_parameters(config):,}",
        "weights, gradients, moments, average": f"{state_bytes(config) / _MIB:,.1f} MiB a worker",
    }
    table = Table(title="run", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table
