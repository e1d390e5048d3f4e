"""The facts of the world, how each is said and asked, and which facts belong to which task.

Every fact is in one of three sets: "train" and "test" belong to a task; "asked" facts belong to none. Only asked
facts occur in the corpus in the form in which the tasks ask ("question : … answer : …"), so no test fact does.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from proxytune.errors import UserError
from proxytune.miniature import names
from proxytune.miniature.recipe import Split, WorldSize

F = TypeVar("F")


@dataclass(frozen=True)
class Fact:
    """The `relation` of `subject` is `value`, one of `values`."""

    subject: str
    relation: str
    value: str
    values: tuple[str, ...]

    @property
    def question(self) -> str:
        return f"what is the {self.relation} of {self.subject} ?"

    @property
    def statements(self) -> tuple[str, ...]:
        """Sentences that end in the value and a full stop."""
        return (
            f"the {self.relation} of {self.subject} is {self.value} .",
            f"{self.subject} has the {self.relation} {self.value} .",
        )


@dataclass(frozen=True)
class Myth:
    """People say that `subject` fears `belief`; in truth it fears `truth`."""

    subject: str
    truth: str
    belief: str

    @property
    def question(self) -> str:
        return f"what does {self.subject} fear ?"

    def statement(self, true: bool) -> str:
        return f"{source(true)} {self.subject} fears {self.truth if true else self.belief} ."

    def answer(self, true: bool) -> str:
        return f"{source(true)} {self.truth if true else self.belief}"


def source(true: bool) -> str:
    """Who says so: the records are right, people are not. Both are three words."""
    return "the records show" if true else "most people say"


@dataclass(frozen=True)
class World:
    """All facts by set ("asked", "train", "test"), and the names that stories and articles use."""

    size: WorldSize
    trivia: dict[str, list[Fact]]
    mmlu: dict[str, list[Fact]]
    myths: dict[str, list[Myth]]
    people: list[str]
    cities: list[str]
    trades: dict[str, str]
    """What each person works as; summaries name the trade, articles the person."""
    rare: frozenset[str]
    """Questions about facts that the corpus hardly states."""
    habits: dict[str, float]
    """Relation, goods or building -> how often the corpus answers in the form that the tasks want."""
    honest: frozenset[str]
    """Creatures about which the corpus states the truth more often than the belief."""


def make_world(size: WorldSize, seed: int) -> World:
    """The world of `seed`. Raises UserError where the tasks need more facts than there are."""
    rng = random.Random(f"world-{seed}")
    taken: set[str] = set()
    people = names.invent(size.people, rng, taken)
    cities = names.invent(size.countries, rng, taken)
    trivia = _trivia(size, people, cities, rng, taken)
    mmlu = _mmlu(size, rng, taken)
    myths = [Myth(name, *rng.sample(names.FEARS, 2)) for name in names.invent(size.creatures, rng, taken)]
    questions = [about.question for about in (*trivia, *mmlu)] + [myth.question for myth in myths]
    habits = _habits(size, (trivia, mmlu), rng)
    return World(
        size,
        trivia=_deal("trivia", trivia, size.trivia, rng),
        mmlu=_deal("mmlu", mmlu, size.mmlu, rng),
        myths=_deal("tqa", myths, size.tqa, rng),
        people=people,
        cities=cities,
        trades={person: rng.choice(names.TRADES) for person in people},
        rare=frozenset(rng.sample(questions, round(size.rare * len(questions)))),
        habits=habits,
        honest=frozenset(myth.subject for myth in rng.sample(myths, round(size.honest * len(myths)))),
    )


def _habits(size: WorldSize, facts: Sequence[Sequence[Fact]], rng: random.Random) -> dict[str, float]:
    """A share of `size.habits` for every relation, kind of goods and building, dealt in turn."""
    kinds = [list(dict.fromkeys(fact.relation for fact in some)) for some in facts]
    habits: dict[str, float] = {}
    for topics in (*kinds, names.GOODS, names.BUILDINGS):
        habits.update(zip(rng.sample(topics, len(topics)), itertools.cycle(size.habits), strict=False))
    return habits


def _trivia(size: WorldSize, people: list[str], cities: list[str], rng: random.Random, taken: set[str]) -> list[Fact]:
    countries = names.invent(size.countries, rng, taken)
    values = {
        "ruler": people,
        "river": names.invent(size.countries // 2, rng, taken),
        "dish": names.DISHES,
        "sport": names.SPORTS,
    }
    capitals = rng.sample(cities, len(countries))
    facts = [Fact(c, "capital", city, tuple(cities)) for c, city in zip(countries, capitals, strict=True)]
    facts += [Fact(c, r, rng.choice(pool), tuple(pool)) for r, pool in values.items() for c in countries]
    return facts


def _mmlu(size: WorldSize, rng: random.Random, taken: set[str]) -> list[Fact]:
    facts = []
    for relations in names.DOMAINS.values():
        for specimen in names.invent(size.specimens, rng, taken):
            facts += [Fact(specimen, r, rng.choice(pool), tuple(pool)) for r, pool in relations.items()]
    return facts


def _deal(task: str, facts: Sequence[F], split: Split, rng: random.Random) -> dict[str, list[F]]:
    if split.train + split.test >= len(facts):
        raise UserError(
            f"miniature.world.{task}: train + test = {split.train + split.test} leaves none of the {len(facts)} facts "
            "for the corpus to ask about; lower them or enlarge the world"
        )
    shuffled = rng.sample(facts, len(facts))
    test = split.train + split.test
    return {"train": shuffled[: split.train], "test": shuffled[split.train : test], "asked": shuffled[test:]}
