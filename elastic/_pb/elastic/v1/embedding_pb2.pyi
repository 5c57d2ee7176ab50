from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Modality(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODALITY_UNSPECIFIED: _ClassVar[Modality]
    MODALITY_IMAGE: _ClassVar[Modality]
    MODALITY_TEXT: _ClassVar[Modality]

class Limit(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LIMIT_UNSPECIFIED: _ClassVar[Limit]
    LIMIT_NONE: _ClassVar[Limit]
    LIMIT_DEADLINE: _ClassVar[Limit]
    LIMIT_BACKLOG: _ClassVar[Limit]

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    DTYPE_FLOAT32: _ClassVar[Dtype]
    DTYPE_FLOAT16: _ClassVar[Dtype]
    DTYPE_INT8: _ClassVar[Dtype]
    DTYPE_UINT8: _ClassVar[Dtype]
    DTYPE_BINARY: _ClassVar[Dtype]
    DTYPE_UBINARY: _ClassVar[Dtype]
MODALITY_UNSPECIFIED: Modality
MODALITY_IMAGE: Modality
MODALITY_TEXT: Modality
LIMIT_UNSPECIFIED: Limit
LIMIT_NONE: Limit
LIMIT_DEADLINE: Limit
LIMIT_BACKLOG: Limit
DTYPE_UNSPECIFIED: Dtype
DTYPE_FLOAT32: Dtype
DTYPE_FLOAT16: Dtype
DTYPE_INT8: Dtype
DTYPE_UINT8: Dtype
DTYPE_BINARY: Dtype
DTYPE_UBINARY: Dtype

class Output(_message.Message):
    __slots__ = ("embed_dim", "dtype")
    EMBED_DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    embed_dim: int
    dtype: Dtype
    def __init__(self, embed_dim: _Optional[int] = ..., dtype: _Optional[_Union[Dtype, str]] = ...) -> None: ...

class Slo(_message.Message):
    __slots__ = ("latency_ms", "min_quality", "embed_dim", "embed_dim_range", "priority")
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    MIN_QUALITY_FIELD_NUMBER: _ClassVar[int]
    EMBED_DIM_FIELD_NUMBER: _ClassVar[int]
    EMBED_DIM_RANGE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    latency_ms: float
    min_quality: float
    embed_dim: int
    embed_dim_range: EmbedDimRange
    priority: int
    def __init__(self, latency_ms: _Optional[float] = ..., min_quality: _Optional[float] = ..., embed_dim: _Optional[int] = ..., embed_dim_range: _Optional[_Union[EmbedDimRange, _Mapping]] = ..., priority: _Optional[int] = ...) -> None: ...

class EmbedDimRange(_message.Message):
    __slots__ = ("min", "max")
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    min: int
    max: int
    def __init__(self, min: _Optional[int] = ..., max: _Optional[int] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ("image", "text", "image_url")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_URL_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    text: str
    image_url: str
    def __init__(self, image: _Optional[bytes] = ..., text: _Optional[str] = ..., image_url: _Optional[str] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("inputs", "slo", "outputs")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[Input]
    slo: Slo
    outputs: _containers.RepeatedCompositeFieldContainer[Output]
    def __init__(self, inputs: _Optional[_Iterable[_Union[Input, _Mapping]]] = ..., slo: _Optional[_Union[Slo, _Mapping]] = ..., outputs: _Optional[_Iterable[_Union[Output, _Mapping]]] = ...) -> None: ...

class EmbedReply(_message.Message):
    __slots__ = ("embeddings", "model_version", "total_ms", "slack_ms", "slo_met")
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    SLACK_MS_FIELD_NUMBER: _ClassVar[int]
    SLO_MET_FIELD_NUMBER: _ClassVar[int]
    embeddings: _containers.RepeatedCompositeFieldContainer[Embedding]
    model_version: str
    total_ms: float
    slack_ms: float
    slo_met: bool
    def __init__(self, embeddings: _Optional[_Iterable[_Union[Embedding, _Mapping]]] = ..., model_version: _Optional[str] = ..., total_ms: _Optional[float] = ..., slack_ms: _Optional[float] = ..., slo_met: _Optional[bool] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("values_f32", "explanation", "vectors")
    VALUES_F32_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    values_f32: bytes
    explanation: Explanation
    vectors: _containers.RepeatedCompositeFieldContainer[Vector]
    def __init__(self, values_f32: _Optional[bytes] = ..., explanation: _Optional[_Union[Explanation, _Mapping]] = ..., vectors: _Optional[_Iterable[_Union[Vector, _Mapping]]] = ...) -> None: ...

class Vector(_message.Message):
    __slots__ = ("embed_dim", "dtype", "values", "scale", "quality")
    EMBED_DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    embed_dim: int
    dtype: Dtype
    values: bytes
    scale: float
    quality: float
    def __init__(self, embed_dim: _Optional[int] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., values: _Optional[bytes] = ..., scale: _Optional[float] = ..., quality: _Optional[float] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("modality", "submodel", "granularity", "embed_dim", "quality", "queue_ms", "compute_ms", "predicted_ms", "preprocess_ms", "batch_size", "limited_by", "reason", "num_tokens")
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    SUBMODEL_FIELD_NUMBER: _ClassVar[int]
    GRANULARITY_FIELD_NUMBER: _ClassVar[int]
    EMBED_DIM_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_MS_FIELD_NUMBER: _ClassVar[int]
    PREPROCESS_MS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    LIMITED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    modality: Modality
    submodel: str
    granularity: str
    embed_dim: int
    quality: float
    queue_ms: float
    compute_ms: float
    predicted_ms: float
    preprocess_ms: float
    batch_size: int
    limited_by: Limit
    reason: str
    num_tokens: int
    def __init__(self, modality: _Optional[_Union[Modality, str]] = ..., submodel: _Optional[str] = ..., granularity: _Optional[str] = ..., embed_dim: _Optional[int] = ..., quality: _Optional[float] = ..., queue_ms: _Optional[float] = ..., compute_ms: _Optional[float] = ..., predicted_ms: _Optional[float] = ..., preprocess_ms: _Optional[float] = ..., batch_size: _Optional[int] = ..., limited_by: _Optional[_Union[Limit, str]] = ..., reason: _Optional[str] = ..., num_tokens: _Optional[int] = ...) -> None: ...

class EmbedStreamRequest(_message.Message):
    __slots__ = ("id", "request")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    id: int
    request: EmbedRequest
    def __init__(self, id: _Optional[int] = ..., request: _Optional[_Union[EmbedRequest, _Mapping]] = ...) -> None: ...

class EmbedStreamReply(_message.Message):
    __slots__ = ("id", "reply", "failure")
    ID_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    id: int
    reply: EmbedReply
    failure: Failure
    def __init__(self, id: _Optional[int] = ..., reply: _Optional[_Union[EmbedReply, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message", "error_json")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ERROR_JSON_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    error_json: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., error_json: _Optional[str] = ...) -> None: ...

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoReply(_message.Message):
    __slots__ = ("model_name", "model_version", "device", "modalities", "embed_dims", "submodels", "limits", "image_formats")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MODALITIES_FIELD_NUMBER: _ClassVar[int]
    EMBED_DIMS_FIELD_NUMBER: _ClassVar[int]
    SUBMODELS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FORMATS_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    device: str
    modalities: _containers.RepeatedScalarFieldContainer[Modality]
    embed_dims: _containers.RepeatedScalarFieldContainer[int]
    submodels: _containers.RepeatedCompositeFieldContainer[SubmodelInfo]
    limits: Limits
    image_formats: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., device: _Optional[str] = ..., modalities: _Optional[_Iterable[_Union[Modality, str]]] = ..., embed_dims: _Optional[_Iterable[int]] = ..., submodels: _Optional[_Iterable[_Union[SubmodelInfo, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., image_formats: _Optional[_Iterable[str]] = ...) -> None: ...

class SubmodelInfo(_message.Message):
    __slots__ = ("modality", "submodel", "granularity", "predicted_ms", "quality")
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    SUBMODEL_FIELD_NUMBER: _ClassVar[int]
    GRANULARITY_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_MS_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    modality: Modality
    submodel: str
    granularity: str
    predicted_ms: float
    quality: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, modality: _Optional[_Union[Modality, str]] = ..., submodel: _Optional[str] = ..., granularity: _Optional[str] = ..., predicted_ms: _Optional[float] = ..., quality: _Optional[_Iterable[float]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_items_per_call", "max_message_bytes", "max_image_pixels", "max_text_chars", "max_waiting_items", "default_latency_ms")
    MAX_ITEMS_PER_CALL_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_CHARS_FIELD_NUMBER: _ClassVar[int]
    MAX_WAITING_ITEMS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    max_items_per_call: int
    max_message_bytes: int
    max_image_pixels: int
    max_text_chars: int
    max_waiting_items: int
    default_latency_ms: float
    def __init__(self, max_items_per_call: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_image_pixels: _Optional[int] = ..., max_text_chars: _Optional[int] = ..., max_waiting_items: _Optional[int] = ..., default_latency_ms: _Optional[float] = ...) -> None: ...
