"""`elastic nest`: a Llama-type checkpoint as a nested language model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tokenizers import Tokenizer
from torch import Tensor

from elastic import __version__
from elastic.errors import DataError
from elastic.lm.checkpoint import LmManifest, save_matlm
from elastic.model.importance import measure_importance, sort_hidden_units
from elastic.model.llama import read_llama
from elastic.model.storage import check_new

CALIBRATION_TOKENS = 32_768
"""Tokens at the head of a calibration text that are read."""
_BLOCK_TOKENS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Nest:
    """Write a Llama-type checkpoint as a run whose feed-forward blocks are nested.

    The largest submodel is the checkpoint. The smaller ones are its first hidden units: without training they are
    far worse, less so when a text (`--calibration`) has told which units matter and these come first.

    Example: elastic nest llama/ runs/llama --calibration notes.txt
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """Folder with config.json and safetensors, .gguf file (needs `pip install elastic[lm]`), or hub id (org/model)."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """New run directory to write."""
    ffn_dims: tuple[int, ...] = ()
    """FFN hidden sizes to nest, ascending, the checkpoint's own last; left out, 1/8, 1/4, 1/2 and all of it."""
    calibration: Path | None = None
    """Text file (UTF-8) to sort hidden units by importance on; its first 32,768 tokens are read."""

    def run(self) -> None:
        """Write the run and say what is in it."""
        check_new(self.out)
        llama = read_llama(self.source, self.ffn_dims)
        decoder, provenance = llama.decoder, {"nested_from": self.source, "elastic": __version__}
        if self.calibration is not None:
            blocks = calibration_blocks(self.calibration, llama.tokenizer, decoder.config.max_tokens)
            sort_hidden_units(decoder, measure_importance(decoder, blocks))
            provenance["sorted_on"] = self.calibration.name
        manifest = LmManifest(decoder=decoder.config, eos_token_ids=llama.eos_token_ids, provenance=provenance)
        save_matlm(self.out, decoder, manifest, llama.tokenizer, llama.tokenizer_config)
        sizes = ", ".join(f"{name} {submodel}" for name, submodel in decoder.space.granularities.items())
        print(f"{self.out}: {sizes}")


def calibration_blocks(path: Path, tokenizer: Tokenizer, max_tokens: int) -> list[Tensor]:
    """The head of a text as rows of equally many tokens, [1, tokens] each; a last row that is not full is left out.

    Raises:
        DataError: unreadable, or shorter than one row.
    """
    length = min(_BLOCK_TOKENS, max_tokens)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(CALIBRATION_TOKENS * 8)  # characters; a token is seldom longer
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"cannot be read ({error})", "name a text file in UTF-8") from error
    ids = tokenizer.encode(text, add_special_tokens=False).ids[:CALIBRATION_TOKENS]
    if len(ids) < length:
        raise DataError(str(path), f"has {len(ids)} tokens", f"name a text of at least {length}")
    return [torch.tensor([ids[start : start + length]]) for start in range(0, len(ids) - length + 1, length)]
