"""`elastic extract`: one submodel as a plain timm model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from elastic.checkpoint import load_model
from elastic.model.extract import save_timm


@dataclass(frozen=True, kw_only=True, slots=True)
class Extract:
    """Cut one submodel's image tower out of a run, as a timm model that needs no elastic.

    Writes model.safetensors, timm's config.json and load.py. `load_model()` of load.py loads any submodel with
    torch and timm alone. One whose layers are alike also loads by `timm.create_model("local-dir:OUT",
    pretrained=True)`, unless the model pools by attention.

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
        encoder, manifest, _ = load_model(self.source)
        submodel = encoder.space.parse(self.submodel)
        save_timm(encoder, submodel, manifest.preprocess, self.out)
        size_mb = (self.out / "model.safetensors").stat().st_size / 1e6
        name = f"{self.submodel} ({submodel})" if self.submodel != str(submodel) else self.submodel
        print(f"{self.out}: {name} of {self.source}, {size_mb:.1f} MB")
        print(f"load it: cd {self.out} && python -c 'from load import load_model; print(load_model())'")
