"""Who is let in, with a fake clock: keys, buckets, requests at once, and where a connection comes from."""

import logging
from contextlib import ExitStack
from pathlib import Path

import pytest

from elastic.errors import RateLimited, Unauthenticated
from elastic.serve.access.gate import Gate, is_local
from elastic.serve.access.keys import KeyRing, create_key, editing
from elastic.serve.access.usage import Usage


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class FakeCaller:
    """A call with this authorization, through the ingress unless said otherwise."""

    def __init__(self, authorization: str | None = None, peer: str = "ipv4:127.0.0.1:4000") -> None:
        self.authorization, self._peer = authorization, peer

    def invocation_metadata(self) -> list[tuple[str, str]]:
        key = [] if self.authorization is None else [("authorization", self.authorization)]
        return [("user-agent", "test"), *key]

    def peer(self) -> str:
        return self._peer


class Office:
    """A gate, its clock, and the key file behind it."""

    def __init__(self, path: Path) -> None:
        self.path, self.clock = path, Clock()
        with editing(path):
            pass
        self.gate = Gate(KeyRing(path, self.clock), Usage(clock=self.clock))

    def hire(self, name: str, **limits: float) -> FakeCaller:
        entry, secret = create_key(name, **limits)  # type: ignore[arg-type]
        with editing(self.path) as entries:
            entries.append(entry)
        self.clock.now_s += 2.0
        return FakeCaller(f"Bearer {secret}")

    def call(self, caller: FakeCaller) -> None:
        with self.gate.admit(caller):
            pass

    def num_admitted(self, caller: FakeCaller, num_calls: int) -> int:
        admitted = 0
        for _ in range(num_calls):
            try:
                self.call(caller)
            except RateLimited:
                continue
            admitted += 1
        return admitted


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path / "keys.json")


def test_a_request_runs_under_the_name_of_its_key(office: Office) -> None:
    with office.gate.admit(office.hire("mobile")) as name:
        assert name == "mobile"
    with office.gate.admit(None) as name:
        assert name is None


def test_without_a_key_file_everybody_behind_the_ingress_may_call() -> None:
    with Gate().admit(FakeCaller()):
        pass


@pytest.mark.parametrize("peer", ["ipv4:192.0.2.7:40000", "ipv6:[2001:db8::1]:40000", "", "ipv4:localhost.evil:1"])
def test_nobody_may_call_around_the_ingress(office: Office, peer: str) -> None:
    with pytest.raises(Unauthenticated, match="inner port"):
        Gate().check(FakeCaller(peer=peer))
    key = office.hire("mobile").authorization
    with pytest.raises(Unauthenticated, match="inner port"):
        office.gate.check(FakeCaller(key, peer))


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("ipv4:127.0.0.1:40000", True),
        ("ipv4:127.8.0.1:1", True),
        ("ipv6:[::1]:40000", True),
        ("ipv6:[::ffff:127.0.0.1]:40000", True),
        ("ipv6:[::ffff:192.0.2.7]:40000", False),
        ("ipv4:10.0.0.1:127", False),
        ("unix:/run/server.sock", True),
    ],
)
def test_loopback_in_any_spelling_is_this_machine_and_nothing_else(peer: str, local: bool) -> None:
    assert is_local(peer) is local


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Basic YTpi", "elastic_bare"])
def test_a_call_without_a_key_is_refused_and_told_how_to_send_one(office: Office, authorization: str | None) -> None:
    with pytest.raises(Unauthenticated, match=r"no API key was sent.*ELASTIC_API_KEY"):
        office.call(FakeCaller(authorization))


def test_a_wrong_key_is_refused_and_neither_shown_nor_logged(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    right = office.hire("mobile")
    with caplog.at_level(logging.DEBUG), pytest.raises(Unauthenticated, match="not known") as raised:
        office.call(FakeCaller(f"{right.authorization}x"))
    assert "elastic_" not in str(raised.value) + caplog.text


def test_the_scheme_may_be_written_in_any_case(office: Office) -> None:
    caller = office.hire("mobile")
    assert caller.authorization is not None
    office.call(FakeCaller(caller.authorization.replace("Bearer", "bearer")))


def test_a_key_without_limits_may_call_as_often_as_it_likes(office: Office) -> None:
    assert office.num_admitted(office.hire("mobile"), 1_000) == 1_000


def test_a_rate_lets_a_burst_through_and_then_its_own_pace(office: Office) -> None:
    caller = office.hire("mobile", rate=10.0, burst=3)
    assert office.num_admitted(caller, 10) == 3
    office.clock.now_s += 0.25
    assert office.num_admitted(caller, 10) == 2
    office.clock.now_s += 1_000.0
    assert office.num_admitted(caller, 10) == 3  # a long pause saves up no more than the burst


def test_over_a_long_time_the_rate_is_kept_exactly(office: Office) -> None:
    caller = office.hire("mobile", rate=4.0, burst=1)
    admitted = 0
    for _ in range(1_000):
        admitted += office.num_admitted(caller, 1)
        office.clock.now_s += 0.125  # a binary fraction, so that the sum is exact
    assert admitted == 500


def test_whoever_waits_as_told_is_let_in_and_no_earlier(office: Office) -> None:
    caller = office.hire("mobile", rate=2.0, burst=1)
    office.call(caller)
    with pytest.raises(RateLimited, match="above its 2 requests/s") as raised:
        office.call(caller)
    wait_s = raised.value.retry_after_ms / 1000
    office.clock.now_s += 0.9 * wait_s
    assert office.num_admitted(caller, 1) == 0
    office.clock.now_s += 0.11 * wait_s
    assert office.num_admitted(caller, 1) == 1


def test_requests_at_once_are_counted_until_they_end_however_they_end(office: Office) -> None:
    caller = office.hire("mobile", concurrency=2)
    with ExitStack() as running:
        running.enter_context(office.gate.admit(caller))
        with pytest.raises(KeyError), office.gate.admit(caller):
            raise KeyError
        with office.gate.admit(caller), pytest.raises(RateLimited, match="2 requests at work"):
            office.call(caller)
        office.call(caller)


def test_a_refusal_for_requests_at_once_costs_no_token(office: Office) -> None:
    caller = office.hire("mobile", rate=1.0, burst=2, concurrency=1)
    with office.gate.admit(caller):
        assert office.num_admitted(caller, 5) == 0
    assert office.num_admitted(caller, 5) == 1


def test_one_keys_limits_are_not_anothers(office: Office) -> None:
    first, second = office.hire("first", rate=1.0), office.hire("second", rate=1.0)
    assert office.num_admitted(first, 5) == 1
    assert office.num_admitted(second, 5) == 1


def test_checking_counts_nothing(office: Office) -> None:
    caller = office.hire("mobile", rate=1.0, concurrency=1)
    for _ in range(10):
        office.gate.check(caller)
    office.call(caller)


def test_a_changed_limit_counts_without_forgetting_what_was_used(office: Office) -> None:
    caller = office.hire("mobile", rate=1.0, burst=1)
    office.call(caller)
    with editing(office.path) as entries:
        fields = {name: getattr(entries[0], name) for name in ("name", "sha256", "created")}
        entries[0] = type(entries[0])(**fields, rate=100.0, burst=100)
    office.clock.now_s += 1.5
    assert office.num_admitted(caller, 500) == 100
