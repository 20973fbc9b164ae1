from __future__ import annotations

import random
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
from support.datasets import assistant, call, chat, examples, facts, user
from tunedock_registry.data.duplicates import DuplicateIndex, clusters

LONG = " ".join(f"word{n}" for n in range(60))


def kinds(*rows: object) -> list[str | None]:
    return [match.kind if match else None for match in DuplicateIndex(examples(*rows)).matches]


def test_whitespace_does_not_make_a_difference() -> None:
    assert kinds(chat(user("a b"), assistant("c")), chat(user("a  b\n"), assistant("c"))) == [None, "exact"]


def test_one_changed_word_in_a_long_text_is_a_near_duplicate() -> None:
    first, second = chat(user(LONG), assistant("yes")), chat(user(LONG.replace("word30", "other")), assistant("yes"))
    assert kinds(first, second) == [None, "near"]


def test_short_examples_that_differ_in_what_matters_are_no_duplicates() -> None:
    sums = [chat(user(f"What is {a} + {b}?"), assistant(str(a + b))) for a in range(1, 6) for b in range(1, 6)]
    assert kinds(*sums) == [None] * 25
    assert kinds({"prompt": "1 + 1 =", "completion": " 2"}, {"prompt": "1 - 1 =", "completion": " 2"}) == [None, None]


def test_a_template_that_all_examples_share_makes_no_duplicates() -> None:
    system = {"role": "system", "content": LONG}
    rows = [chat(system, user(f"{LONG} Now: {n} {n + 1} {n + 2}"), assistant(str(n))) for n in range(30)]
    assert kinds(*rows) == [None] * 30


def test_texts_without_spaces_are_compared_by_character() -> None:
    text = "".join(chr(0x4E00 + n) for n in range(80))
    changed = text.replace(chr(0x4E00 + 40), "的")
    assert kinds(chat(user(text), assistant("a")), chat(user(changed), assistant("a"))) == [None, "near"]


def test_tool_calls_count_as_text() -> None:
    calls = [chat(user("q"), assistant(None, tool_calls=[call("f", f'{{"x": {n}}}')])) for n in (1, 2, 1)]
    assert kinds(*calls) == [None, None, "exact"]


def test_a_remembered_set_finds_what_overlaps_with_another() -> None:
    index = DuplicateIndex(examples(*facts(20)))
    (seen,) = examples(facts(20)[7])
    (new,) = examples(chat(user("Name a river."), assistant("Loire")))
    found = index.find(seen)
    assert found is not None
    assert (found.of, found.kind) == (7, "exact")
    assert index.find(new) is None


def test_examples_with_one_prompt_share_a_cluster_and_contradict() -> None:
    rows = examples(
        chat(user("Capital?"), assistant("Oslo")),
        chat(user("Capital?"), assistant("Bern")),
        chat(user("River?"), assistant("Aare")),
    )
    assert clusters(rows) == [0, 0, 2]
    assert DuplicateIndex(rows).contradictions == 1


def test_results_do_not_depend_on_the_process() -> None:
    code = (
        "from support.datasets import *; from tunedock_registry.data.duplicates import clusters\n"
        "rows = facts(30) + [chat(user('x ' * 30 + str(n)), assistant('y')) for n in range(9)]\n"
        "print(clusters(examples(*rows)))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": "tests"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(outputs) == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_random_edits_are_found_and_random_texts_are_not(seed: int) -> None:
    rng = random.Random(seed)
    words = [str(rng.randrange(10**6)) for _ in range(120)]
    edited = list(words)
    for place in rng.sample(range(120), 3):
        edited[place] = "edited"
    other = [str(rng.randrange(10**6)) for _ in range(120)]
    rows = [chat(user(" ".join(text)), assistant("ok")) for text in (words, edited, other)]
    assert kinds(*rows) == [None, "near", None]
