"""A decoder with its loss: one module, so that data parallelism sees one forward pass."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from elastic.lm.training.losses import divergence, next_token_nats
from elastic.model.decoder import Decoder
from elastic.submodel import Submodel

Pass: TypeAlias = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]]
"""Tokens and a teacher's logits in; cross-entropy, divergence and logits out."""


class Learner(nn.Module):
    """Blocks of tokens and a submodel in, its losses out."""

    def __init__(self, decoder: Decoder, *, distillation: float, precision: str, compile: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self._distillation, self._precision, self._compile = distillation, precision, compile
        self._passes: dict[Submodel, Pass] = {}

    def forward(
        self,
        tokens: Int[Tensor, "batch next"],
        submodel: Submodel,
        teacher: Float[Tensor, "batch block vocab"] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor], Float[Tensor, "batch block vocab"]]:
        """The loss, its detached terms `nats` and, with a teacher, `kl`, and the logits without gradients."""
        if submodel not in self._passes:
            self._passes[submodel] = self._pass(submodel)
        nats, kl, logits = self._passes[submodel](tokens, teacher)
        if teacher is None:
            return nats, {"nats": nats.detach()}, logits
        loss = (1 - self._distillation) * nats + self._distillation * kl
        return loss, {"nats": nats.detach(), "kl": kl.detach()}, logits

    def _pass(self, submodel: Submodel) -> Pass:
        """The pass of one submodel; its sizes are constants of the compiled code, so each has its own."""

        def run(tokens: Tensor, teacher: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
                logits = self.decoder(tokens[:, :-1], submodel)
            nats = next_token_nats(logits, tokens)
            kl = torch.zeros_like(nats) if teacher is None else divergence(teacher, logits)
            return nats, kl, logits.detach()

        return torch.compile(run, dynamic=False) if self._compile else run
