"""Builds the `dates` data set: a sentence with one date in it -> that date as JSON.

    python -m examples.dates.build

Deterministic: the same files every time. A date or a sentence of the held-out file never occurs in the training file.
Version 2 of the data answers with another key, so that an answer shows which version of the adapter gave it.
"""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Iterator
from pathlib import Path

from examples.chat_rows import chat_row, write_jsonl

HERE = Path(__file__).parent
SEED = 20240229
NUM_TRAIN, NUM_TRAIN_V2, NUM_HELD_OUT = 600, 320, 60
SYSTEM = "Find the date."
FIRST_DAY = datetime.date(1950, 1, 1)
NUM_DAYS = 36_524

# Every spelling is unambiguous: a number that may be a day or a month never stands alone.
SPELLINGS = (
    "{day} {month} {year}",
    "{day}{th} {month} {year}",
    "{month} {day}, {year}",
    "{month} {day}{th}, {year}",
    "the {day}{th} of {month} {year}",
    "{day} {mon} {year}",
    "{mon} {day}, {year}",
    "{day}-{mon}-{year}",
    "{year}/{month_number}/{day}",
    "{weekday}, {day} {month} {year}",
    "{weekday}, {month} {day}, {year}",
    "{year}, {month} {day}",
)

SENTENCES = (
    "The invoice was issued on {date} and is still open.",
    "She was born on {date} in a small harbour town.",
    "Please move the review to {date}.",
    "Our lease ends on {date}, so we need a new office.",
    "The bridge opened on {date} after four years of work.",
    "On {date} the board approved the merger.",
    "Delivery is promised for {date} at the latest.",
    "The minutes of {date} are missing a signature.",
    "He wrote the letter on {date} but never sent it.",
    "Tickets for {date} are sold out.",
    "The warranty runs until {date}.",
    "A storm hit the coast on {date} and cut the power.",
    "Her first day at the clinic was {date}.",
    "Payment of 450 euros is due on {date}.",
    "The museum bought the painting on {date} for 12 million.",
    "Back on {date}, three trains were cancelled.",
    "We signed contract 8812 on {date} in Lisbon.",
    "The satellite was launched on {date} from Kourou.",
    "Since {date} the road has been closed.",
    "Flight 207 was rebooked to {date}.",
    "My passport expires on {date}.",
    "The patch shipped on {date} and fixed 31 bugs.",
    "Their daughter's wedding is on {date}, isn't it?",
    "Could you book room 14 for {date}?",
    "According to the log, the pump failed on {date}.",
    "The treaty entered into force on {date}.",
    "Harvest began on {date}, two weeks early.",
    "The court will hear case 5517 on {date}.",
    "As of {date} there were 92 members.",
    "The photo is dated {date} on the back.",
)


def spell(date: datetime.date, spelling: str) -> str:
    """`date` written in one of `SPELLINGS`."""
    suffix = "th" if 10 <= date.day % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(date.day % 10, "th")
    return spelling.format(
        day=date.day,
        th=suffix,
        month=date.strftime("%B"),
        mon=date.strftime("%b"),
        month_number=date.month,
        year=date.year,
        weekday=date.strftime("%A"),
    )


def examples(rng: random.Random, dates: Iterator[datetime.date]) -> Iterator[tuple[str, datetime.date]]:
    """Endless (sentence, date) pairs: every date once, sentences and spellings drawn anew."""
    for date in dates:
        yield rng.choice(SENTENCES).format(date=spell(date, rng.choice(SPELLINGS))), date


def answer(date: datetime.date, key: str) -> str:
    return json.dumps({key: date.isoformat()})


def build(folder: Path) -> None:
    """Writes the four files of the data set into `folder`."""
    rng = random.Random(SEED)
    days = rng.sample(range(NUM_DAYS), NUM_HELD_OUT + NUM_TRAIN)
    pairs = list(examples(rng, (FIRST_DAY + datetime.timedelta(days=day) for day in days)))
    held_out, train = pairs[:NUM_HELD_OUT], pairs[NUM_HELD_OUT:]
    for suffix, key, num_train in (("", "date", NUM_TRAIN), ("-v2", "day", NUM_TRAIN_V2)):
        write_jsonl(
            folder / f"train{suffix}.jsonl", (chat_row(SYSTEM, s, answer(d, key)) for s, d in train[:num_train])
        )
        write_jsonl(folder / f"heldout{suffix}.jsonl", (chat_row(SYSTEM, s, answer(d, key)) for s, d in held_out))


if __name__ == "__main__":
    build(HERE)
