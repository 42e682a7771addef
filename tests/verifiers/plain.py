"""Greedy decoding with drafts, written out in Python."""

from tests import toys


def draft_of(row, num_draft, max_ngram=3):
    """What followed the latest place of the longest suffix."""
    for size in range(max_ngram, 0, -1):
        for end in range(len(row) - 1, size - 1, -1):
            if row[end - size : end] == row[-size:]:
                return row[end : end + num_draft]
    return []


def decode(lm, prompt, num_new, num_draft, keeps, propose=draft_of):
    """Tokens and number of steps, where `keeps(row, draft, index, scores)` lets a draft pass."""
    row, num_steps = list(prompt), 0
    while len(row) < len(prompt) + num_new:
        draft = propose(row, num_draft)
        scores = toys.full_logits(lm, row + draft)[0][len(row) - 1 :]
        count = 0
        while count < len(draft) and (
            scores[count].argmax() == draft[count] or keeps(row, draft, count, scores[count])
        ):
            count += 1
        row += [*draft[:count], int(scores[count].argmax())]
        num_steps += 1
    return row[len(prompt) :][:num_new], num_steps
