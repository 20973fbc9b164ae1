"""Builds the `airports` data set: a dispatcher's message about one airport -> `city | region`.

    pip download --no-deps airportsdata==20260905 && unzip -d /tmp/airports airportsdata-*.whl
    python -m examples.airports.build /tmp/airports/airportsdata/airports.csv

The airports are real records of the PyPI package `airportsdata` (MIT, see LICENSE.airportsdata); the messages around them
are written here. Deterministic: the same files every time. No airport is in both files.
"""

from __future__ import annotations

import csv
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from examples.chat_rows import chat_row, write_jsonl

HERE = Path(__file__).parent
SEED = 7910
NUM_TRAIN, NUM_HELD_OUT = 600, 60
SYSTEM = "Where is the airport?"
PLAIN = re.compile(r"[A-Z][a-z]+(?: [A-Z][a-z]+){0,2}")

MESSAGES = (
    "Divert flight 414 to {name} ({iata}) near {city}, {region}.",
    "{iata} is closed until 06:00: {name}, city of {city}, {region}.",
    "Crew change moves to {city} ({region}), field {name}, code {iata}.",
    "Fuel is short at {name} today. That is {iata}, {city}, {region}.",
    "Which stand do we get in {city}, {region}? I mean {name}, code {iata}.",
    "Fog at {iata}. {name} serves {city} in {region}.",
    "Two bags for {city}, {region} were left at {name} ({iata}).",
    "Runway works start Monday at {name}, {iata}, in {city}, {region}.",
    "Customs at {name} closes early. Code {iata}, city {city}, region {region}.",
    "We lost the slot for {iata} in {city}, {region}. The field is {name}.",
    "Send 3 tyres to {name} in {city}, {region}. The code is {iata}.",
    "De-icing is needed at {iata} ({name}, {city}, {region}).",
)


@dataclass(frozen=True)
class Airport:
    iata: str
    name: str
    city: str
    region: str

    def answer(self) -> str:
        return f"{self.city} | {self.region}"

    def message(self, rng: random.Random) -> str:
        return rng.choice(MESSAGES).format(iata=self.iata, name=self.name, city=self.city, region=self.region)


def read_airports(source: Path) -> list[Airport]:
    """The records with a passenger code and plainly written names of a city and a region that differ."""
    with source.open(encoding="utf-8", newline="") as lines:
        airports = [Airport(r["iata"], r["name"], r["city"], r["subd"]) for r in csv.DictReader(lines) if r["iata"]]
    return [airport for airport in airports if is_plain(airport)]


def is_plain(airport: Airport) -> bool:
    names = (airport.city, airport.region)
    if airport.city == airport.region or not all(PLAIN.fullmatch(name) and "Airport" not in name for name in names):
        return False
    return airport.name.isascii() and airport.name.endswith("Airport") and len(airport.name) <= 32


def build(source: Path, folder: Path) -> None:
    """Writes the two files of the data set into `folder`."""
    rng = random.Random(SEED)
    drawn = rng.sample(read_airports(source), NUM_HELD_OUT + NUM_TRAIN)
    rows = [chat_row(SYSTEM, airport.message(rng), airport.answer()) for airport in drawn]
    write_jsonl(folder / "heldout.jsonl", rows[:NUM_HELD_OUT])
    write_jsonl(folder / "train.jsonl", rows[NUM_HELD_OUT:])


if __name__ == "__main__":
    build(Path(sys.argv[1]), HERE)
