"""Between the wire and the domain: a request into a job, steps into replies. Errors are those of `api.grpc.STATUS`."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from tokenizers import Tokenizer

from elastic._pb.elastic.v1 import embedding_pb2 as common
from elastic._pb.elastic.v1 import generation_pb2 as pb
from elastic.errors import ConfigError, InvalidRequest, RequestTooLarge
from elastic.lm.generate import Finish, Statistics
from elastic.lm.sampling import Sampling
from elastic.serve.generation.choice import TokenSlo
from elastic.serve.generation.engine import Job, Running
from elastic.serve.policy import Limit
from elastic.submodel import Space, Submodel

MAX_STOP = 4
"""Stop strings of one request, as in OpenAI's API."""
AUTO, OFF = "auto", "off"

LIMITS = {Limit.NONE: common.LIMIT_NONE, Limit.DEADLINE: common.LIMIT_DEADLINE, Limit.BACKLOG: common.LIMIT_BACKLOG}
REASONS: dict[Finish, pb.FinishReason] = {
    "eos": pb.FINISH_REASON_STOP,
    "stopped": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
}


@dataclass(frozen=True, slots=True)
class Reading:
    """What is needed to understand a request."""

    tokenizer: Tokenizer
    space: Space
    vocab_size: int
    max_tokens: int
    """Prompt and new tokens together."""
    max_text_chars: int

    def job(self, request: pb.GenerateRequest, arrived_ms: float, budget_ms: float = inf) -> Job:
        """What a request asks for.

        Raises:
            InvalidRequest: a part of it is malformed, or it does not fit the model's context.
            RequestTooLarge: its text is above the limit.
        """
        prompt = self._prompt(request)
        sampling = read_sampling(request.sampling)
        return Job(
            prompt=prompt,
            max_new_tokens=self._max_new_tokens(request.max_new_tokens, len(prompt)),
            sampling=sampling,
            seed=request.sampling.seed if request.sampling.HasField("seed") else secrets.randbits(63),
            stop=read_stop(request.stop),
            slo=read_slo(request.slo),
            draft=self._draft(request, sampling),
            arrived_ms=arrived_ms,
            deadline_ms=arrived_ms + budget_ms,
        )

    def _prompt(self, request: pb.GenerateRequest) -> tuple[int, ...]:
        match request.WhichOneof("prompt"):
            case "text":
                if len(request.text) > self.max_text_chars:
                    raise RequestTooLarge("text", len(request.text), self.max_text_chars)
                field, ids = "text", tuple(self.tokenizer.encode(request.text).ids)
            case "token_ids":
                field, ids = "token_ids", tuple(request.token_ids.ids)
            case _:
                raise InvalidRequest("prompt", "has neither text nor token_ids")
        if not ids:
            raise InvalidRequest(field, "holds no token; begin with one, if only that of a beginning")
        if max(ids) >= self.vocab_size:
            raise InvalidRequest(field, f"holds token {max(ids)}, the vocabulary ends at {self.vocab_size - 1}")
        if len(ids) >= self.max_tokens:
            problem = f"is {len(ids)} tokens long, which leaves no room in the model's context of {self.max_tokens}"
            raise InvalidRequest(field, problem)
        return ids

    def _max_new_tokens(self, asked: int, num_prompt_tokens: int) -> int:
        room = self.max_tokens - num_prompt_tokens
        if asked > room:
            problem = f"is {asked}; the model's context of {self.max_tokens} has room for {room} behind this prompt"
            raise InvalidRequest("max_new_tokens", problem)
        return asked or room

    def _draft(self, request: pb.GenerateRequest, sampling: Sampling) -> Submodel | None:
        """What may draft.

        How much is drafted follows from measured times, and what is drawn from how much was drafted; so where the
        same seed is to draw the same tokens, nothing is drafted.
        """
        is_repeatable = request.sampling.HasField("seed") and not sampling.is_greedy
        if request.draft == OFF:
            return None
        if request.draft in ("", AUTO):
            return None if is_repeatable else self.space.smallest
        found = self.space.granularities.get(request.draft)
        if found is None:
            names = ", ".join([AUTO, OFF, *self.space.granularities])
            raise InvalidRequest("draft", f"{request.draft[:100]!r} is not one of {names}")
        if is_repeatable:
            problem = "makes what a seed draws depend on how fast the server is; leave out one of the two"
            raise InvalidRequest("draft", problem)
        return found


def read_sampling(message: pb.Sampling) -> Sampling:
    """How tokens are drawn.

    Raises:
        InvalidRequest: a value that is none.
    """
    top_p = message.top_p if message.HasField("top_p") else 1.0
    try:
        return Sampling(temperature=message.temperature, top_k=message.top_k, top_p=top_p)
    except ConfigError as error:
        raise InvalidRequest(f"sampling.{error.field}", f"{error.value} {error.rule}") from error


def read_stop(words: Sequence[str]) -> tuple[str, ...]:
    """Strings before which the text ends.

    Raises:
        InvalidRequest: too many, or an empty one.
    """
    if len(words) > MAX_STOP:
        raise InvalidRequest("stop", f"lists {len(words)} strings, at most {MAX_STOP} are looked for")
    if "" in words:
        raise InvalidRequest("stop", "holds an empty string, which every text begins with")
    return tuple(words)


def read_slo(message: pb.TokenSlo) -> TokenSlo:
    """The objective of a request.

    Raises:
        InvalidRequest: not a number, or negative.
    """
    max_nats = message.max_nats if message.HasField("max_nats") else None
    return TokenSlo(message.token_latency_ms if message.token_latency_ms != 0 else inf, max_nats)


def finish_message(running: Running, finish: Finish, num_told: int, version: str, space: Space) -> pb.Finish:
    """How a sequence ended, of which the caller was told so many tokens, and its explanation."""
    option = running.choice.option
    statistics = running.generation.statistics
    explanation = pb.GenerationExplanation(
        model_version=version,
        submodel=str(option.submodel),
        granularity=option.name,
        nats=option.nats,
        draft=space.name(running.job.draft) if running.job.draft is not None and statistics.num_drafts else "",
        gamma=running.gamma,
        first_token_ms=running.first_token_ms - running.job.arrived_ms,
        total_ms=running.last_token_ms - running.job.arrived_ms,
        predicted_token_ms=running.choice.predicted_ms,
        token_ms=running.token_ms,
        slo_met=running.slo_met,
        num_sequences=running.num_sequences,
        limited_by=LIMITS[running.choice.limit],
        reason=running.choice.reason,
        drafts=drafts_message(statistics),
    )
    usage = pb.Usage(num_prompt_tokens=len(running.job.prompt), num_new_tokens=num_told)
    return pb.Finish(reason=REASONS[finish], usage=usage, explanation=explanation)


def drafts_message(statistics: Statistics) -> pb.Drafts:
    """What became of drafted tokens; positions that no draft reached are left out."""
    per_position = statistics.num_accepted_tokens_per_position
    last = max((place for place, count in enumerate(per_position, 1) if count), default=0)
    return pb.Drafts(
        num_drafts=statistics.num_drafts,
        num_draft_tokens=statistics.num_draft_tokens,
        num_accepted_tokens=statistics.num_accepted_tokens,
        num_accepted_tokens_per_pos=per_position[:last],
    )
