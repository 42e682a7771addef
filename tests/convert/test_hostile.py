"""Damaged and hostile files: typed errors only, at once, and without large allocations."""

import json
import random
import resource
import shutil
import struct
import time

import gguf
import numpy as np
import pytest

from jaxdecode.convert.open import open_source
from jaxdecode.errors import CorruptCheckpointError, JaxdecodeError, UnsupportedError
from tests.convert.gguf_files import tiny_hf, write_gguf
from tests.golden.corpus import tiny_folder

INTERESTING = (0, 1, 2, 8, 12, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)


@pytest.fixture(scope="module")
def good_gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    hf, tensors = tiny_hf("qwen3")
    words = [f"word{i}" for i in range(50)]
    tokens = {"tokenizer.ggml.tokens": (words, gguf.GGUFValueType.ARRAY)}
    write_gguf(path, hf, tensors, kind="Q8_0", fields=tokens)
    return path.read_bytes()


def gguf_header_length(raw, tmp_path):
    path = tmp_path / "whole.gguf"
    path.write_bytes(raw)
    return int(gguf.GGUFReader(path).data_offset)


def mutate(raw, header, rng):
    """Changes one or a few places of the first `header` bytes, or the length of the file."""
    raw = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(header)
        kind = rng.choice(["flip", "byte", "word", "long", "cut", "insert", "remove", "copy"])
        if kind == "flip":
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == "byte":
            raw[at] = rng.randrange(256)
        elif kind == "word":
            raw[at : at + 4] = struct.pack("<I", rng.choice(INTERESTING) % 2**32)
        elif kind == "long":
            raw[at : at + 8] = struct.pack("<Q", rng.choice(INTERESTING))
        elif kind == "cut":
            del raw[rng.choice([at, rng.randrange(len(raw)) if raw else 0]) :]
        elif kind == "insert":
            raw[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == "remove":
            del raw[at : at + rng.randrange(1, 9)]
        else:
            source = rng.randrange(header)
            raw[at : at + 16] = raw[source : source + 16]
        if len(raw) < header:
            break
    return bytes(raw)


def attack(make, rounds, seed):
    """Opens and reads `rounds` mutants; returns how many were refused and how many loaded."""
    rng = random.Random(seed)
    refused = loaded = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(rounds):
        path = make(rng)
        start = time.process_time()
        try:
            source = open_source(path)
            for name in source.dtypes:
                source.read(name)
            loaded += 1
        except JaxdecodeError as error:
            assert str(error)
            refused += 1
        assert time.process_time() - start < 5.0
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300_000, f"{grown} KiB allocated for a file of a few hundred KiB"
    # Both happen: most mutants are unusable, and a harmless change (a token's text) is none.
    assert refused > rounds * 0.5
    assert loaded > 0


def gguf_attack(raw, tmp_path, rounds, seed):
    header = gguf_header_length(raw, tmp_path)
    path = tmp_path / "m.gguf"

    def make(rng):
        path.write_bytes(mutate(raw, header, rng))
        return path

    attack(make, rounds, seed)


def safetensors_attack(tmp_path, rounds, seed):
    folder = shutil.copytree(tiny_folder("qwen3"), tmp_path / "hf")
    file = folder / "model.safetensors"
    raw, config = file.read_bytes(), (folder / "config.json").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])

    def make(rng):
        target = rng.choice(["weights", "weights", "weights", "config"])
        file.write_bytes(mutate(raw, 8 + length, rng) if target == "weights" else raw)
        (folder / "config.json").write_bytes(
            mutate(config, len(config), rng) if target == "config" else config
        )
        return folder

    attack(make, rounds, seed)


def test_mutated_gguf_headers(good_gguf, tmp_path):
    gguf_attack(good_gguf, tmp_path, 200, seed=0)


def test_mutated_safetensors_headers(tmp_path):
    safetensors_attack(tmp_path, 200, seed=0)


@pytest.mark.slow
def test_mutated_gguf_headers_2000_times(good_gguf, tmp_path):
    gguf_attack(good_gguf, tmp_path, 2000, seed=1)


@pytest.mark.slow
def test_mutated_safetensors_headers_2000_times(tmp_path):
    safetensors_attack(tmp_path, 2000, seed=1)


def header(*, version=3, tensors=0, fields=0, body=b""):
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, fields) + body + b"\0" * 64


def text(value):
    return struct.pack("<Q", len(value)) + value


U32, STRING, ARRAY = (struct.pack("<I", x) for x in (4, 8, 9))
ONE = struct.pack("<I", 1)
HUGE = struct.pack("<Q", 2**63)


