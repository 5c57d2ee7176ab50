"""`elastic extract`: one submodel as a plain model of its own."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from elastic.checkpoint import load_model
from elastic.lm.checkpoint import load_matlm, save_matlm
from elastic.model.extract import save_timm
from elastic.model.llama import cut, read_tokenizer_config
from elastic.model.storage import WEIGHTS, check_new, run_kind
from elastic.submodel import Submodel


@dataclass(frozen=True, kw_only=True, slots=True)
class Extract:
    """Cut one submodel out of a run, as a plain model that needs no elastic.

    Of an image-text run, the image tower: model.safetensors, timm's config.json and load.py. `load_model()` of
    load.py loads any submodel with torch and timm alone. One whose layers are alike also loads by
    `timm.create_model("local-dir:OUT", pretrained=True)`, unless the model pools by attention.

    Of a language model, a Llama checkpoint with its tokenizer, which transformers and vLLM load. One whose layers
    differ in size is no Llama: `elastic.lm.checkpoint.load_matlm` loads it. Smaller granularities stay nested in both.

    Example: elastic extract runs/icons small/ --submodel S
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Directory of a finished run."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """New folder to write."""
    submodel: str = "XL"
    """A granularity (S, M, L, XL) or per-layer sizes (ffn=64x2+128x2, first layer first)."""

    def run(self) -> None:
        """Write the folder and say what is in it."""
        is_decoder = run_kind(self.source) == "decoder"
        submodel, hint = self._extract_llama() if is_decoder else self._extract_vit()
        size_mb = (self.out / WEIGHTS).stat().st_size / 1e6
        name = f"{self.submodel} ({submodel})" if self.submodel != str(submodel) else self.submodel
        print(f"{self.out}: {name} of {self.source}, {size_mb:.1f} MB")
        print(f"load it: {hint}")

    def _extract_vit(self) -> tuple[Submodel, str]:
        encoder, manifest, _ = load_model(self.source)
        submodel = encoder.space.parse(self.submodel)
        save_timm(encoder, submodel, manifest.preprocess, self.out)
        return submodel, f"cd {self.out} && python -c 'from load import load_model; print(load_model())'"

    def _extract_llama(self) -> tuple[Submodel, str]:
        decoder, manifest, tokenizer = load_matlm(self.source)
        submodel = decoder.space.parse(self.submodel)
        check_new(self.out)
        part = cut(decoder, submodel)
        provenance = dict(manifest.provenance) | {"extracted": str(submodel)}
        manifest = replace(manifest, decoder=part.config, tables={}, provenance=provenance)
        save_matlm(self.out, part, manifest, tokenizer, read_tokenizer_config(self.source))
        if part.config.layer_ffn_dims is None:
            return submodel, f"transformers.AutoModelForCausalLM.from_pretrained('{self.out}')"
        return submodel, f"elastic.lm.checkpoint.load_matlm(pathlib.Path('{self.out}'))"
