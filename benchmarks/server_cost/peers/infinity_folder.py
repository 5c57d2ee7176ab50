"""A run as a folder that infinity_emb can serve: see `infinity_model.py`. Needs no transformers."""

import json
import shutil
from pathlib import Path

from elastic.checkpoint import MANIFEST, Manifest

MODEL = Path(__file__).with_name("infinity_model.py")


def infinity_folder(run: Path, folder: Path) -> Path:
    """Write the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(MODEL, folder / MODEL.name)
    size = Manifest.from_json(run / MANIFEST).preprocess.image_size
    config = {
        "model_type": "elastic_run",
        "architectures": ["NestedModel"],
        "auto_map": {
            "AutoConfig": "infinity_model.NestedConfig",
            "AutoModel": "infinity_model.NestedModel",
            "AutoProcessor": "infinity_model.NestedProcessor",
        },
        "run": str(run),
        "vision_config": {"image_size": size},  # tells infinity that it embeds images
        "text_config": {},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
