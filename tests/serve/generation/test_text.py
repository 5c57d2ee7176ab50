import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from elastic.serve.generation.text import TextStream

SAMPLES = ["the cat sat on the mat.", "h\u00e9llo \u4e2d\u6587 \U0001f600"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Byte-level, like those of MatLM runs: a character beyond ASCII is several tokens."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    found.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, special_tokens=["<eos>"], initial_alphabet=alphabet)
    found.train_from_iterator(SAMPLES[:1], trainer)
    return found


def pieces(stream: TextStream, tokens: list[int]) -> list[str]:
    found = []
    for token in tokens:
        found.append(stream.push(token))
        if stream.is_stopped:
            break
    return [*found, stream.flush()]


@pytest.mark.parametrize("text", SAMPLES)
def test_the_pieces_are_the_text(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text).ids
    assert "".join(pieces(TextStream(tokenizer, [1]), tokens)) == text


def test_a_character_comes_with_its_last_token(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("\U0001f600").ids
    assert len(tokens) == 4
    assert pieces(TextStream(tokenizer, [1]), tokens) == ["", "", "", "\U0001f600", ""]


def test_an_unfinished_character_is_left_out(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("a\U0001f600").ids[:-1]
    assert "".join(pieces(TextStream(tokenizer, [1]), tokens)) == "a"


def test_whatever_tokens_come_the_pieces_are_what_they_decode_to(tokenizer: Tokenizer) -> None:
    draws = random.Random(0)
    for _ in range(300):
        tokens = [draws.randrange(tokenizer.get_vocab_size()) for _ in range(12)]
        found = "".join(pieces(TextStream(tokenizer, []), tokens))
        whole = tokenizer.decode(tokens)
        assert whole.startswith(found)
        assert set(whole[len(found) :]) <= {"\ufffd"}


def test_bytes_that_are_no_text_harm_nobody_where_they_change_how_earlier_ones_decode() -> None:
    tokenizer = sentencepiece()
    draws = random.Random(0)
    for _ in range(300):
        tokens = [draws.randrange(3, tokenizer.get_vocab_size()) for _ in range(12)]
        found = "".join(pieces(TextStream(tokenizer, [tokenizer.token_to_id("a")]), [*tokens, *[LAST] * 3]))
        assert found.endswith("..")


def test_a_word_begins_with_a_space_behind_another_word() -> None:
    tokenizer = sentencepiece()
    cat = tokenizer.token_to_id("\u2581cat")
    assert TextStream(tokenizer, [cat]).push(cat) == " cat"


LAST = 3 + 256
"""The full stop of `sentencepiece`."""


def sentencepiece() -> Tokenizer:
    """As those of Llama: words begin with a mark that becomes a space, what is not in the vocabulary is bytes."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        ".",
        "a",
        "b",
        "\u2581a",
        "\u2581cat",
    ]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    found = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    found.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return found


@pytest.mark.parametrize("stop", [["cat"], ["at sat"], ["zebra", "mat", "cat s"], ["cat", "c"]])
def test_the_text_ends_before_the_first_stop_string(tokenizer: Tokenizer, stop: list[str]) -> None:
    stream = TextStream(tokenizer, [1], stop)
    found = "".join(pieces(stream, tokenizer.encode(SAMPLES[0]).ids))
    assert found == SAMPLES[0][: min(SAMPLES[0].find(word) for word in stop if word in SAMPLES[0])]
    assert stream.is_stopped


def test_of_overlapping_stop_strings_the_one_that_is_whole_first_ends_the_text(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, [1], ["the cat sat on", "cat s"])
    assert (
        "".join(pieces(stream, [tokenizer.token_to_id(letter.replace(" ", "\u0120")) for letter in "the cat s"]))
        == "the "
    )


def test_what_may_begin_a_stop_string_is_held_back_and_released_when_it_does_not(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, [1], ["cab"])
    tokens = [tokenizer.token_to_id(letter) for letter in "xcax"]
    assert [stream.push(token) for token in tokens] == ["x", "", "", "cax"]


def test_a_text_that_ends_in_the_beginning_of_a_stop_string_keeps_it(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, [1], ["cab"])
    assert [stream.push(tokenizer.token_to_id(letter)) for letter in "ca"] == ["", ""]
    assert stream.flush() == "ca"
    assert not stream.is_stopped


def test_special_tokens_are_no_text(tokenizer: Tokenizer) -> None:
    assert pieces(TextStream(tokenizer, [1]), [tokenizer.token_to_id("<eos>")]) == ["", ""]