@pytest.mark.parametrize(
    ("raw", "error", "words"),
    [
        (b"", CorruptCheckpointError, "too few"),
        (b"GGUF", CorruptCheckpointError, "too few"),
        (b"GGML" + b"\0" * 99, CorruptCheckpointError, "magic"),
        (header(version=1), UnsupportedError, "version 1"),
        (header(version=3 << 24), UnsupportedError, "version"),
        (header(tensors=2**60), CorruptCheckpointError, "cannot fit"),
        (header(fields=2**60), CorruptCheckpointError, "cannot fit"),
        (header(fields=1, body=HUGE), CorruptCheckpointError, "string of"),
        (header(fields=1, body=text(b"\xff\xfe") + U32 + ONE), CorruptCheckpointError, "UTF-8"),
        (header(fields=1, body=text(b"k") + struct.pack("<I", 77)), CorruptCheckpointError, "77"),
        (header(fields=1, body=text(b"k") + ARRAY + U32 + HUGE), CorruptCheckpointError, "bytes"),
        (header(fields=1, body=text(b"k") + ARRAY + STRING + HUGE), CorruptCheckpointError,
         "strings"),
        (header(fields=1, body=text(b"k") + ARRAY + ARRAY + HUGE), CorruptCheckpointError,
         "unsupported type 9"),
        (header(fields=2, body=(text(b"k") + U32 + ONE) * 2), CorruptCheckpointError, "twice"),
        (header(fields=1, body=text(b"general.alignment") + U32 + struct.pack("<I", 3)),
         CorruptCheckpointError, "power of two"),
        (header(tensors=1, body=text(b"t") + struct.pack("<I", 9)), CorruptCheckpointError,
         "9 dimensions"),
        (header(tensors=1, body=text(b"t") + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0)),
         CorruptCheckpointError, "shape"),
        (header(tensors=1, body=text(b"t") + struct.pack("<IQIQ", 1, 4, 99, 0)),
         CorruptCheckpointError, "unknown type 99"),
        (header(tensors=1, body=text(b"t") + struct.pack("<IQIQ", 1, 33, 8, 0)),
         CorruptCheckpointError, "no multiple"),
        (header(tensors=1, body=text(b"t") + struct.pack("<IQIQ", 1, 4, 0, 2**40)),
         CorruptCheckpointError, "truncated"),
        (header(tensors=1, body=text(b"t") + struct.pack("<IQIQ", 1, 4, 0, 1)),
         CorruptCheckpointError, "multiple of 32"),
        (header(tensors=2, body=b"".join(text(x) + struct.pack("<IQIQ", 1, 4, 0, 0)
                                         for x in (b"a", b"b"))),
         CorruptCheckpointError, "overlaps"),
        (header(tensors=2, body=(text(b"a") + struct.pack("<IQIQ", 1, 4, 0, 0)) * 2),
         CorruptCheckpointError, "twice"),
    ],
)  # fmt: skip
def test_each_gguf_check(raw, error, words, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    with pytest.raises(error, match=words):
        open_source(path)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 50) + b"{",
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 5) + b"[[[[[",
        struct.pack("<Q", 2) + b"{}trailing",
        struct.pack("<Q", 100000) + b"[" * 100000,
    ],
)
def test_hostile_safetensors(raw, tmp_path):
    folder = shutil.copytree(tiny_folder("qwen3"), tmp_path / "hf")
    (folder / "model.safetensors").write_bytes(raw)
    with pytest.raises(CorruptCheckpointError):
        open_source(folder)


@pytest.mark.parametrize("raw", [b"", b"nul", b"[" * 100000, b"\xff\xfe", b"3", b'{"a": 1e999}'])
def test_hostile_config(raw, tmp_path):
    folder = shutil.copytree(tiny_folder("qwen3"), tmp_path / "hf")
    (folder / "config.json").write_bytes(raw)
    with pytest.raises(JaxdecodeError):
        open_source(folder)


def test_a_file_that_shrinks_while_it_is_read(good_gguf, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(good_gguf)
    source = open_source(path)
    path.write_bytes(good_gguf[: len(good_gguf) // 2])
    with pytest.raises(CorruptCheckpointError, match="shorter"):
        for name in source.dtypes:
            source.read(name)


def test_infinite_scales_do_not_crash(good_gguf, tmp_path):
    header_length = gguf_header_length(good_gguf, tmp_path)
    path = tmp_path / "m.gguf"
    path.write_bytes(good_gguf[:header_length] + b"\xff" * (len(good_gguf) - header_length))
    source = open_source(path)
    assert not np.isfinite(source.read("embed.embedding")).all()


def test_a_model_with_absurd_numbers_is_refused_at_once(tmp_path):
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    for key in ("num_hidden_layers", "vocab_size", "hidden_size", "max_position_embeddings"):
        (folder / "config.json").write_text(json.dumps(config | {key: 10**30}))
        start = time.process_time()
        with pytest.raises(CorruptCheckpointError):
            open_source(folder)
        assert time.process_time() - start < 1
