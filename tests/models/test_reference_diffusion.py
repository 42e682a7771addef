"""The NumPy sampling loops on toy forward passes whose outcome is known by hand."""

import numpy as np
import pytest

from tests.convert import tiny_denoisers
from tests.models import reference_diffusion as reference

MASK, VOCAB = 9, 10
TEXT = np.array([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4])


def certain(order, shift=0):
    """Row i prefers TEXT[i + shift], surer the greater `order[i]`; real slots are counted."""

    def forward(canvas, real):
        out = np.zeros((*canvas.shape, VOCAB))
        for b, mask in enumerate(real):
            for i, j in enumerate(np.cumsum(mask) - 1):
                if mask[i] and j + shift < len(TEXT):
                    out[b, i, TEXT[j + shift]] = 1 + order[j + shift]
        return out

    return forward


RISING = np.arange(len(TEXT)) / 10


def newly(seen):
    """Which slots each step decided, per row."""
    return [
        [np.flatnonzero((a[r] == MASK) & (b[r] != MASK)).tolist() for r in range(len(a))]
        for a, b in zip(seen, seen[1:], strict=False)
    ]


def test_llada_quotas():
    assert reference.quotas(8, 3) == [3, 3, 2]
    assert reference.quotas(2, 4) == [1, 1, 0, 0]


def test_llada_fills_blocks_by_confidence():
    seen = reference.llada(certain(RISING), [[1, 2]], steps=6, length=6, block=3, mask=MASK)
    assert newly(seen) == [[[4]], [[3]], [[2]], [[7]], [[6]], [[5]]]
    assert seen[-1][0].tolist() == TEXT[:8].tolist()
    two = reference.llada(certain(-RISING), [[1, 2]], steps=4, length=6, block=3, mask=MASK)
    assert newly(two) == [[[2, 3]], [[4]], [[5, 6]], [[7]]]


def test_llada_rows_do_not_know_of_padding():
    rows = [[1, 2, 3, 4], [1]]
    options = dict(steps=4, length=4, block=2, mask=MASK)
    both = reference.llada(certain(RISING), rows, **options)
    for index, row in enumerate(rows):
        alone = reference.llada(certain(RISING), [row], **options)
        for a, b in zip(both, alone, strict=True):
            assert a[index, 4 - len(row) :].tolist() == b[0].tolist()


def test_llada_guidance_scales_what_the_prompt_adds():
    asked = []

    def forward(canvas, real):
        asked.append(canvas.copy())
        prompted = (canvas[:, :1] != MASK)[..., None]
        out = np.zeros((*canvas.shape, VOCAB))
        out[..., 3] = 1.0
        return out + prompted * 0.6 * np.eye(VOCAB)[4]

    options = dict(steps=1, length=1, block=1, mask=MASK)
    assert reference.llada(forward, [[1]], **options)[-1].tolist() == [[1, 3]]
    # 0 + (w + 1) 0.6 against 1: token 4 wins from w = 2/3 on.
    assert reference.llada(forward, [[1]], guidance=0.6, **options)[-1].tolist() == [[1, 3]]
    assert reference.llada(forward, [[1]], guidance=0.7, **options)[-1].tolist() == [[1, 4]]
    assert asked[-1].tolist() == [[MASK, MASK]]


@pytest.mark.parametrize(
    ("steps", "counts"), [(8, [3, 4, 4, 4, 4, 4, 4, 5]), (32, [0, *[1] * 30, 2])]
)
def test_dream_schedule_wastes_its_first_step(steps, counts):
    def forward(canvas, real):
        return np.tile(np.eye(VOCAB)[1] * 5, (*canvas.shape, 1))

    seen = reference.dream(forward, [[1]], steps=steps, length=32, mask=MASK)
    assert [len(step[0]) for step in newly(seen)] == counts


def test_dream_is_shifted():
    seen = reference.dream(certain(RISING, shift=1), [[1, 2]], steps=5, length=5, mask=MASK)
    assert seen[-1][0].tolist() == TEXT[:7].tolist()
    wrong = reference.dream(certain(RISING), [[1, 2]], steps=5, length=5, mask=MASK)
    assert wrong[-1][0].tolist() == [1, 2, *TEXT[1:6]]


