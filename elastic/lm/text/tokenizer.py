"""Text to tokens and back without loss: byte-level BPE trained on the run's own text, or somebody else's tokenizer.

What is saved is `tokenizer.json`, which transformers' `AutoTokenizer` and the `tokenizers` package load.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from elastic.errors import DataError
from elastic.model.hub import TOKENIZER, TOKENIZER_CONFIG, download, read_tokenizer

END_OF_TEXT = "<|endoftext|>"
"""What a trained tokenizer puts behind every document."""

_KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
"""What others use (GPT-2, Llama 3, Llama 2, Gemma, Qwen), for a tokenizer.json without its tokenizer_config.json."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with at most `vocab_size` tokens; the same texts in the same order give the same tokenizer.

    Every string is some sequence of its tokens, so none is unknown. Source: GPT-2 (Radford et al., 2019), section 2.2.
    """
    tokenizer = Tokenizer(models.BPE())
    # ByteLevel splits with GPT-2's pattern: letters, digits and other signs apart, a space with what follows.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(location: str) -> tuple[Tokenizer, str]:
    """A tokenizer from a `tokenizer.json`, a folder with one, or the Hugging Face hub; and its end of text.

    Raises:
        CheckpointError: nothing there, or not a tokenizer.
        DataError: its end of text is not known.
    """
    path = Path(location)
    if not path.exists():
        path = download(location, (TOKENIZER, TOKENIZER_CONFIG))
    file = path / TOKENIZER if path.is_dir() else path
    tokenizer = read_tokenizer(file)
    # What a model was run with may be stored beside what a text reads as.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, _end_of_text(tokenizer, file)


def save_tokenizer(tokenizer: Tokenizer, folder: Path, end_of_text: str = END_OF_TEXT) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, the pair that `AutoTokenizer` loads from a folder."""
    (folder / TOKENIZER).write_text(tokenizer.to_str(pretty=True), "utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end_of_text,
        "eos_token": end_of_text,
        "clean_up_tokenization_spaces": False,
    }
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _end_of_text(tokenizer: Tokenizer, file: Path) -> str:
    """What `tokenizer_config.json` beside the file says, else the one that is known."""
    config_file = file.with_name(TOKENIZER_CONFIG)
    said = json.loads(config_file.read_text("utf-8")).get("eos_token") if config_file.is_file() else None
    # A token is a string or, with how it is stripped, an object.
    said = said["content"] if isinstance(said, dict) else said
    for token in _KNOWN_ENDS if said is None else (said,):
        if tokenizer.token_to_id(token) is not None:
            return token
    problem = f"has no end-of-text token; looked for {' '.join(_KNOWN_ENDS if said is None else (said,))}"
    raise DataError(str(file), problem, f"name it as `eos_token` in {TOKENIZER_CONFIG} beside it")
