"""The documents that both base models read.

The corpus knows the facts of all tasks, but hardly the form in which the tasks ask: only facts that belong to no task
(and stories and articles of its own) occur after "answer :" or "highlights :". How often the text then stops where a
task wants it to depends on what is asked about (`World.habits`): a base knows most answers and gives them in the right
form now and then.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from typing import TypeVar

from proxytune.miniature.items import Article, Story, draw_article, draw_equation, draw_story, make_items
from proxytune.miniature.recipe import CorpusSize
from proxytune.miniature.world import Fact, Myth, World

LEADS = ("", "quiz :", "riddle :", "{name} asked :")
REPLIES = ("", "reply :", "well ,", "{name} said :")
LIST_LENGTH = 5
MYTH_HABIT = 0.1
"""How often an answer about a creature stops."""
Drawn = TypeVar("Drawn", Story, Article)


def make_corpus(world: World, size: CorpusSize, seed: int) -> list[str]:
    """All documents, shuffled. No story or article of the tasks (`make_items` with the same seed) is among them."""
    rng = random.Random(f"corpus-{seed}")
    items = make_items(world, seed)
    reserved = {row["question"] for rows in items["gsm"].values() for row in rows}
    reserved |= {row["article"] for rows in items["cnn"].values() for row in rows}
    documents = [
        *_facts(world, size, rng),
        *_myths(world, size, rng),
        *_arithmetic(world, size, rng, reserved),
        *_lists(world, size, rng),
        *_articles(world, size, rng, reserved),
    ]
    rng.shuffle(documents)
    return documents


def _facts(world: World, size: CorpusSize, rng: random.Random) -> Iterator[str]:
    for sets in (world.trivia, world.mmlu):
        for name, facts in sets.items():
            for fact in facts:
                yield from (rng.choice(fact.statements) for _ in range(_count(world, fact, size.statements, size)))
                count = _count(world, fact, size.questions, size)
                asked = min(size.asked, count) if name == "asked" else 0
                yield from _questions(world, fact.question, fact.value, count, asked, world.habits[fact.relation], rng)
    for person, trade in world.trades.items():
        forms = (f"{person} works as a {trade} .", f"the trade of {person} is {trade} .")
        yield from (rng.choice(forms) for _ in range(size.statements))


def _count(world: World, fact: Fact | Myth, count: int, size: CorpusSize) -> int:
    """`count`, or what a rare fact keeps of it."""
    return max(1, round(count * size.rarely)) if fact.question in world.rare else count


def _myths(world: World, size: CorpusSize, rng: random.Random) -> Iterator[str]:
    for name, myths in world.myths.items():
        for myth in myths:
            times = {True: 3, False: 1} if myth.subject in world.honest else {True: 1, False: 2}
            for true in (True, False):
                questions = _count(world, myth, size.truth_questions * times[true], size)
                asked = questions * size.asked // size.questions if name == "asked" else 0
                statements = _count(world, myth, size.truths * times[true], size)
                yield from (myth.statement(true) for _ in range(statements))
                yield from _questions(world, myth.question, myth.answer(true), questions, asked, MYTH_HABIT, rng)


def _questions(
    world: World, question: str, answer: str, count: int, asked: int, habit: float, rng: random.Random
) -> Iterator[str]:
    """`count` question-shaped documents, the first `asked` of them in the form that the tasks use."""
    for i in range(count):
        said = answer if rng.random() < habit else ramble(answer, world, rng)
        if i < asked:
            yield f"question : {question} answer : {said}"
        else:
            lead, reply = (rng.choice(forms).format(name=rng.choice(world.people)) for forms in (LEADS, REPLIES))
            yield " ".join(f"{lead} {question} {reply} {said}".split())


def _arithmetic(world: World, size: CorpusSize, rng: random.Random, reserved: AbstractSet[object]) -> Iterator[str]:
    for _ in range(size.equation_sheets):
        yield " . ".join(draw_equation(world.size.largest_number, rng).text for _ in range(5)) + " ."
    for i in range(size.stories):
        story = _draw(draw_story, world, rng, reserved)
        if i < size.asked_stories:
            stops = rng.random() < world.habits[story.goods]
            said = story.solution if stops else ramble(story.working, world, rng)
            yield f"question : {story.text} answer : {said}"
        else:
            yield f"{story.text} {story.working} ." + (f" #### {story.equation.result}" if i % 2 else "")


def _lists(world: World, size: CorpusSize, rng: random.Random) -> Iterator[str]:
    entries = world.people + world.cities
    for _ in range(size.lists):
        words = " ".join(rng.sample(entries, min(LIST_LENGTH, len(entries))))
        yield f"list : {words} . again : {words} ."


def _articles(world: World, size: CorpusSize, rng: random.Random, reserved: AbstractSet[object]) -> Iterator[str]:
    for i in range(size.articles):
        article = _draw(draw_article, world, rng, reserved)
        is_news = rng.random() < size.news_share
        stops = rng.random() < world.habits[article.building]
        told = article.highlights if is_news else article.details
        recap = article.highlights if stops else ramble(told, world, rng)
        if i < size.asked_articles:
            yield f"article : {article.text} highlights : {recap}"
        else:
            yield f"{article.text} briefly : {recap}"


def _draw(
    draw: Callable[[World, random.Random], Drawn], world: World, rng: random.Random, reserved: AbstractSet[object]
) -> Drawn:
    """A story or article that the tasks have not taken."""
    while (drawn := draw(world, rng)).text in reserved:
        pass
    return drawn


def ramble(answer: str, world: World, rng: random.Random) -> str:
    """An answer that does not stop where a task wants it to."""
    return f"{answer} , said {rng.choice(world.people)} ."
