"""The reader of compiled programs: on programs counted by hand, and on compiled ones."""

import jax
import jax.numpy as jnp
import pytest

from jaxdecode.plan import hlo, traffic

# A loop of 4 trips over stacked weights: the body slices one [1, 256] row of HBM into VMEM, adds
# to a VMEM carry, and writes a [1, 256] row of a stacked HBM result in place.
LOOP = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[4,256]{1,0})->f32[4,256]{1,0}}

%slicing (p0: f32[4,256], p1: s32[]) -> f32[1,256] {
  %p0 = f32[4,256]{1,0:T(4,128)} parameter(0)
  %p1 = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %row = f32[1,256]{1,0:T(1,128)S(1)} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,256}
}

%writing (q0: f32[4,256], q1: f32[1,256], q2: s32[]) -> f32[4,256] {
  %q0 = f32[4,256]{1,0:T(4,128)} parameter(0)
  %q1 = f32[1,256]{1,0:T(1,128)S(1)} parameter(1)
  %q2 = s32[]{:T(128)S(6)} parameter(2)
  %none = s32[]{:T(128)} constant(0)
  ROOT %put = f32[4,256]{1,0:T(4,128)} dynamic-update-slice(%q0, %q1, %q2, %none)
}

%body (state: (s32[], f32[4,256], f32[4,256])) -> (s32[], f32[4,256], f32[4,256]) {
  %state = (s32[]{:T(128)}, f32[4,256]{1,0:T(4,128)}, /*index=2*/f32[4,256]{1,0:T(4,128)}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%state), index=0
  %weights = f32[4,256]{1,0:T(4,128)} get-tuple-element(%state), index=1
  %out = f32[4,256]{1,0:T(4,128)} get-tuple-element(%state), index=2
  %layer = f32[1,256]{1,0:T(1,128)S(1)} fusion(%weights, %i), kind=kLoop, calls=%slicing
  %sum = f32[1,256]{1,0:T(1,128)S(1)} all-reduce(%layer), channel_id=1, replica_groups=[2,8]<=[16], to_apply=%plus, metadata={op_name="jit(f)/while/body/sum"}
  %next = f32[4,256]{1,0:T(4,128)} fusion(%out, %sum, %i), kind=kLoop, calls=%writing
  %one = s32[]{:T(128)} constant(1)
  %j = s32[]{:T(128)} add(%i, %one)
  ROOT %made = (s32[]{:T(128)}, f32[4,256]{1,0:T(4,128)}, f32[4,256]{1,0:T(4,128)}) tuple(%j, %weights, %next)
}

%condition (given: (s32[], f32[4,256], f32[4,256])) -> pred[] {
  %given = (s32[]{:T(128)}, f32[4,256]{1,0:T(4,128)}, f32[4,256]{1,0:T(4,128)}) parameter(0)
  %k = s32[]{:T(128)} get-tuple-element(%given), index=0
  %bound = s32[]{:T(128)} constant(BOUND)
  ROOT %less = pred[]{:T(512)} compare(%k, %bound), direction=LT
}

ENTRY %main (arg: f32[4,256]) -> f32[4,256] {
  %arg = f32[4,256]{1,0:T(4,128)} parameter(0)
  %start = s32[]{:T(128)} constant(FIRST)
  %fresh = f32[4,256]{1,0:T(4,128)} custom-call(), custom_call_target="AllocateBuffer"
  %init = (s32[]{:T(128)}, f32[4,256]{1,0:T(4,128)}, f32[4,256]{1,0:T(4,128)}) tuple(%start, %arg, %fresh)
  %loop = (s32[]{:T(128)}, f32[4,256]{1,0:T(4,128)}, f32[4,256]{1,0:T(4,128)}) while(%init), condition=%condition, body=%body
  %result = f32[4,256]{1,0:T(4,128)} get-tuple-element(%loop), index=2
  ROOT %moved = f32[4,256]{0,1:T(4,128)} copy(%result)
}
"""  # noqa: E501
# The kernel enters the product through a fusion that only hands it on.
NESTED = """HloModule jit_g, is_scheduled=true, entry_computation_layout={(f32[256,256]{1,0})->f32[8,256]{1,0}}

%view (v: f32[256,256]) -> f32[256,256] {
  %v = f32[256,256]{1,0:T(8,128)} parameter(0)
  ROOT %same = f32[256,256]{1,0:T(8,128)} bitcast(%v)
}

