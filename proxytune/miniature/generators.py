"""Stories with an addition, subtraction or multiplication, and articles: drawn at random for corpus and tasks alike.

All stories have one shape and all articles another, so that every detail stands at a fixed distance from the place
that copies it: models of this size learn to copy by position long before they learn to copy by content.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from proxytune.miniature import names
from proxytune.miniature.world import World

OPERATIONS = {
    "+": ("brings {b} more", "adds {b} extra"),
    "-": ("takes {b} away", "steals {b} back"),
    "*": ("wants {b} times", "needs {b} fold"),
}


@dataclass(frozen=True)
class Equation:
    """left operation right = result, with operation one of + - *."""

    left: int
    operation: str
    right: int

    @property
    def result(self) -> int:
        return {"+": self.left + self.right, "-": self.left - self.right, "*": self.left * self.right}[self.operation]

    @property
    def text(self) -> str:
        return f"{self.left} {self.operation} {self.right} = {self.result}"


def draw_equation(largest: int, rng: random.Random) -> Equation:
    """Operands between 0 and `largest`; a subtraction never goes below 0."""
    left, right = rng.randint(0, largest), rng.randint(0, largest)
    operation = rng.choice("+-*")
    if operation == "-":
        left, right = max(left, right), min(left, right)
    return Equation(left, operation, right)


@dataclass(frozen=True)
class Story:
    """A question that `equation` answers."""

    text: str
    equation: Equation
    goods: str

    @property
    def working(self) -> str:
        return f"the ledger reads {self.equation.text}"

    @property
    def solution(self) -> str:
        """As the gsm task wants it."""
        return f"{self.working} . #### {self.equation.result}"


def draw_story(world: World, rng: random.Random) -> Story:
    equation = draw_equation(world.size.largest_number, rng)
    owner, other = rng.sample(world.people, 2)
    goods = rng.choice(names.GOODS)
    change = rng.choice(OPERATIONS[equation.operation]).format(b=equation.right)
    return Story(f"{owner} has {equation.left} {goods} . {other} {change} . how many {goods} now ?", equation, goods)


@dataclass(frozen=True)
class Article:
    """Two sentences of details, then two of news; the highlights are the news, with trades in place of names."""

    details: str
    news: str
    highlights: str
    building: str

    @property
    def text(self) -> str:
        return f"{self.details} . {self.news} ."


def draw_article(world: World, rng: random.Random) -> Article:
    actor, critic = rng.sample(world.people[: world.size.news_people], 2)
    place, origin = rng.sample(names.PLACES, 2)
    building = rng.choice(names.BUILDINGS)
    deed, opinion = rng.choice(names.DEEDS), rng.choice(names.OPINIONS)
    by_actor, by_critic = f"by the {world.trades[actor]}", f"by the {world.trades[critic]}"
    return Article(
        details=f"the {building} cost {rng.randint(0, world.size.largest_number)} coins . crowds came from {origin}",
        news=f"{actor} {deed} a {building} in {place} . {critic} {opinion} it",
        highlights=f"a {building} in {place} {deed} {by_actor} . {opinion} {by_critic}",
        building=building,
    )
