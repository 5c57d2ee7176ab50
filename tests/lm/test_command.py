"""`elastic generate` prints what plain decoding would, whole characters at a time, and says what drafts brought."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from elastic import cli
from elastic.lm.checkpoint import LmManifest, save_matlm
from elastic.lm.command import summary
from elastic.lm.generate import Generator, Statistics, Step
from elastic.model.decoder import Decoder, DecoderConfig

SENTENCE = "the cat sat on the mat; K\u00e4se f\u00fcr \u00c4nderungen"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that knows nothing, with byte pairs of one sentence."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=["<end>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([SENTENCE], trainer)
    torch.manual_seed(0)
    size = tokenizer.get_vocab_size()
    config = DecoderConfig(
        vocab_size=size, width=16, depth=2, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dims=(8, 64), max_tokens=64
    )
    decoder = Decoder(config).eval()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    folder = tmp_path_factory.mktemp("lm") / "run"
    save_matlm(folder, decoder, LmManifest(decoder=config, eos_token_ids=(0,)), tokenizer)
    return folder


def generate(run: Path, *flags: str) -> int:
    return cli.main(["generate", str(run), "--prompt", "the cat", "--max-new-tokens", "20", *flags])


def test_the_text_does_not_depend_on_the_draft(run: Path, capsys: pytest.CaptureFixture[str]):
    texts = set()
    for flags in (["--draft", "off"], [], ["--gamma", "3"], ["--draft", "g0", "--draft-layers", "0"]):
        assert generate(run, *flags) == 0
        texts.add(capsys.readouterr().out)
    (text,) = texts
    assert text.startswith("the cat")
    assert len(text) > len("the cat\n")


def test_no_character_comes_in_parts(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    steps = [tokenizer.encode("the cat \u20ac", add_special_tokens=False).ids[-3:], tokenizer.encode(" on").ids]
    tokens = [token for step in steps for token in step]
    assert len(steps[0]) == 3, "one token for each byte of the euro sign"

    def one_by_one(self: Generator, prompts: object, config: object) -> "Replay":
        return Replay(tokens)

    monkeypatch.setattr(Generator, "generate", one_by_one)
    generate(run)
    assert capsys.readouterr().out == "the cat\u20ac on\n"


class Replay:
    """Gives out tokens that were made up, one a step."""

    def __init__(self, tokens: list[int]) -> None:
        self.statistics, self._tokens = Statistics(), tokens

    def __iter__(self) -> Iterator[Step]:
        for token in self._tokens:
            yield Step(
                tokens=[[token]],
                finished=[None],
                num_draft_tokens=[0],
                num_accepted_tokens=[0],
                draft_s=0.0,
                seconds=1.0,
            )


def test_what_the_drafts_brought_is_said_beside_the_text(run: Path, capsys: pytest.CaptureFixture[str]):
    generate(run, "--gamma", "2", "--compare")
    said = capsys.readouterr().err
    assert "20 tokens" in said
    assert "drafted" in said
    assert "times as fast as without drafts" in said
    generate(run, "--draft", "off", "--compare")
    assert "nothing drafted" in capsys.readouterr().err


def test_a_prompt_can_come_from_a_file_and_a_draft_s_words_from_a_text(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "prompt.txt"
    file.write_text("the cat", encoding="utf-8")
    words = ["--draft-vocabulary-text", str(file), "--draft-vocabulary", "3", "--gamma", "2"]
    assert cli.main(["generate", str(run), "--prompt-file", str(file), "--max-new-tokens", "20", *words]) == 0
    read = capsys.readouterr().out
    generate(run)
    assert read == capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--prompt-file", "x.txt"], "one of --prompt and --prompt-file"),
        (["--draft", "S"], "neither one of"),
        (["--max-new-tokens", "70"], "more than the model's 64"),
        (["--draft-vocabulary-text", "nowhere.txt"], "cannot be read as text"),
    ],
)
def test_what_cannot_be_done_is_one_message(
    flags: list[str], problem: str, run: Path, capsys: pytest.CaptureFixture[str]
):
    assert generate(run, *flags) == cli.EXIT_USER_ERROR
    assert problem in " ".join(capsys.readouterr().err.split())


def test_the_summary_counts():
    counts = Statistics()
    step = Step(
        tokens=[[1, 2, 3]],
        finished=[None],
        num_draft_tokens=[4],
        num_accepted_tokens=[2],
        draft_s=0.25,
        seconds=0.5,
    )
    counts.add(step)
    assert summary(counts) == "3 tokens, 6 tokens/s, accepted 2 of 4 drafted (50%), 3.00 tokens per draft"
