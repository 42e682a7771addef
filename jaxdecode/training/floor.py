"""What a training step of EAGLE-3 heads must move at least, per device, by what it is for.

A model of a step without waste, in the dtype of the computation:

  product         its operands are read and its result is written, once; so is a kernel's gradient,
                  however many passes add to it
  attention       queries, keys and values are read, what it makes is written: scores stay on chip,
                  those over a vocabulary too
  all-reduce      its input is read, its result written; added to the stream, the stream is read
                  and written once more
  the rest        norms, activations, rotations: nothing, they are part of what they feed

The target runs forward once, the heads forward and backward; what was written is read again instead
of computed again, scores of attention excepted. All places of a text have keys and values in the
heads' first pass; what else passes do, they do at the places that are compared. Every pass reads
the heads' kernels, but what tokens add to queries, keys and values is made once for all passes.
Kernels are gathered over "data" once, their gradients scattered once, and the optimizer (AdamW
behind a clipped norm) changes its share in place. The target's rows of the draft vocabulary are
taken for granted: they never change.

It is no lower bound for a chip that keeps a whole stream between two products, and XLA does so in
places.
"""

import dataclasses
import re
from typing import NamedTuple

from jaxdecode.dist import rules
from jaxdecode.plan.setup import Setup
from jaxdecode.plan.traffic import Traffic

KINDS = ("target", "heads", "losses", "parameters")


class Bytes(NamedTuple):
    """What is moved.

    Attributes:
        hbm: read from and written to memory.
        wire: sent to other devices.
    """

    hbm: float
    wire: float


@dataclasses.dataclass(frozen=True)
class _Layer:
    """Sizes of a layer on one device; methods count elements.

    Attributes:
        rows: that go through it.
        seen: rows whose keys and values those see, not counting what deeper passes add.
        width: of the stream.
        query: width of the queries.
        keys: width of keys and values together.
        mlp: width inside the MLP.
    """

    rows: int
    seen: int
    width: int
    query: int
    keys: int
    mlp: int

    @property
    def qkv(self) -> int:
        return self.query + self.keys

    @property
    def kernels(self) -> int:
        return self.width * (self.qkv + self.query + 3 * self.mlp)

    @property
    def forward(self) -> int:
        products = (
            (self.width + self.qkv) + (self.query + self.width) + 2 * (self.width + 2 * self.mlp)
        )
        sums = 2 * (2 + 2) * self.width
        attention = 2 * self.rows * self.query + self.seen * self.keys
        return self.rows * (products + sums) + attention + self.kernels

    @property
    def backward(self) -> int:
        into_rows = (
            (self.width + 2 * 2 * self.mlp)  # reads the MLP's two halves for their own gradients
            + (2 * self.mlp + self.width)
            + (self.width + self.query)
            + (self.qkv + self.width)
        )
        into_kernels = (
            (2 * self.mlp + self.width)
            + (self.width + 2 * self.mlp)
            + (self.query + self.width)
            + (self.width + self.qkv)
        )
        # Two all-reduces, each behind a norm, whose input is read too.
        sums = 2 * (2 + 3) * self.width
        attention = 4 * self.rows * self.query + 2 * self.seen * self.keys
        return self.rows * (into_rows + into_kernels + sums) + attention + self.kernels

    @property
    def others(self) -> int:
        """Both ways, of keys and values of rows that are only seen."""
        rows = self.seen - self.rows
        return 3 * rows * (self.width + self.keys)


def eagle3(
    made: Setup, *, length: int, draft_vocab: int, num_passes: int, num_places: int
) -> dict[str, Bytes]:
    """The floor by `KINDS`.

    Args:
        made: target, mesh and rows of a step.
        length: tokens of a row.
        draft_vocab: tokens that can be drafted.
        num_passes: of the objective.
        num_places: of the objective.
    """
    c = made.config
    data, parts = (made.mesh.shape[rules.RULES[name]] for name in ("rows", "kv_heads"))
    texts, width = made.batch // data, c.hidden_size
    layer = _Layer(
        rows=texts * length,
        seen=texts * length,
        width=width,
        query=c.num_heads * c.head_dim // parts,
        keys=2 * c.num_kv_heads * c.head_dim // parts,
        mlp=c.intermediate_size // parts,
    )
    own_layer = dataclasses.replace(layer, rows=texts * num_places)
    stream, places = layer.rows * width, own_layer.rows * width
    fuse, head = 3 * width * width, draft_vocab * width // parts
    spoken = layer.qkv * width
    own = layer.kernels + spoken + fuse

    def summed(elements: int) -> float:
        return 2 * (parts - 1) / parts * elements

    def scattered(elements: int) -> tuple[float, float]:
        """A gradient is written, read, and a share of its sum over "data" written."""
        return (2 + 1 / data) * elements, (data - 1) / data * elements

    # The lookup writes a part of the embeddings, and an all-reduce adds the parts; behind the last
    # layer the head reads all states.
    scoring = c.vocab_size * width // parts + stream
    fusing = 2 * (3 * stream + stream) + fuse
    # Rows of pass j see one more key and value per pass before theirs, and add to its gradient.
    deeper = own_layer.rows * layer.keys * 4 * (num_passes * (num_passes - 1) // 2)
    # What tokens add: made, added in every pass, and its gradient summed. The tokens' own gradient
    # is none but that of their norm's scale.
    both_ways = 2 * (stream + layer.rows * layer.qkv)
    added = num_passes * own_layer.rows * layer.qkv
    added += (layer.rows - own_layer.rows) * layer.keys
    adding = both_ways + spoken + 2 * added
    # The target's states are taken, both scored once; the gradient of the heads' own reads kernel
    # and state again, and is summed.
    scored = (3 + 1) * places + 2 * head + (places + head) + (1 + 2) * places
    own_gradient, head_gradient = scattered(own), scattered(head)
    # In float32, parameters and two moments are read and written, and parameters read to be
    # lowered. Lowered ones are written, and read to be gathered; the gradient is read twice: for
    # the norm of all, and to move.
    size = made.dtype.itemsize
    kernels = own + head
    moving = kernels / data * ((3 * 2 + 1) * 4 / size + 2 + 2)
    elements = {
        "target": (
            4 * stream + c.num_layers * layer.forward + scoring,
            (2 * c.num_layers + 1) * summed(stream),
        ),
        "heads": (
            fusing
            + adding
            + num_passes * (own_layer.forward + own_layer.backward)
            + own_layer.others
            + deeper
            + own_gradient[0],
            # Of what the first pass reads, the gradient comes from all places.
            (4 * num_passes - 1) * summed(places) + summed(stream) + own_gradient[1],
        ),
        "losses": (
            num_passes * scored + head_gradient[0],
            num_passes * summed(places) + head_gradient[1],
        ),
        "parameters": (moving + kernels, (data - 1) / data * kernels),
    }
    return {kind: Bytes(hbm * size, wire * size) for kind, (hbm, wire) in elements.items()}


def moved(traffic: Traffic) -> dict[str, Bytes]:
    """What a compiled step moves, by `KINDS`; the objective's scopes tell them."""
    return {
        kind: Bytes(
            sum(move.bytes for move in traffic.moves if kind_of(move.source) == kind),
            sum(c.wire_bytes for c in traffic.collectives if kind_of(c.source) == kind),
        )
        for kind in KINDS
    }


def kind_of(source: str) -> str:
    """The kind of an operation, as JAX names it; what belongs to none, to the parameters."""
    scope = re.search(r"[(/](target|heads|losses)[)/]", source)
    return scope[1] if scope else KINDS[-1]
