"""Tokenizers of checkpoints, and the Hugging Face hub. Needs no torch: processes that only tokenise load it."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from elastic.errors import CheckpointError

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


def read_tokenizer(path: Path) -> Tokenizer:
    """Read `tokenizer.json`.

    Raises:
        CheckpointError: missing, or not a tokenizer.
    """
    advice = "write it with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    if not path.is_file():
        raise CheckpointError(str(path), "does not exist", advice)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exception
        raise CheckpointError(str(path), f"is not a tokenizer ({error})", advice) from error


def download(source: str, files: Sequence[str]) -> Path:
    """The folder with those files of a repository that match the patterns; from the hub's cache if they are there.

    Raises:
        CheckpointError: no such repository, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download  # only here: it takes as long to load as all the rest
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(source, allow_patterns=list(files)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        problem = f"is no local path, and the hub did not deliver it ({str(error).splitlines()[0]})"
        raise CheckpointError(source, problem, "check the id and the network, or name a local folder") from error
