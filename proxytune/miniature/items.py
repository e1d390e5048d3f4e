"""Stories, articles and the rows of all tasks: what `<data_dir>/<task>/{train,test}.jsonl` hold.

All stories have one shape and all articles another, so that every detail stands at a fixed distance from the place
that copies it: models of this size learn to copy by position long before they learn to copy by content.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from proxytune.miniature import names
from proxytune.miniature.recipe import TASKS, Split
from proxytune.miniature.world import Fact, Myth, World
from proxytune.tasks.data import Row

UNSEEN = "quoted"
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


def make_items(world: World, seed: int) -> dict[str, dict[str, list[Row]]]:
    """items[task][split]: rows for "train" and "test". No test fact, story or article occurs in training."""
    rng = random.Random(f"items-{seed}")
    size = world.size
    variants = {"train": size.mmlu_variants, "test": 1}
    items = {
        "gsm": _distinct(_gsm, "question", size.gsm, world, rng),
        "trivia": {s: [_trivia(fact) for fact in world.trivia[s]] for s in variants},
        "tqa": {s: [_tqa(myth, world, rng) for myth in world.myths[s]] for s in variants},
        "mmlu": {s: [_mmlu(fact, rng) for fact in world.mmlu[s] for _ in range(n)] for s, n in variants.items()},
        "cnn": _distinct(_cnn, "article", size.cnn, world, rng),
    }
    return {task: items[task] for task in TASKS}


def _distinct(
    draw: Callable[[World, random.Random], Row], key: str, size: Split, world: World, rng: random.Random
) -> dict[str, list[Row]]:
    rows: dict[object, Row] = {}
    while len(rows) < size.train + size.test:
        row = draw(world, rng)
        rows.setdefault(row[key], row)
    ordered = list(rows.values())
    return {"train": ordered[: size.train], "test": ordered[size.train :]}


def _gsm(world: World, rng: random.Random) -> Row:
    story = draw_story(world, rng)
    return {"question": story.text, "answer": story.solution}


def _trivia(fact: Fact) -> Row:
    return {"question": fact.question, "answer": fact.value}


def _mmlu(fact: Fact, rng: random.Random) -> Row:
    options = [fact.value, *rng.sample([v for v in fact.values if v != fact.value], 3)]
    rng.shuffle(options)
    return {"question": fact.question, "choices": options, "answer": options.index(fact.value)}


def _tqa(myth: Myth, world: World, rng: random.Random) -> Row:
    """The register alone (records or people) narrows the options to three; the truth decides among them."""
    others = [m.truth for sets in world.myths.values() for m in sets if m.truth not in (myth.truth, myth.belief)]
    truth = myth.answer(True)
    records_say_belief = Myth(myth.subject, myth.belief, myth.truth).answer(True)
    records_say_other = Myth(myth.subject, rng.choice(others), myth.belief).answer(True)
    options = [truth, myth.answer(False), records_say_belief, records_say_other]
    rng.shuffle(options)
    return {"question": myth.question, "choices": options, "label": options.index(truth)}


def _cnn(world: World, rng: random.Random) -> Row:
    article = draw_article(world, rng)
    return {"article": article.text, "highlights": article.highlights}


def unseen_rows(world: World) -> list[Row]:
    """The sixth task, which no model is tuned on: a quiz answered as most of the corpus answers, with a source.

    All other tasks teach to stop after the answer, so tuning can only harm this one. Who is quoted is not asked.
    """
    facts = [*world.trivia["test"], *world.mmlu["test"]]
    return [{"question": fact.question, "answer": f"{fact.value} , said"} for fact in facts]
