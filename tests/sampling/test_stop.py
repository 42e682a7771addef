import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdecode.errors import InputError
from jaxdecode.sampling import stop as stop_module
from jaxdecode.sampling.stop import StopFilter, compile_stop, cut_text

LETTERS = st.text("abé ", min_size=1, max_size=6)
STOPS = st.lists(LETTERS, max_size=4)
VOCABS = st.lists(st.binary(max_size=4).map(lambda raw: bytes(b"ab \xc3\xa9"[x % 5] for x in raw)))


def naive_hit(tokens, token_bytes, stop):
    """Index of the token that completes a stop string, by searching all the text so far."""
    text = b""
    for index, token in enumerate(tokens):
        text += token_bytes[token]
        if any(string.encode() in text for string in stop):
            return index
    return None


def automaton_hit(tokens, table):
    next_state = np.asarray(table.next_state)
    state = 0
    for index, token in enumerate(tokens):
        state = next_state[state, token]
        if state == table.match_state:
            return index
    return None


@settings(max_examples=200, deadline=None)
@given(STOPS, VOCABS.filter(bool), st.data())
def test_automaton_equals_search_in_the_joined_bytes(stop, token_bytes, data):
    tokens = data.draw(st.lists(st.integers(0, len(token_bytes) - 1), max_size=25))
    table = compile_stop(stop, token_bytes, len(token_bytes))
    assert automaton_hit(tokens, table) == naive_hit(tokens, token_bytes, stop)


@settings(max_examples=50, deadline=None)
@given(STOPS, VOCABS.filter(bool))
def test_pairs_followed_in_small_groups_give_the_same_table(stop, token_bytes):
    whole = compile_stop(stop, token_bytes, len(token_bytes)).next_state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stop_module, "_PAIRS", 2)
        parts = compile_stop(stop, token_bytes, len(token_bytes)).next_state
    np.testing.assert_array_equal(whole, parts)


def test_the_comparison_can_fail():
    table = compile_stop(["ab"], [b"a", b"b"], 2)
    assert automaton_hit([0, 1], table) != naive_hit([0, 1], [b"a", b"b"], ["ba"])


def test_match_is_absorbing_and_padding_rows_do_not_change_the_shape():
    tables = [compile_stop(stop, [b"a", b"b", b""], 5) for stop in ([], ["ab"], ["abba", "bb"])]
    assert {table.next_state.shape for table in tables} == {(16, 5)}
    for table in tables:
        assert table.next_state.dtype == np.int16
        assert (np.asarray(table.next_state)[-1] == table.match_state).all()
        # Tokens without bytes, and rows past the tokenizer, leave every state alone.
        np.testing.assert_array_equal(table.next_state[:, 2:], np.arange(16)[:, None] * np.ones(3))


def test_other_stop_strings_compile_nothing_new():
    traces = []

    @jax.jit
    def run(table, state, token):
        traces.append(1)
        state = table.next_state[state, token]
        return state, state == table.match_state

    start = np.zeros(2, np.int16)
    for stop, hits in ([["a"], [True, False]], [["b"], [False, True]], [["ab"], [False, False]]):
        _, hit = run(compile_stop(stop, [b"a", b"b"], 2), start, np.array([0, 1]))
        assert hit.tolist() == hits
    assert len(traces) == 1


def test_bytes_of_one_character_split_over_tokens():
    token_bytes = [b"\xf0\x9f", b"\x98\x80", b"x"]
    table = compile_stop(["😀"], token_bytes, 3)
    assert automaton_hit([2, 0, 1, 2], table) == 2
    assert automaton_hit([0, 2, 1], table) is None


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ([""], r"stop\[0\] is empty"),
        (["a", ""], r"stop\[1\] is empty"),
        ("abc", "must be a list"),
        ([3], r"stop\[0\] must be a string"),
        (["\ud800"], r"stop\[0\] has half"),
        (["a" * 30_001], "30001 bytes"),
        (["é" * 8_000, "x" * 14_001], "30001 bytes"),
    ],
)
def test_unusable_stop_strings(stop, message):
    with pytest.raises(InputError, match=message):
        compile_stop(stop, [b"a"], 1)
    with pytest.raises(InputError, match=message):
        StopFilter(stop)


def test_the_longest_possible_strings_and_too_large_a_table():
    table = compile_stop(["a" * 30_000], [b"a" * 100, b"a"], 2)
    assert automaton_hit([0] * 400, table) == 299
    assert automaton_hit([1] + [0] * 299, table) is None
    with pytest.raises(InputError, match="1024 states x 600000 tokens"):
        compile_stop(["a" * 600], [b"a"], 600_000)


def naive_cut(text, stop):
    """Reads character by character; cuts at the longest stop string that the first hit ends."""
    for end in range(1, len(text) + 1):
        hits = [string for string in stop if text[:end].endswith(string)]
        if hits:
            return text[: end - max(map(len, hits))], True
    return text, False


TEXTS = st.text("abé ", max_size=30)


@settings(max_examples=200, deadline=None)
@given(TEXTS, STOPS)
def test_cut_text(text, stop):
    assert cut_text(text, stop) == naive_cut(text, stop)[0]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("abé ", max_size=5), max_size=10), STOPS)
def test_filter_never_leaks_and_loses_nothing(pieces, stop):
    filtered = StopFilter(stop)
    shown, seen = "", ""
    for piece in pieces:
        seen += piece
        shown += filtered.push(piece)
        final, stopped = naive_cut("".join(pieces), stop)
        assert final.startswith(shown)
        # What is held back is a beginning of a stop string: nothing is kept without need.
        held = naive_cut(seen, stop)[0][len(shown) :]
        assert not held or any(string.startswith(held) for string in stop)
        # What is shown can never become part of a stop string.
        assert not any(
            shown.endswith(string[:length])
            for string in stop
            for length in range(1, len(string))
            if shown == seen
        )
    assert shown + filtered.flush() == naive_cut(seen, stop)[0]
    assert filtered.stopped == naive_cut(seen, stop)[1]


def test_automaton_and_text_stop_at_the_same_token():
    rng = np.random.default_rng(0)
    token_bytes = [b"a", b"b", b"ab", b"ba", b" ", b"aab"]
    for _ in range(200):
        stop = ["".join(rng.choice(list("ab "), rng.integers(1, 5))) for _ in range(2)]
        table = compile_stop(stop, token_bytes, len(token_bytes))
        tokens = rng.integers(0, len(token_bytes), 20)
        filtered = StopFilter(stop)
        by_text = None
        for index, token in enumerate(tokens):
            filtered.push(token_bytes[token].decode())
            if filtered.stopped:
                by_text = index
                break
        assert automaton_hit(tokens, table) == by_text
