"""The tiny run, and its text."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from elastic.lm.text.prepared import PreparedText
from elastic.lm.training.config import MatlmConfig
from elastic.lm.training.job import MatlmJob
from elastic.train.metrics import read_metrics
from elastic.train.record import Origin

from .sums import BATCH, BLOCK, VOCAB_SIZE, prepare_sums, tiny_config


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare_sums(folder)
    return folder


@pytest.fixture
def text(text_folder: Path) -> PreparedText:
    return PreparedText.load(text_folder, block_size=BLOCK, batch_size=BATCH, seed=0)


@pytest.fixture
def config(text_folder: Path) -> MatlmConfig:
    return tiny_config(text_folder)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, (BATCH, BLOCK + 1), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def train(one_thread: None) -> Callable[..., int]:
    """Start the run, or go on with it."""

    def run(config: MatlmConfig, text: PreparedText, run_dir: Path) -> int:
        job = MatlmJob(config, text)
        if not run_dir.exists():
            job.start(run_dir, Origin(recipe="tiny"))
        return job.work(run_dir, torch.device("cpu"))

    return run


@pytest.fixture
def losses() -> Callable[[Path], list[dict[str, float]]]:
    """The run's records without what the clock says."""
    timing = {"step_s", "tokens_per_s", "data_wait_fraction"}
    return lambda run: [{k: v for k, v in record.items() if k not in timing} for record in read_metrics(run)]
