"""transformers' plain and assisted generation with a decoder and its smallest submodel, both as plain Llamas.

The other implementation beside ours in this benchmark: same weights, same prompts, same device, greedy,
three drafted tokens at a time.
"""

import time
from typing import Any

import torch
import transformers

from elastic.model.decoder import Decoder
from elastic.model.llama import cut, llama_config, llama_weights

GAMMA = 3
"""Tokens that the assistant drafts."""


def as_llama(decoder: Decoder) -> transformers.LlamaForCausalLM:
    """The full model of a decoder."""
    weights = llama_weights(decoder)
    values = llama_config(decoder.config, next(iter(weights.values())).dtype)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values)).eval()
    model.load_state_dict(weights, strict=False)  # a tied head is not among them
    model.generation_config.eos_token_id = None
    return model.to(next(iter(weights.values())).device)


class Assisted:
    """The pair."""

    def __init__(self, decoder: Decoder) -> None:
        self.full, self.small = as_llama(decoder), as_llama(cut(decoder, decoder.space.smallest))
        draft = self.small.generation_config
        draft.num_assistant_tokens, draft.num_assistant_tokens_schedule = GAMMA, "constant"
        draft.assistant_confidence_threshold = 0.0

    def measure(self, prompts: list[list[int]], max_new_tokens: int, rounds: int) -> dict[str, Any]:
        """Tokens per second of both ways, and their ratio; they take turns, and the first round is thrown away."""
        seconds = {"plain": 0.0, "assisted": 0.0}
        for number in range(rounds + 1):
            for prompt in prompts:
                for way in seconds:
                    begin_s = time.perf_counter()
                    self.generate(prompt, max_new_tokens, assisted=way == "assisted")
                    seconds[way] += time.perf_counter() - begin_s if number else 0.0
        count = rounds * len(prompts) * max_new_tokens
        speeds = {f"{way}_tokens_per_s": count / taken for way, taken in seconds.items()}
        return speeds | {"ratio": seconds["plain"] / seconds["assisted"], "gamma": GAMMA}

    def generate(self, prompt: list[int], max_new_tokens: int, *, assisted: bool) -> list[int]:
        """The continuation of one prompt."""
        tokens = torch.tensor([prompt], device=self.full.device)
        found = self.full.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=0,
            assistant_model=self.small if assisted else None,
        )
        return found[0, len(prompt) :].tolist()
