"""Parameters read in part: right for every format, and from no more than their own pieces."""

import numpy as np
import pytest

from jaxdecode.convert import pieces
from jaxdecode.convert.open import open_source
from jaxdecode.convert.pipeline import convert
from jaxdecode.dist import axes
from jaxdecode.errors import CorruptCheckpointError
from jaxdecode.models.config import param_shapes
from tests.convert.gguf_files import tiny_hf, write_gguf
from tests.golden.corpus import TINY, tiny_folder

GATE_UP = "layers.1.mlp.gate_up.kernel"


def in_pieces(source, folder, monkeypatch, size=256):
    monkeypatch.setattr(pieces, "_PIECE_BYTES", size)
    return convert(source, folder, progress=False)


def parts(length):
    """Whole, halves, and bounds that fall within a piece."""
    bounds = {(0, length), (0, length // 2), (length // 2, length), (1, length), (0, length - 1)}
    return [slice(*pair) for pair in sorted(bounds) if pair[0] < pair[1]]


def check_parts(source):
    for name, shape in param_shapes(source.config).items():
        whole, axis = source.read(name), axes.split_of(name, len(shape)) or 0
        assert whole.shape == shape
        for part in parts(shape[axis]):
            wanted = whole[(slice(None),) * axis + (part,)]
            assert np.array_equal(source.read(name, part), wanted), (name, part)


@pytest.mark.parametrize("name", TINY)
def test_a_part_is_that_part_of_the_whole(name, tmp_path, monkeypatch):
    theirs = open_source(tiny_folder(name))
    check_parts(theirs)
    ours = open_source(in_pieces(tiny_folder(name), tmp_path / "ours", monkeypatch))
    check_parts(ours)
    for param in theirs.dtypes:
        assert np.array_equal(ours.read(param), theirs.read(param)), param


def test_a_part_of_a_gguf_file_and_of_bfloat16(tmp_path, monkeypatch):
    write_gguf(tmp_path / "m.gguf", *tiny_hf("llama"))
    check_parts(open_source(tmp_path / "m.gguf"))
    monkeypatch.setattr(pieces, "_PIECE_BYTES", 256)
    for to in ("orbax", "safetensors"):
        folder = tmp_path / to
        convert(tiny_folder("llama"), folder, to=to, dtype="bfloat16", progress=False)
        check_parts(open_source(folder))


def test_only_the_pieces_that_are_read_are_opened(tmp_path, monkeypatch):
    folder = in_pieces(tiny_folder("llama"), tmp_path / "ours", monkeypatch)
    damaged = folder / "params" / "0000" / f"{GATE_UP}.7" / "0.0.0"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    source = open_source(folder)
    assert source.read(GATE_UP, slice(0, 35)).shape == (32, 2, 35)
    with pytest.raises(CorruptCheckpointError, match=rf"{GATE_UP}\.7"):
        source.read(GATE_UP, slice(0, 36))
    with pytest.raises(CorruptCheckpointError, match="SHA-256"):
        source.read(GATE_UP)


def test_writing_says_nothing(tmp_path, caplog):
    convert(tiny_folder("llama"), tmp_path / "ours", progress=False)
    assert caplog.messages == []


def test_how_many_pieces():
    def count(name, *shape):
        return pieces.count(name, shape, "bfloat16")

    # Llama 3 8B: none below 4 MiB, none more than heads allow, no more than 64.
    assert count("layers.0.attn_norm.scale", 4096) == 1
    assert count("layers.0.attn.qkv.kernel", 4096, 8, 6, 128) == 8
    assert count("layers.0.attn.o.kernel", 4096, 4096) == 8
    assert count("layers.0.mlp.gate_up.kernel", 4096, 2, 14336) == 32
    assert count("embed.embedding", 128256, 4096) == 64
    # SmolLM2: only its vocabulary is large.
    assert count("layers.0.mlp.gate_up.kernel", 576, 2, 1536) == 1
    assert count("embed.embedding", 49152, 576) == 8


def test_forged_pieces_are_typed_errors(tmp_path, monkeypatch):
    from jaxdecode.convert.checkpoint import MANIFEST, _encode, read_manifest

    folder = in_pieces(tiny_folder("llama"), tmp_path / "ours", monkeypatch)
    body = read_manifest(folder)
    counts = body["pieces"]
    assert counts[GATE_UP] == 8
    for forged in (
        counts | {GATE_UP: 3},
        counts | {GATE_UP: 4},
        counts | {GATE_UP: 16},
        counts | {GATE_UP: 0},
        counts | {"embed.embedding": 96},
        counts | {GATE_UP: True},
        counts | {"final_norm.scale": 2},
        {GATE_UP: 8},
        [],
    ):
        (folder / MANIFEST).write_bytes(_encode(body | {"pieces": forged}))
        with pytest.raises(CorruptCheckpointError):
            open_source(folder).read(GATE_UP)
