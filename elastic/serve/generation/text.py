"""From tokens to text as they come: whole characters only, and nothing behind a stop string.

A token may hold a part of a character, and a stop string may be spread over several tokens, so what is sure of a text
lags behind its tokens.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer

UNFINISHED = "\ufffd"
"""What bytes decode to that are no character, or not yet."""
NUM_PROMPT_TOKENS = 8
"""Tokens of the prompt that the first new ones are decoded behind: they decide whether a word begins with a space."""


class Characters:
    """Tokens into whole characters, one token after another.

    What a token adds is what decoding it behind the tokens just before it adds. `tokenizers.decoders.DecodeStream` does
    the same, but fails where bytes that are no text change how earlier ones decode. Source: text-generation-inference,
    `Model.decode_token`.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(prompt[-NUM_PROMPT_TOKENS:])
        self._num_told = len(self._tokens)

    def push(self, token: int) -> str:
        """Take in the next token; the characters that are whole with it."""
        self._tokens.append(token)
        before = self._tokenizer.decode(self._tokens[: self._num_told])
        now = self._tokenizer.decode(self._tokens)
        if now.endswith(UNFINISHED) or len(now) <= len(before):
            return ""
        self._tokens = self._tokens[self._num_told :]
        self._num_told = len(self._tokens)
        return now[len(before) :]


class TextStream:
    """The text of one answer, given out in pieces that are never taken back."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._characters, self._stop = Characters(tokenizer, prompt), tuple(stop)
        self._held = ""
        self.is_stopped = False
        """Whether a stop string has come; nothing is taken in any more."""

    def push(self, token: int) -> str:
        """Take in the next token; what is new and sure of the text."""
        assert not self.is_stopped, "nothing follows a stop string"
        self._held += self._characters.push(token)
        found = [place for word in self._stop if (place := self._held.find(word)) >= 0]
        if found:
            self.is_stopped = True
            self._held = self._held[: min(found)]
        return self._release(0 if self.is_stopped else self._num_doubtful())

    def flush(self) -> str:
        """The rest, when no further token comes; a character that was left unfinished is not part of it."""
        return self._release(0)

    def _num_doubtful(self) -> int:
        """Characters at the end that may begin a stop string."""
        longest = min(len(self._held), max(map(len, self._stop), default=1) - 1)
        endings = (self._held[-count:] for count in range(longest, 0, -1))
        return next((len(end) for end in endings if any(word.startswith(end) for word in self._stop)), 0)

    def _release(self, num_kept: int) -> str:
        cut = len(self._held) - num_kept
        released, self._held = self._held[:cut], self._held[cut:]
        return released
