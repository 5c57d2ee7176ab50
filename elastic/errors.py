"""Every error that a caller of `elastic` can cause or must handle.

    ElasticError
     +-- ConfigError          a setting is wrong or contradicts another          (ValueError)
     +-- DataError            data is missing, malformed or too broken           (ValueError)
     +-- CheckpointError      a run or checkpoint is missing, foreign or damaged (RuntimeError)
     +-- ProfileError         no usable measurement for this device              (RuntimeError)
     +-- InvalidRequest       a request that no server state could answer        (ValueError)
     |    +-- RequestTooLarge     a request above the server's stated limits
     +-- SloInfeasible        nothing on the Pareto front meets the objective    (RuntimeError)
     +-- Overloaded           refused now, may succeed after `retry_after_ms`    (RuntimeError)
     |    +-- RateLimited         refused because of a limit of the caller's API key
     +-- DeadlineExceeded     the time budget ran out before an answer           (TimeoutError)
     +-- Unauthenticated      no API key, or one that the server does not know   (PermissionError)
     +-- ServerUnavailable    no server answers at that address                  (ConnectionError)

Errors travel between Ray processes. An exception survives pickling only when its constructor's
arguments are exactly what `super().__init__` was given, so every class stores its fields as `args`
and writes its message in `__str__`. A message says what was asked, what was found and what to do.
"""


class ElasticError(Exception):
    """The root: catch it to catch everything this package raises on purpose."""


class ConfigError(ElasticError, ValueError):
    """A configuration value breaks a rule; `field` is its dotted name."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(field, value, rule)
        self.field, self.value, self.rule = field, value, rule

    def __str__(self) -> str:
        return f"{self.field}={self.value!r}: {self.rule}"


class DataError(ElasticError, ValueError):
    """A data source cannot be used as asked; `source` says which, `advice` what to do."""

    def __init__(self, source: str, problem: str, advice: str) -> None:
        super().__init__(source, problem, advice)
        self.source, self.problem, self.advice = source, problem, advice

    def __str__(self) -> str:
        return f"{self.source}: {self.problem}; {self.advice}"


class CheckpointError(ElasticError, RuntimeError):
    """A run directory, checkpoint or exported model cannot be used."""

    def __init__(self, path: str, problem: str, advice: str) -> None:
        super().__init__(path, problem, advice)
        self.path, self.problem, self.advice = path, problem, advice

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.advice}"


class ProfileError(ElasticError, RuntimeError):
    """A latency or quality table is missing, or was measured on another device."""

    def __init__(self, table: str, problem: str, advice: str) -> None:
        super().__init__(table, problem, advice)
        self.table, self.problem, self.advice = table, problem, advice

    def __str__(self) -> str:
        return f"{self.table}: {self.problem}; {self.advice}"


class InvalidRequest(ElasticError, ValueError):
    """A request is malformed; `field` names the part to change."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field, self.problem = field, problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


class RequestTooLarge(InvalidRequest):
    """A request is above a limit that the server states in its `Info` reply."""

    def __init__(self, field: str, size: int, limit: int) -> None:
        super().__init__(field, f"size {size} is above the limit of {limit}")
        self.args = (field, size, limit)
        self.size, self.limit = size, limit


class SloInfeasible(ElasticError, RuntimeError):
    """No measured (submodel, embed_dim) meets the objective, even on an idle machine."""

    def __init__(self, asked: str, best: str, advice: str) -> None:
        super().__init__(asked, best, advice)
        self.asked, self.best, self.advice = asked, best, advice

    def __str__(self) -> str:
        return f"no submodel meets {self.asked}: {self.best}; {self.advice}"


class Overloaded(ElasticError, RuntimeError):
    """Refused without computing, because the queue would make the answer late."""

    def __init__(self, reason: str, retry_after_ms: float) -> None:
        super().__init__(reason, retry_after_ms)
        self.reason, self.retry_after_ms = reason, retry_after_ms

    def __str__(self) -> str:
        return f"{self.reason}; retry after {self.retry_after_ms:.0f} ms"


class RateLimited(Overloaded):
    """Refused without computing, because the caller's API key is above its rate or number of requests at once."""


class DeadlineExceeded(ElasticError, TimeoutError):
    """The deadline passed; `late_ms` is by how much when it was noticed."""

    def __init__(self, budget_ms: float, late_ms: float) -> None:
        super().__init__(budget_ms, late_ms)
        self.budget_ms, self.late_ms = budget_ms, late_ms

    def __str__(self) -> str:
        return (
            f"the {self.budget_ms:.1f} ms budget ran out {self.late_ms:.1f} ms ago; raise latency_ms or lower the load"
        )


class Unauthenticated(ElasticError, PermissionError):
    """The server answers only callers that it knows, and this one it does not; no message ever holds a key."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem, advice)
        self.problem, self.advice = problem, advice

    def __str__(self) -> str:
        return f"{self.problem}; {self.advice}"


class ServerUnavailable(ElasticError, ConnectionError):
    """No server answered, or the connection broke before the answer."""

    def __init__(self, address: str, problem: str, advice: str) -> None:
        super().__init__(address, problem, advice)
        self.args = (address, problem, advice)  # OSError takes a third argument for a file name
        self.address, self.problem, self.advice = address, problem, advice

    def __str__(self) -> str:
        return f"{self.address}: {self.problem}; {self.advice}"
