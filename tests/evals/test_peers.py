"""Other libraries as lines of `bench`: taking turns, what is said of their tokens, what fails."""

import sys

import pytest

from jaxdecode import api
from jaxdecode.errors import UnsupportedError
from jaxdecode.evals import bench, peer_worker, peers, summary
from tests import toys

CASES = [bench.Case("x:1", "a", [3, 1, 4, 1, 5], 0), bench.Case("x:2", "a", [9, 2, 6], 0)]
# Speaks as a peer does, and answers every prompt with the same token.
STUB = """
import json, sys
setup = json.loads(sys.stdin.readline())
assert setup["dtype"] == "float32" and setup["threads"] >= 1
print(json.dumps({"version": "stub 1"}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    tokens = [[7] * job["max_new_tokens"] for _ in job["prompts"]]
    if setup["options"].get("fails"):
        print(json.dumps({"error": "ValueError: no"}), flush=True)
    else:
        print(json.dumps({"tokens": tokens, "seconds": 0.5}), flush=True)
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    script = tmp_path / "stub.py"
    script.write_text(STUB)
    monkeypatch.setattr(peers, "_WORKER", script)
    monkeypatch.setattr(peers, "_model", lambda *args: tmp_path)
    return tmp_path


def measured(lm, lines, found, repeats=2):
    plan = bench.Plan(lines=bench.parse_lines("ar"), max_new_tokens=4, repeats=repeats, peers=lines)
    given = bench.Given(peers=found)
    return plan, list(bench.measure(lm, plan, CASES, given=given))


def test_a_peer_takes_turns_and_is_compared_without_a_promise(stub):
    lm, lines = toys.model(), peers.parse("transformers")
    with peers.started(lines, lm, stub, None) as found:
        assert found["transformers"].version == "stub 1"
        plan, records = measured(lm, lines, found)
    assert records[0]["order"] == [["ar", "transformers"], ["transformers", "ar"]]
    line = records[0]["lines"]["transformers"]
    assert line["seconds"] == [0.5, 0.5] and line["rows"][0]["tokens"] == [4, 4]
    assert line["rows"][0]["nfe"] == [None, None] and line["rows"][0]["equal"] == bench.OTHER
    labels = [line.label for line in plan.runners]
    row = summary.summarize(records, labels)[-1]
    assert row["line"] == "transformers" and row["speedup"] is not None
    assert row["other"] == 2 and row["differ"] == 0 and row["acceptance_length"] is None
    assert summary.compared(records, {"ar": "ar"}) == []


def test_equal_tokens_of_a_peer_are_seen(stub):
    lm, lines = toys.model(), peers.parse("transformers")
    ours = api.generate(lm, [case.tokens for case in CASES], max_new_tokens=4).tokens

    class Echo:
        def generate(self, prompts, max_new_tokens, end_tokens):
            return [ours[[case.tokens for case in CASES].index(row)] for row in prompts], 1.0

    _, records = measured(lm, lines, {"transformers": Echo()}, repeats=1)
    rows = [record["lines"]["transformers"]["rows"][0] for record in records]
    assert [row["equal"] for row in rows] == [bench.EQUAL, bench.EQUAL]


def test_what_a_peer_says_when_it_fails_is_the_message(stub):
    lm, lines = toys.model(), peers.parse("transformers:fails=true")
    with (
        peers.started(lines, lm, stub, None) as found,
        pytest.raises(peers.PeerError, match="ValueError: no.*--peer-python"),
    ):
        measured(lm, lines, found)


def test_a_library_or_a_python_that_is_missing_is_named(tmp_path):
    setup = {"engine": "llama-cpp", "model": "", "max_length": 8, "threads": 1, "options": {}}
    with pytest.raises(peers.PeerError, match="No module named 'llama_cpp'"):
        peers.Peer(sys.executable, setup)
    with pytest.raises(peers.PeerError, match="cannot be started"):
        peers.Peer(str(tmp_path / "python"), setup)


def test_llama_cpp_wants_a_gguf(tmp_path):
    lines = peers.parse("llama-cpp")
    with (
        pytest.raises(UnsupportedError, match=r"\.gguf"),
        peers.started(lines, toys.model(), tmp_path, None),
    ):
        pass


def test_padding_after_the_end_is_cut():
    assert peer_worker.cut([5, 2, 0, 0], [2]) == [5, 2]
    assert peer_worker.cut([5, 6], [2]) == [5, 6]