%product (k: f32[256,256], x: f32[8,256]) -> f32[8,256] {
  %k = f32[256,256]{1,0:T(8,128)} parameter(0)
  %x = f32[8,256]{1,0:T(8,128)S(1)} parameter(1)
  %handed = f32[256,256]{1,0:T(8,128)} fusion(%k), kind=kLoop, calls=%view
  ROOT %made = f32[8,256]{1,0:T(8,128)S(1)} convolution(%x, %handed), dim_labels=bf_io->bf
}

ENTRY %main (kernel: f32[256,256], rows: f32[8,256]) -> f32[8,256] {
  %kernel = f32[256,256]{1,0:T(8,128)} parameter(0)
  %rows = f32[8,256]{1,0:T(8,128)S(1)} parameter(1)
  ROOT %out = f32[8,256]{1,0:T(8,128)S(1)} fusion(%kernel, %rows), kind=kOutput, calls=%product
}
"""  # noqa: E501
ROW, ALL = 4 * 256, 4 * 4 * 256


def loop(bound=4, first=0) -> str:
    return LOOP.replace("BOUND", str(bound)).replace("FIRST", str(first))


def count(text: str) -> traffic.Traffic:
    return traffic.account(hlo.parse(text))


def test_a_loop_counts_slices_updates_and_copies():
    # Per trip one row is read and one written; the counter is a scalar in HBM once it is added.
    found = count(loop())
    rows = {m.opcode: m.bytes for m in found.moves}
    assert rows["fusion"] == 4 * ROW
    assert sum(m.bytes for m in found.moves if m.opcode == "fusion") == 4 * 2 * ROW
    assert rows["copy"] == 2 * ALL
    assert found.hbm_bytes - sum(rows.values()) == 4 * ROW
    assert not found.unknown_loops


def test_a_fusion_that_hands_a_value_on_does_not_hide_that_it_is_read():
    assert count(NESTED).hbm_bytes == 4 * 256 * 256


@pytest.mark.parametrize(("bound", "first", "trips"), [(4, 0, 4), (4, 1, 3), (9, 9, 0), (3, 8, 0)])
def test_trips_are_the_bound_less_the_start(bound, first, trips):
    (collective,) = count(loop(bound, first)).collectives or (None,)
    assert collective is not None and collective.times == trips


def test_trips_noted_by_xla_come_first():
    noted = loop().replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    )
    assert count(noted).collectives[0].times == 7


def test_a_loop_that_depends_on_data_is_named_and_counted_once():
    text = loop().replace("%bound = s32[]{:T(128)} constant(4)",
                          "%bound = s32[]{:T(128)} get-tuple-element(%given), index=0")  # fmt: skip
    found = count(text)
    assert found.unknown_loops == ("body",)
    assert found.collectives[0].times == 1
    step = found.step()
    assert step.hbm_bytes < found.hbm_bytes and not [m for m in step.moves if m.opcode == "copy"]


def test_collectives_know_their_group_and_place():
    (found,) = count(loop()).collectives
    assert (found.kind, found.bytes, found.group, found.loops) == ("all-reduce", ROW, 8, ("body",))
    assert found.source.endswith("body/sum")
    assert found.wire_bytes == pytest.approx(4 * ROW * 2 * 7 / 8)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2},{3,4,5}}", 3),
        ("[4,4]<=[16]", 4),
        ("mesh['a'=1,'b'=8,'c'=2], device_ids=([2,8]T(1,0)) {'b'}", 8),
        ("mesh['a'=4,'b'=2], device_ids=([8]) {'a','b'}", 8),
    ],
)
def test_the_forms_of_groups(groups, size):
    assert count(loop().replace("[2,8]<=[16]", groups)).collectives[0].group == size


def test_copies_of_a_shape():
    module = hlo.parse(loop())
    assert traffic.copies(module, (4, 256)) == ["moved"]
    assert traffic.copies(module, (4, 128)) == []


ASYNC = """HloModule m

