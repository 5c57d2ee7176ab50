"""A language-model run on disk: a Llama checkpoint with the manifest of a nested model beside it.

`config.json`, `model.safetensors`, `tokenizer.json` and `tokenizer_config.json` are what transformers and vLLM load;
they see the full model. `elastic.json` says which sizes are nested in it. Reading needs neither of them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from elastic.errors import CheckpointError, ElasticError
from elastic.model.decoder import Decoder, DecoderConfig, RopeScaling
from elastic.model.hub import TOKENIZER, TOKENIZER_CONFIG, read_tokenizer
from elastic.model.llama import CONFIG, build_decoder, llama_config, llama_weights
from elastic.model.storage import (
    FORMAT_VERSION,
    MANIFEST,
    WEIGHTS,
    check_run,
    read_manifest,
    read_weights,
    tuples,
    write_json,
    write_text,
    write_weights,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LmManifest:
    """`elastic.json` of a language model: everything besides weights and tokenizer that is needed to use it."""

    decoder: DecoderConfig
    """Rebuilds the module that the weights belong to."""
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end a text."""
    tables: Mapping[str, str] = field(default_factory=dict)
    """Measured tables by kind (`latency`, `quality`): file names relative to the run directory."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from: recipe, step, seed, git revision, versions, device; JSON values."""

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        return {"format_version": FORMAT_VERSION} | asdict(self)

    @classmethod
    def from_json(cls, path: Path) -> "LmManifest":
        """Read a manifest file.

        Raises:
            CheckpointError: not there, not JSON, of another version, or with fields this version does not know.
        """
        values = read_manifest(path)
        try:
            decoder = tuples(values.pop("decoder"))
            if decoder.get("rope_scaling") is not None:
                decoder["rope_scaling"] = RopeScaling(**decoder["rope_scaling"])
            return cls(decoder=DecoderConfig(**decoder), **tuples(values))
        except (KeyError, TypeError, ValueError, AttributeError, ElasticError) as error:
            raise CheckpointError(str(path), f"is not a manifest ({error})", "write it again by training") from error


def save_matlm(
    run: Path,
    decoder: Decoder,
    manifest: LmManifest,
    tokenizer: Tokenizer,
    tokenizer_config: Mapping[str, Any] | None = None,
) -> None:
    """Write the deliverable of a run into its directory; the manifest comes last.

    `tokenizer_config` is what AutoTokenizer shall find besides the tokenizer itself, such as a chat template. A
    cut-out mixed submodel is written without `config.json`: it is no Llama, whose FFNs are all of one size.
    """
    assert decoder.config == manifest.decoder, "the manifest describes another decoder"
    run.mkdir(parents=True, exist_ok=True)
    weights = llama_weights(decoder)
    write_weights(run / WEIGHTS, weights)
    write_text(run / TOKENIZER, tokenizer.to_str())
    write_json(run / TOKENIZER_CONFIG, _tokenizer_config(manifest, tokenizer) | dict(tokenizer_config or {}))
    if manifest.decoder.layer_ffn_dims is None:
        dtype = next(iter(weights.values())).dtype
        write_json(run / CONFIG, llama_config(manifest.decoder, dtype, manifest.eos_token_ids))
    else:
        (run / CONFIG).unlink(missing_ok=True)
    save_lm_manifest(run, manifest)


def save_lm_manifest(run: Path, manifest: LmManifest) -> None:
    """Write, or replace, the manifest of a run."""
    write_json(run / MANIFEST, manifest.to_json())


def load_matlm(run: Path) -> tuple[Decoder, LmManifest, Tokenizer]:
    """The decoder (in eval mode, on the CPU, its weights memory-mapped), manifest and tokenizer of a run.

    Raises:
        CheckpointError: no language model there, damaged, or its weights do not fit its manifest.
    """
    check_run(run, "decoder")
    manifest = LmManifest.from_json(run / MANIFEST)
    decoder = build_decoder(manifest.decoder, read_weights(run / WEIGHTS), str(run / WEIGHTS))
    return decoder, manifest, read_tokenizer(run / TOKENIZER)


def _tokenizer_config(manifest: LmManifest, tokenizer: Tokenizer) -> dict[str, Any]:
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": manifest.decoder.max_tokens}
    if not manifest.eos_token_ids:
        return values
    return values | {"eos_token": tokenizer.id_to_token(manifest.eos_token_ids[0])}