def test_dream_rules_differ():
    # Slot 1: .5 .49; slot 2: .4, rest even; slot 3: .45 .2 .2 .15 (rows are those before them).
    laws = [[0.5, 0.49, 0.01, 0], [0.4, 0.2, 0.2, 0.2], [0.45, 0.275, 0.275, 0], [1, 0, 0, 0]]
    table = np.full((4, VOCAB), -1e9)
    table[:, :4] = np.log(np.maximum(laws, 1e-12))

    def first(rule):
        seen = reference.dream(
            lambda canvas, real: table[None], [[5]], steps=2, length=3, mask=MASK, rule=rule
        )
        return newly(seen)[0][0]

    assert first("maskgit_plus") == [1]
    assert first("topk_margin") == [2]
    assert first("entropy") == [1]


def test_dream_origin_draws_slots():
    seen = reference.dream(
        certain(RISING, shift=1), [[1]], steps=3, length=4, mask=MASK, rule="origin",
        draw=lambda step, count: np.linspace(0.2, 0.9, count),
    )  # fmt: skip
    # Chances are about 1/3, 1/2 and 1.
    assert newly(seen) == [[[1]], [[2]], [[3, 4]]]


@pytest.mark.parametrize("name", ["llada", "dream"])
def test_a_whole_trajectory_of_a_checkpoint(name):
    forward = reference.forward_of(tiny_denoisers.CONFIGS[name], tiny_denoisers.tensors(name))
    loop = dict(llada=reference.llada, dream=reference.dream)[name]
    options = dict(steps=4, length=4, mask=tiny_denoisers.MASK)
    options |= dict(block=4) if name == "llada" else dict(rule="entropy")
    rows = [[5, 7, 11], [3, 2, 1, 4, 6]]
    both = loop(forward, rows, **options)
    assert len(both) == 5
    for index, row in enumerate(rows):
        alone = loop(forward, [row], **options)
        for a, b in zip(both, alone, strict=True):
            assert a[index, 5 - len(row) :].tolist() == b[0].tolist()


def test_fast_dllm_sub_blocks_and_boundaries():
    sure = np.full(len(TEXT), 9.0)
    options = dict(length=8, mask=MASK, block=4, sub_block=2)
    seen = reference.fast_dllm(certain(sure, shift=1), [1, 2, 3], **options)
    # One slot completes the first block; its boundary pass gives the first of the next, whose
    # sub-blocks have one and two slots left.
    assert [row.tolist() for row in seen] == [
        [1, 2, 3, MASK],
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5],
        [1, 2, 3, 4, 5, MASK, MASK, MASK],
        [1, 2, 3, 4, 5, 6, MASK, MASK],
        [1, 2, 3, 4, 5, 6, 7, 8],
        [*TEXT[:9]],
    ]


def test_fast_dllm_below_the_threshold_one_at_a_time():
    options = dict(length=4, mask=MASK, block=4, sub_block=4, threshold=0.9)
    seen = reference.fast_dllm(certain(RISING, shift=1), [1], **options)
    assert [row.tolist() for row in seen[:4]] == [
        [1, MASK, MASK, MASK],
        [1, MASK, MASK, 4],
        [1, MASK, 3, 4],
        [1, 2, 3, 4],
    ]


def test_fast_dllm_whole_blocks_of_prompt_and_stop():
    sure = np.full(len(TEXT), 9.0)
    options = dict(length=8, mask=MASK, block=4, sub_block=2)
    seen = reference.fast_dllm(certain(sure, shift=1), [1, 2, 3, 4], stop=7, **options)
    assert seen[0].tolist() == [1, 2, 3, 4, 5]
    assert seen[-1].tolist() == [1, 2, 3, 4, 5, 6, 7]
    stopped = reference.fast_dllm(certain(sure, shift=1), [1, 2, 3, 4], stop=5, **options)
    assert stopped[-1].tolist() == [1, 2, 3, 4, 5]