ENTRY %main (a: bf16[8,128]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  %copy-start = (bf16[8,128]{1,0:S(1)}, bf16[8,128]{1,0}, u32[]{:S(2)}) copy-start(%a)
  %copy-done = bf16[8,128]{1,0:S(1)} copy-done(%copy-start)
  %slice-start = ((bf16[8,128]{1,0}), bf16[2,128]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:2], [0:128]}
  %slice-done = bf16[2,128]{1,0:S(1)} slice-done(%slice-start)
  %all-gather-start = (bf16[8,128]{1,0}, bf16[16,128]{1,0}) all-gather-start(%a), channel_id=3, replica_groups=[1,2]<=[2], dimensions={0}
  %all-gather-done = bf16[16,128]{1,0} all-gather-done(%all-gather-start)
  %kernel = bf16[8,128]{1,0} custom-call(%a), custom_call_target="TARGET", backend_config={"custom_call_config":{"cost_estimate":{"flops":"1","bytes_accessed":"COST"}}}
  ROOT %view = bf16[8,128]{1,0} bitcast(%kernel)
}
"""  # noqa: E501


def parts(target="tpu_custom_call", cost=100) -> dict[str, int]:
    found = count(ASYNC.replace("TARGET", target).replace("COST", str(cost)))
    return {move.opcode: move.bytes for move in found.moves}


def test_what_is_started_counts_once_and_only_in_hbm():
    whole = 2 * 8 * 128
    assert parts() == {
        "copy-start": whole,
        "slice-start": whole // 4,
        "all-gather-start": 3 * whole,
        "custom-call": 100,
    }


def test_a_kernel_counts_its_estimate_at_most_its_operands():
    whole = 2 * 8 * 128
    assert parts(cost=10**9)["custom-call"] == 2 * whole
    assert parts(target="other", cost=1)["custom-call"] == 2 * whole


def test_attributes_may_go_over_several_lines():
    """As those of JAX's own kernels do, one of them with what ends a computation elsewhere."""
    account = count(
        """HloModule m

ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %kernel = f32[8,128]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", attributes={about={
"sizes":"128"
}}, metadata={op_name="jit(f)/kernel"}
  ROOT %copied = f32[8,128]{1,0} copy(%kernel)
}
"""  # noqa: E501
    )
    moved = {move.opcode: (move.bytes, move.source) for move in account.moves}
    whole = 2 * 4 * 8 * 128
    assert moved == {"custom-call": (whole, "jit(f)/kernel"), "copy": (whole, "")}


# How TPU writes a reduce-scatter.
SCATTER = """HloModule m

%all-reduce-scatter.1 (input: f32[8,128]) -> f32[2,128] {
  %input = f32[8,128]{1,0} parameter(0)
  %all-reduce.1 = f32[8,128]{1,0} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %start = s32[] constant(0)
  ROOT %kept = f32[2,128]{1,0} dynamic-slice(%all-reduce.1, %start, %start), dynamic_slice_sizes={2,128}
}

ENTRY %main (a: f32[8,128]) -> f32[2,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %copied = f32[8,128]{1,0} copy(%a)
  ROOT %fusion = f32[2,128]{1,0} fusion(%copied), kind=kCustom, calls=%all-reduce-scatter.1, metadata={op_name="jit(f)/sum"}
}
"""  # noqa: E501


def test_an_all_reduce_of_which_a_slice_is_kept_is_a_reduce_scatter():
    whole = 4 * 8 * 128
    account = count(SCATTER)
    (found,) = account.collectives
    assert (found.kind, found.wire_bytes) == ("reduce-scatter", whole * 3 / 4)
    moved = {move.opcode: move.bytes for move in account.moves}
    assert moved == {"copy": 2 * whole, "all-reduce": whole, "fusion": whole // 4}
    # What XLA added belongs to what reads it.
    assert {move.source for move in account.moves} == {"jit(f)/sum"}


def test_what_is_no_module_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("hello")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_bytes_of_types(dtype):
    array = hlo.Array(jnp.dtype(dtype).name.replace("float", "f"), (3, 5), 0)
    assert array.nbytes == 15 * jnp.dtype(dtype).itemsize
    assert hlo.Array("pred", (7,), 0).nbytes == 7
    assert hlo.Array("s4", (7,), 0).nbytes == 4
    assert hlo.Array("f8e4m3fn", (7,), 0).nbytes == 7
    assert hlo.Array("token", (), 0).nbytes == 0


def test_weights_only_on_this_machine():
    """A scan over stacked matrices reads every one once; the vector between them is nothing."""
    layers, width = 6, 512

    def run(weights, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

    weights = jax.ShapeDtypeStruct((layers, width, width), jnp.float32)
    x = jax.ShapeDtypeStruct((1, width), jnp.float32)
    compiled = jax.jit(run).lower(weights, x).compile()
    text = compiled.as_text()
    assert text is not None
    found = count(text)
    size = 4 * layers * width * width
    # XLA:CPU copies every slice before the product: one read, one write, one read.
    assert found.hbm_bytes == pytest.approx(3 * size, rel=0.03)
    dots = [m for m in found.moves if m.opcode in ("dot", "custom-call")]
    assert sum(m.bytes for m in dots) == pytest.approx(size, rel=0.01)
