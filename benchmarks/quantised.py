"""What int8 and bits cost in retrieval: R@1 by width and dtype, and of two searches in a row.

Every image of a split is a query against all the others, as in `elastic evaluate`; queries and index are embedded by
the full model and written as the same dtype (`elastic.quantise`). int8 is compared by cosine, bits by Hamming
distance, ties by position. A funnel shortlists by Hamming distance and orders the shortlist by the cosine of int8 at
full width; all its vectors come from the one forward pass of a request with two outputs.

It cannot show: other data, or other models; a split this small has a standard error of about 0.01.

    python benchmarks/quantised.py                  # the model inside the package, on val
    python benchmarks/quantised.py runs/icons --split test
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from elastic.checkpoint import load_model, resolve_run
from elastic.evaluate.dataset import RetrievalSet, load_retrieval_set
from elastic.evaluate.embed import embed_images
from elastic.evaluate.metrics import nearest
from elastic.evaluate.uned import image_retrieval
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.profile.tables import MEAN
from elastic.quantise import DTYPES, Dtype, cut, dequantise, quantise

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Retrieval quality of quantised embeddings."""

    run: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="RUN")] = None
    """Directory of a finished run; the model inside the package if left out."""
    source: str = "icons"
    """Data set."""
    split: str = "val"
    """Its split."""
    shortlist: tuple[int, ...] = (10, 50)
    """Lengths of the funnel's shortlist."""
    out: Path = RESULTS / "quantised.json"
    """Where the JSON goes."""


@dataclass(frozen=True, slots=True)
class Row:
    """One way to search."""

    search: str
    embed_dim: int
    bytes_per_item: float
    recall_at_1: float


def main(options: Options) -> None:
    """Measure, print, and write the JSON."""
    run = resolve_run(options.run)
    encoder, manifest, _ = load_model(run)
    full = encoder.space.full
    embedded = embed_images(encoder, load_retrieval_set(options.source, options.split), manifest.preprocess, [full])
    whole, data = embedded.by_submodel[full], embedded.data
    rows = []
    for width in encoder.space.embed_dims:
        for dtype in DTYPES:
            rows.append(Row(dtype, width, size_of(dtype, width), recall(restored(whole, width, dtype), data)))
            print(rows[-1], flush=True)
        for length in options.shortlist:
            rows.append(funnel(whole, width, length, data))
            print(rows[-1], flush=True)
    report: dict[str, Any] = {"run": run.name, "source": options.source, "split": options.split}
    report |= {"num_images": len(data), "rows": [asdict(row) for row in rows]}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(asdict(collect(device_fingerprint("cpu"))) | report, indent=2) + "\n")
    print(f"wrote {options.out}")


def restored(whole: np.ndarray, width: int, dtype: Dtype) -> np.ndarray:
    """Unit vectors that order neighbours as the quantised ones do."""
    rows = []
    for embedding in whole:
        values, scale = quantise(cut(embedding, width), dtype)
        rows.append(cut(dequantise(values, dtype, width, scale), width))
    return np.stack(rows)


def recall(unit: np.ndarray, data: RetrievalSet) -> float:
    """R@1, mean over domains."""
    return image_retrieval(unit, unit, data)[MEAN].recall_at_1


def size_of(dtype: Dtype, width: int) -> float:
    """Bytes of one item in an index."""
    return quantise(np.ones(width, np.float32), dtype)[0].nbytes


def funnel(whole: np.ndarray, width: int, length: int, data: RetrievalSet) -> Row:
    """Shortlist by the bits of one width, order by int8 at full width."""
    full = whole.shape[1]
    bits, fine = restored(whole, width, "ubinary"), restored(whole, full, "int8")
    shortlist = nearest(bits, bits, length, exclude=np.arange(len(data)))
    scores = np.einsum("qd,qkd->qk", fine, fine[shortlist])
    first = shortlist[np.arange(len(data)), scores.argmax(axis=1)]
    is_right = data.classes[first] == data.classes
    domains = np.array(data.domains)
    by_domain = [is_right[domains == domain].mean() for domain in sorted(set(domains))]
    size = size_of("ubinary", width) + size_of("int8", full)
    return Row(f"ubinary, then int8@{full} of {length}", width, size, float(np.mean(by_domain)))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
