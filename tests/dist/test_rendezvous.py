"""Processes meet or say why not, within the timeout; threads stand in for processes."""

import concurrent.futures
import contextlib
import json
import socket
import threading
import time

import pytest

from jaxdecode.dist import rendezvous
from jaxdecode.dist.rendezvous import Member, meet
from jaxdecode.errors import HostsError


@pytest.fixture
def address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[:2]


def member(process_id, num_processes=2, host=None, **facts):
    host = f"host{process_id}" if host is None else host
    return Member(process_id=process_id, num_processes=num_processes, host=host, facts=facts)


def outcomes(address, *members, timeout=10.0):
    """What each member gets: None or the error's text."""

    def one(who):
        try:
            meet(address, who, timeout)
        except HostsError as error:
            return str(error)
        return None

    with concurrent.futures.ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(one, members))


def hello(address, text, *, wait=0.0):
    """Connects like a program that is none of ours, says something and goes."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError):
            with socket.create_connection(address) as line:
                line.sendall(text)
                time.sleep(wait)
            return
        time.sleep(0.02)


def greeting(who):
    content = {"protocol": rendezvous._PROTOCOL, "seconds": 60, **vars(who)}
    return json.dumps(content).encode() + b"\n"


def test_all_who_agree_go_on_and_the_port_is_free_again(address):
    begin = time.monotonic()
    assert outcomes(address, *(member(i, 3, seed="0") for i in (2, 1, 0))) == [None] * 3
    assert time.monotonic() - begin < 5
    socket.create_server(address).close()


def test_who_is_missing_is_named_in_time(address):
    begin = time.monotonic()
    told = outcomes(address, member(0, 4), member(2, 4), timeout=0.5)
    assert time.monotonic() - begin < 3
    assert told[0] == told[1] and "2 of 4 processes joined in time (0.5 s)" in told[0]
    assert "missing: processes 1, 3." in told[0]
    assert "Joined: process 0 on host0, process 2 on host2." in told[0]


def test_all_are_told_when_the_first_gives_up(address):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        patient = pool.submit(outcomes, address, member(0, 3), timeout=60)
        begin = time.monotonic()
        hasty = outcomes(address, member(1, 3), timeout=0.5)
        assert hasty == patient.result() and "missing: process 2." in hasty[0]
        assert time.monotonic() - begin < 3


def test_process_0_is_missing(address):
    begin = time.monotonic()
    (told,) = outcomes(address, member(1), timeout=0.5)
    assert time.monotonic() - begin < 3
    assert told.startswith("process 1 on host1 could not reach process 0 at 127.0.0.1:")
    assert "within 0.5 s" in told and "refused" in told


def test_differences_are_named_with_their_hosts(address):
    members = [member(i, 4, seed="0", dtype="7" if i == 3 else "0") for i in range(4)]
    told = outcomes(address, *members)
    assert (
        told
        == ["dtype differs: 0 on processes 0, 1, 2 (as on host0), 7 on process 3 on host3."] * 4
    )
    told = outcomes(address, member(0, temperature="0.5"), member(1))
    assert (
        told
        == ["temperature differs: 0.5 on process 0 on host0, nothing on process 1 on host1."] * 2
    )


def test_missing_and_different_are_told_together(address):
    told = outcomes(address, member(0, 3, seed="0"), member(1, 3, seed="1"), timeout=0.5)
    assert "missing: process 2" in told[0] and "seed differs" in told[0]


def test_an_id_given_twice(address):
    told = outcomes(address, member(0, 3), member(1, 3, host="a"), member(1, 3, host="b"))
    assert len(set(told)) == 1 and told[0].startswith("process id 1 was given twice: process 1 on ")
    assert "process 1 on a" in told[0] and "process 1 on b" in told[0]


def test_another_number_of_processes(address):
    told = outcomes(address, member(0, 2), member(2, 3))
    assert (
        told[0]
        == told[1]
        == (
            "the number of processes differs: process 0 on host0 expects 2, process 2 on host2 "
            "expects 3."
        )
    )


def test_a_taken_port_is_an_error_at_once(address):
    with socket.create_server(address):
        (told,) = outcomes(address, member(0))
    assert f"cannot listen on port {address[1]}" in told and "another process 0" in told


STRANGERS = (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b"\xff\n", b"", b'{"a": 1}\n')


@pytest.mark.parametrize("text", STRANGERS)
def test_strangers_are_ignored(address, text):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(outcomes, address, member(0))
        hello(address, text)
        assert outcomes(address, member(1)) == [None] == first.result()


def test_a_silent_stranger_costs_no_more_than_its_turn(address, monkeypatch):
    monkeypatch.setattr(rendezvous, "_LINE_SECONDS", 0.3)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(outcomes, address, member(0))
        silent = pool.submit(hello, address, b"", wait=1.5)
        time.sleep(0.2)
        assert outcomes(address, member(1)) == [None] == first.result()
        assert not silent.done()


def test_who_was_ended_while_waiting_does_not_count(address):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(outcomes, address, member(0, 3), timeout=0.7)
        hello(address, greeting(member(1, 3)))
        told = outcomes(address, member(2, 3)) + first.result()
    assert told[0] == told[1] and "missing: process 1." in told[0]


def test_who_was_ended_and_started_again_counts_once(address):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(outcomes, address, member(0, 3))
        hello(address, greeting(member(1, 3)))
        time.sleep(0.1)
        assert outcomes(address, member(1, 3), member(2, 3)) == [None, None]
        assert first.result() == [None]


def test_process_0_ends_before_it_answers(address):
    def short_life():
        with socket.create_server(address) as server:
            server.accept()[0].close()

    server = threading.Thread(target=short_life)
    server.start()
    (told,) = outcomes(address, member(1))
    server.join()
    assert "ended, or is no process of jaxdecode" in told


def test_process_0_does_not_answer(address, monkeypatch):
    monkeypatch.setattr(rendezvous, "_GRACE_SECONDS", 0.1)
    with socket.create_server(address):
        (told,) = outcomes(address, member(1), timeout=0.4)
    assert "answers, but not all 2 processes joined it within 0.4 s" in told
