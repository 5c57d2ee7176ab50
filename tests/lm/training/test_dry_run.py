"""What a run would cost, counted."""

import io
from dataclasses import replace

import torch
from rich.console import Console

from elastic.lm.training.dry_run import dry_run, num_parameters, state_bytes
from elastic.lm.training.state import MatlmState


def test_parameters_are_those_of_the_decoders_matrices(config):
    decoder = MatlmState(config, torch.device("cpu")).learner.decoder
    assert num_parameters(config) == sum(p.numel() for p in decoder.parameters() if p.ndim == 2)


def test_an_average_is_one_more_copy(config):
    averaged = replace(config, optim=replace(config.optim, ema_decay=0.9))
    assert 5 * state_bytes(config) == 4 * state_bytes(averaged) == 4 * 5 * 4 * num_parameters(config)


def test_the_tables_name_every_granularity_and_the_tokens_of_the_run(config):
    out = io.StringIO()
    Console(file=out, width=100).print(dry_run(config))
    shown = out.getvalue()
    assert all(str(submodel) in shown for submodel in config.decoder.space.granularities.values())
    assert "384" in shown  # 6 steps of 4 blocks of 16
    assert "anchored, k=1, 0.5 of their loss from the largest" in shown
