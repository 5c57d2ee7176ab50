"""What both clients say and hear of `GenerationService`: a prompt and its options into a message, replies into pieces.

Needs grpc alone, neither torch nor ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from elastic._pb.elastic.v1 import embedding_pb2 as common
from elastic._pb.elastic.v1 import generation_pb2 as pb
from elastic.errors import InvalidRequest
from elastic.messages import Deadline
from elastic.submodel import Submodel

GENERATE_TIMEOUT_S = 600.0
"""Of one text, if not said otherwise."""


class GenerateOptions(TypedDict, total=False):
    """How a prompt is continued; what is left out is as the service has it."""

    max_new_tokens: int
    """As many as the model's context has room for, if left out."""
    temperature: float
    """0, the default, takes the most probable token each time."""
    top_k: int
    """Only so many of the most probable tokens are drawn from; 0, the default: all."""
    top_p: float
    """Only the most probable tokens that together reach this probability are drawn from; 1 is the default."""
    seed: int
    """Draws the same tokens again at the same submodel; what is drawn with a seed is never drafted."""
    stop: Sequence[str]
    """The text ends before the first of these, at most four."""
    token_latency_slo_ms: float
    """Mean time per token after the first that is asked for; any, if left out."""
    max_nats: float
    """Highest acceptable validation loss of the submodel, in nats per token."""
    draft: str
    """What drafts: `auto`, which is the default, `off`, or a granularity such as `S`."""
    timeout_s: float
    """When to give the text up, and the server with us; ten minutes, if left out."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a text ended, and how the server came to it."""

    reason: str
    """`stop` (the model ended it, or a stop string came) or `length`."""
    num_prompt_tokens: int
    num_new_tokens: int
    model_version: str
    submodel: Submodel
    granularity: str
    """The trained granularity's name (S, M, L, XL), or the submodel's text form."""
    nats: float | None
    """Validation loss of the submodel per token; None if the run was not evaluated."""
    draft: str
    """What drafted; empty when nothing did."""
    gamma: int
    """Tokens of the latest draft."""
    first_token_ms: float
    """From the arrival of the request at the server to its first token."""
    total_ms: float
    predicted_token_ms: float
    """Time per token that the server expected when it began."""
    token_ms: float
    """Measured mean time per token after those of the first step."""
    slo_met: bool
    num_sequences: int
    """Requests that ran when this one began, itself included."""
    limited_by: str
    """What kept the server from a larger submodel: none, deadline or backlog."""
    why: str
    """The same for people."""
    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_accepted_tokens_per_pos: tuple[int, ...]
    """At each position of a draft, from the first."""

    @property
    def acceptance_rate(self) -> float:
        """Accepted tokens / draft tokens; 0 without drafts."""
        return self.num_accepted_tokens / max(1, self.num_draft_tokens)

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens that a draft and its verification brought: 1 + accepted tokens / drafts."""
        return 1 + self.num_accepted_tokens / max(1, self.num_drafts)


@dataclass(frozen=True, slots=True)
class Generated:
    """What is new of a text."""

    text: str
    """Whole characters; empty while a token holds only a part of one, or may begin a stop string."""
    token_ids: tuple[int, ...]
    """The tokens since the last piece, which may be ahead of the text."""
    finished: Finished | None
    """In the last piece."""


def generate_request(prompt: str | Sequence[int], options: GenerateOptions) -> pb.GenerateRequest:
    """The message.

    Raises:
        InvalidRequest: a number that the message cannot hold.
    """
    ids = None if isinstance(prompt, str) else prompt
    try:
        sampling = pb.Sampling(
            temperature=options.get("temperature", 0.0),
            top_k=options.get("top_k", 0),
            top_p=options.get("top_p"),
            seed=options.get("seed"),
        )
        slo = pb.TokenSlo(token_latency_ms=options.get("token_latency_slo_ms", 0.0), max_nats=options.get("max_nats"))
        return pb.GenerateRequest(
            text=prompt if isinstance(prompt, str) else None,
            token_ids=None if ids is None else pb.TokenIds(ids=ids),
            max_new_tokens=options.get("max_new_tokens", 0),
            sampling=sampling,
            stop=options.get("stop", ()),
            slo=slo,
            draft=options.get("draft", ""),
        )
    except ValueError as error:
        raise InvalidRequest("request", str(error)) from error


def generate_deadline(options: GenerateOptions) -> Deadline:
    """When a text is given up; the server is told, and stops then."""
    timeout_s = options.get("timeout_s", GENERATE_TIMEOUT_S)
    return Deadline(budget_ms=1000 * timeout_s, timeout_s=timeout_s)


def generated(reply: pb.GenerateReply) -> Generated:
    """What a reply holds."""
    return Generated(reply.text, tuple(reply.token_ids), _finished(reply.finish) if reply.HasField("finish") else None)


def _finished(finish: pb.Finish) -> Finished:
    why = finish.explanation
    return Finished(
        reason=pb.FinishReason.Name(finish.reason).removeprefix("FINISH_REASON_").lower(),
        num_prompt_tokens=finish.usage.num_prompt_tokens,
        num_new_tokens=finish.usage.num_new_tokens,
        model_version=why.model_version,
        submodel=Submodel.parse(why.submodel),
        granularity=why.granularity,
        nats=why.nats if why.HasField("nats") else None,
        draft=why.draft,
        gamma=why.gamma,
        first_token_ms=why.first_token_ms,
        total_ms=why.total_ms,
        predicted_token_ms=why.predicted_token_ms,
        token_ms=why.token_ms,
        slo_met=why.slo_met,
        num_sequences=why.num_sequences,
        limited_by=common.Limit.Name(why.limited_by).removeprefix("LIMIT_").lower(),
        why=why.reason,
        num_drafts=why.drafts.num_drafts,
        num_draft_tokens=why.drafts.num_draft_tokens,
        num_accepted_tokens=why.drafts.num_accepted_tokens,
        num_accepted_tokens_per_pos=tuple(why.drafts.num_accepted_tokens_per_pos),
    )
