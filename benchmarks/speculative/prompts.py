"""Texts that the bundled recipes hold out, as prompts; those that they train on, to count frequent tokens in."""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from elastic.lm.text.config import TextConfig
from elastic.lm.text.corpora import BUNDLED_TEXT
from elastic.lm.text.documents import find_parts, is_held_out, read_parts

NUM_COUNTED = 2000
"""Training documents that tokens are counted in."""


def cut_prompts(
    tokenizer: Tokenizer, text: Path | None, num_prompts: int, prompt_tokens: int
) -> tuple[list[list[int]], list[int]]:
    """The beginnings of some held-out documents, and the tokens of some others; of a file, of its two halves."""
    if text is None:
        config = TextConfig()
        documents = read_parts(find_parts(str(BUNDLED_TEXT)), config.text_field).documents
        held_out = [is_held_out(each.id, config.validation_fraction, config.split_seed) for each in documents]
        prompting = [each.text for each, held in zip(documents, held_out, strict=True) if held]
        counted = [each.text for each, held in zip(documents, held_out, strict=True) if not held]
    else:
        whole = text.read_text(encoding="utf-8")
        half = len(whole) // 2
        step = max(1, half // num_prompts)
        prompting, counted = [whole[start : start + step] for start in range(0, half, step)], [whole[half:]]
    encoded = (encoding.ids for encoding in tokenizer.encode_batch(prompting))
    long_enough = [ids[:prompt_tokens] for ids in encoded if len(ids) >= prompt_tokens]
    chosen = np.linspace(0, len(long_enough) - 1, num_prompts).astype(int)
    some = counted[:: max(1, len(counted) // NUM_COUNTED)]
    tokens = [token for encoding in tokenizer.encode_batch(some) for token in encoding.ids]
    return [long_enough[place] for place in chosen], tokens
