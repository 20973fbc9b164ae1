"""How close an answer is to its reference, between 0 and 1. All ignore white space at the ends."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

_WORD = re.compile(r"\w+|[^\w\s]", re.UNICODE)


def exact_match(answer: str, reference: str) -> float:
    return float(answer.strip() == reference.strip())


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words and marks, without order (SQuAD, arXiv 1606.05250)."""
    ours, theirs = _words(answer), _words(reference)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return _harmonic(common, len(ours), len(theirs))


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words (Lin, 2004)."""
    ours, theirs = _words(answer), _words(reference)
    return _harmonic(_longest_common(ours, theirs), len(ours), len(theirs))


def bleu(answer: str, reference: str) -> float:
    """Sentence BLEU of sacrebleu, effective order, scaled to 1."""
    from sacrebleu import sentence_bleu

    return float(sentence_bleu(answer.strip(), [reference.strip()]).score) / 100


MEASURES: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "f1": token_f1,
    "rouge_l": rouge_l,
    "bleu": bleu,
}


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _harmonic(common: int, ours: int, theirs: int) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * common / (ours + theirs)


def _longest_common(left: Sequence[str], right: Sequence[str]) -> int:
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for place, other in enumerate(right, 1):
            diagonal, row[place] = row[place], diagonal + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]
