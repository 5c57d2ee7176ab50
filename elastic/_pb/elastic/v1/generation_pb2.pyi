from elastic._pb.elastic.v1 import embedding_pb2 as _embedding_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "seed")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class TokenSlo(_message.Message):
    __slots__ = ("token_latency_ms", "max_nats")
    TOKEN_LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_NATS_FIELD_NUMBER: _ClassVar[int]
    token_latency_ms: float
    max_nats: float
    def __init__(self, token_latency_ms: _Optional[float] = ..., max_nats: _Optional[float] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("text", "token_ids", "max_new_tokens", "sampling", "stop", "slo", "draft")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: TokenIds
    max_new_tokens: int
    sampling: Sampling
    stop: _containers.RepeatedScalarFieldContainer[str]
    slo: TokenSlo
    draft: str
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., max_new_tokens: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., stop: _Optional[_Iterable[str]] = ..., slo: _Optional[_Union[TokenSlo, _Mapping]] = ..., draft: _Optional[str] = ...) -> None: ...

class GenerateReply(_message.Message):
    __slots__ = ("text", "token_ids", "finish")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    finish: Finish
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ("reason", "usage", "explanation")
    REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    reason: FinishReason
    usage: Usage
    explanation: GenerationExplanation
    def __init__(self, reason: _Optional[_Union[FinishReason, str]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., explanation: _Optional[_Union[GenerationExplanation, _Mapping]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("num_prompt_tokens", "num_new_tokens")
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_prompt_tokens: int
    num_new_tokens: int
    def __init__(self, num_prompt_tokens: _Optional[int] = ..., num_new_tokens: _Optional[int] = ...) -> None: ...

class GenerationExplanation(_message.Message):
    __slots__ = ("model_version", "submodel", "granularity", "nats", "draft", "gamma", "first_token_ms", "total_ms", "predicted_token_ms", "token_ms", "slo_met", "num_sequences", "limited_by", "reason", "drafts")
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SUBMODEL_FIELD_NUMBER: _ClassVar[int]
    GRANULARITY_FIELD_NUMBER: _ClassVar[int]
    NATS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    GAMMA_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TOKEN_MS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_MS_FIELD_NUMBER: _ClassVar[int]
    SLO_MET_FIELD_NUMBER: _ClassVar[int]
    NUM_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    LIMITED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_FIELD_NUMBER: _ClassVar[int]
    model_version: str
    submodel: str
    granularity: str
    nats: float
    draft: str
    gamma: int
    first_token_ms: float
    total_ms: float
    predicted_token_ms: float
    token_ms: float
    slo_met: bool
    num_sequences: int
    limited_by: _embedding_pb2.Limit
    reason: str
    drafts: Drafts
    def __init__(self, model_version: _Optional[str] = ..., submodel: _Optional[str] = ..., granularity: _Optional[str] = ..., nats: _Optional[float] = ..., draft: _Optional[str] = ..., gamma: _Optional[int] = ..., first_token_ms: _Optional[float] = ..., total_ms: _Optional[float] = ..., predicted_token_ms: _Optional[float] = ..., token_ms: _Optional[float] = ..., slo_met: _Optional[bool] = ..., num_sequences: _Optional[int] = ..., limited_by: _Optional[_Union[_embedding_pb2.Limit, str]] = ..., reason: _Optional[str] = ..., drafts: _Optional[_Union[Drafts, _Mapping]] = ...) -> None: ...

class Drafts(_message.Message):
    __slots__ = ("num_drafts", "num_draft_tokens", "num_accepted_tokens", "num_accepted_tokens_per_pos")
    NUM_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    NUM_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_ACCEPTED_TOKENS_PER_POS_FIELD_NUMBER: _ClassVar[int]
    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_accepted_tokens_per_pos: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, num_drafts: _Optional[int] = ..., num_draft_tokens: _Optional[int] = ..., num_accepted_tokens: _Optional[int] = ..., num_accepted_tokens_per_pos: _Optional[_Iterable[int]] = ...) -> None: ...

class GenerationInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GenerationInfoReply(_message.Message):
    __slots__ = ("model_name", "model_version", "submodels", "limits")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SUBMODELS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    submodels: _containers.RepeatedCompositeFieldContainer[TokenSubmodelInfo]
    limits: GenerationLimits
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., submodels: _Optional[_Iterable[_Union[TokenSubmodelInfo, _Mapping]]] = ..., limits: _Optional[_Union[GenerationLimits, _Mapping]] = ...) -> None: ...

class TokenSubmodelInfo(_message.Message):
    __slots__ = ("submodel", "granularity", "predicted_token_ms", "nats")
    SUBMODEL_FIELD_NUMBER: _ClassVar[int]
    GRANULARITY_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TOKEN_MS_FIELD_NUMBER: _ClassVar[int]
    NATS_FIELD_NUMBER: _ClassVar[int]
    submodel: str
    granularity: str
    predicted_token_ms: float
    nats: float
    def __init__(self, submodel: _Optional[str] = ..., granularity: _Optional[str] = ..., predicted_token_ms: _Optional[float] = ..., nats: _Optional[float] = ...) -> None: ...

class GenerationLimits(_message.Message):
    __slots__ = ("max_tokens", "max_sequences", "max_message_bytes", "max_text_chars", "vocab_size")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_CHARS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    max_sequences: int
    max_message_bytes: int
    max_text_chars: int
    vocab_size: int
    def __init__(self, max_tokens: _Optional[int] = ..., max_sequences: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_text_chars: _Optional[int] = ..., vocab_size: _Optional[int] = ...) -> None: ...
