# SPDX-License-Identifier: Apache-2.0
"""Driver calls: values keep their types, errors their meaning, calls their order, and cancellation arrives."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from drivers_for_tests import EveryKind, Mode, Point, Reading

from jumpstarter.common.exceptions import DriverError, DriverInvalidArgument, DriverMethodNotImplemented
from jumpstarter.common.utils import serve


@pytest.fixture
def driver() -> EveryKind:
    return EveryKind()


@pytest.fixture
def client(driver: EveryKind) -> Iterator[Any]:
    with serve(driver) as client:
        yield client


VALUES = [
    None,
    True,
    0,
    1,
    -(2**63),
    2**70 + 1,
    1.0,
    1.5,
    "",
    "žluťoučký",
    b"",
    b"\xff\x00\xfe",
    [],
    [1, 2.0, [b"\x80"]],
    {},
    {"a": {"b": [None, True, 3]}},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("method", ["echo", "echo_async"])
def test_values_come_back_equal_and_of_the_same_type(client: Any, method: str, value: Any) -> None:
    back = client.call(method, value)
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value)


def test_arguments_are_converted_to_the_annotations(client: Any) -> None:
    got = client.call(
        "kinds", 1, 2, b"\xff", Mode.FAST, datetime(2026, 1, 2), timedelta(seconds=3), uuid4(), Point(1, 2),
        Reading(volts=1, count=2), many=[1, 2],
    )  # fmt: skip
    assert got == [
        "int", "float", "bytes", "Mode", "datetime", "timedelta", "UUID", "Point", "Reading", "NoneType", "list",
        "[1, 2]",
    ]  # fmt: skip


def test_integers_of_a_peer_that_only_knows_floats_arrive_as_integers(driver: EveryKind) -> None:
    from jumpstarter.driver.signature import signature_of

    args, _ = signature_of(EveryKind.count).bind([3.0], {})
    assert args == (3,)
    assert type(args[0]) is int
    with pytest.raises(ValueError, match='argument "n": expected an integer, got 1.5'):
        signature_of(EveryKind.count).bind([1.5], {})


def test_a_type_that_cannot_be_checked_is_told_to_the_author_of_the_driver(caplog: pytest.LogCaptureFixture) -> None:
    from typing import TypedDict

    from jumpstarter.driver.signature import signature_of

    class Filter(TypedDict):
        can_id: int

    def apply(self: object, filters: list[Filter]) -> None: ...

    apply.__annotations__["filters"] = list[Filter]  # as without postponed annotations
    args, _ = signature_of(apply).bind([[{"can_id": 3.0}]], {})
    assert args == ([{"can_id": 3}],)
    if sys.version_info < (3, 12):  # where pydantic wants another TypedDict
        assert type(args[0][0]["can_id"]) is float and "typing_extensions.TypedDict" in caplog.text
    else:
        assert type(args[0][0]["can_id"]) is int and not caplog.text


def test_results_that_are_models_travel_as_plain_data(client: Any) -> None:
    assert client.call("reading") == {"volts": 5.0, "count": 3, "at": None}


def test_wrong_arguments_are_refused_before_the_driver_runs(client: Any) -> None:
    for args, text in [((), "missing a required argument: 'n'"), (("x",), 'argument "n": expected an integer')]:
        with pytest.raises(DriverInvalidArgument, match=text):
            list(client.streamingcall("count", *args))
    with pytest.raises(DriverInvalidArgument, match="unexpected keyword argument 'nope'"):
        client.call("echo", nope=1)


@pytest.mark.parametrize(
    ("kind", "code", "error"),
    [
        ("value", "INVALID_ARGUMENT", DriverInvalidArgument),
        ("not_implemented", "UNIMPLEMENTED", DriverMethodNotImplemented),
        ("timeout", "DEADLINE_EXCEEDED", DriverError),
        ("connection", "UNAVAILABLE", DriverError),
        ("os", "INTERNAL", DriverError),
        ("other", "UNKNOWN", DriverError),
    ],
)
def test_exceptions_of_a_driver_become_their_status(
    client: Any, kind: str, code: str, error: type[DriverError]
) -> None:
    with pytest.raises(error) as caught:
        client.call("fail", kind)
    assert type(caught.value) is error
    assert caught.value.code == code
    assert caught.value.method == "fail"


def test_missing_and_private_methods_are_not_found_and_the_error_lists_what_there_is(client: Any) -> None:
    for name in ("nope", "_enter", "client", "close", "__init__"):
        with pytest.raises(DriverMethodNotImplemented, match=f'has no method "{name}"; it has: .*echo') as caught:
            client.call(name)
        assert caught.value.code == "NOT_FOUND"


def test_calls_of_one_driver_run_one_after_the_other(client: Any, driver: EveryKind) -> None:
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda _: client.call("exclusive"), range(5)))
    assert driver.most_running == 1


def test_concurrent_methods_overlap(client: Any) -> None:
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: client.call("meet"), range(2))) == [True, True]


@pytest.mark.parametrize("method", ["slow", "slow_async"])
def test_cancellation_reaches_the_driver(client: Any, driver: EveryKind, method: str) -> None:
    future = client.portal.start_task_soon(lambda: client.call_async(method))
    assert driver.started.wait(60)
    future.cancel()
    assert driver.seen_cancel.wait(60)
    assert client.call("echo", "free again") == "free again"


def test_a_plain_function_keeps_its_turn_until_it_returns_even_when_its_caller_left(
    client: Any, driver: EveryKind
) -> None:
    future = client.portal.start_task_soon(lambda: client.call_async("slow"))
    assert driver.started.wait(60)
    future.cancel()
    client.call("echo")  # waits for its turn
    assert driver.seen_cancel.is_set()


@pytest.mark.parametrize("method", ["count", "count_async"])
@pytest.mark.parametrize("n", [0, 1, 1000])
def test_streamed_items_arrive_complete_and_in_order(client: Any, method: str, n: int) -> None:
    assert list(client.streamingcall(method, n)) == list(range(n))


def test_a_blocking_generator_holds_up_nobody(client: Any) -> None:
    items = client.streamingcall("blocking_generator")
    assert next(items) == "started"
    assert client.call("echo_async", 1) == 1  # waits for ever when it is held up
    items.close()


def test_closing_a_stream_of_items_ends_the_generator(client: Any, driver: EveryKind) -> None:
    items = client.streamingcall("blocking_generator")
    next(items)
    items.close()
    assert driver.seen_cancel.wait(60)


def test_items_before_an_error_arrive_and_then_the_error(client: Any) -> None:
    got = []
    with pytest.raises(DriverError, match="lost after one"):
        for item in client.streamingcall("half"):
            got.append(item)
    assert got == [1]


def test_a_blocking_call_inside_the_event_loop_is_refused_instead_of_hanging(client: Any) -> None:
    with pytest.raises(RuntimeError, match="use call_async"):
        client.portal.call(client.call, "echo", 1)


def test_many_threads_share_one_client(client: Any) -> None:
    errors: list[BaseException] = []

    def work(n: int) -> None:
        try:
            for i in range(50):
                assert client.call("echo_async", n * 1000 + i) == n * 1000 + i
        except BaseException as error:  # noqa: BLE001 (reported below)
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_methods_are_described_with_their_parameters_and_effect(client: Any) -> None:
    assert client.methods["kinds"].readonly
    assert not client.methods["echo"].readonly
    assert client.methods["echo"].doc == "The argument."
    assert client.methods["count"].kind == "stream"
    assert client.methods["connect"].kind == "bytes"
    assert str(client.methods["pour"]).startswith("pour(target: Any, size: int, fail: bool = False)")
    assert not client.has_method("close")
