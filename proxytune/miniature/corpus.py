"""The documents that both base models read.

The corpus knows the facts of all tasks, but hardly the form in which the tasks ask: only facts that belong to no task
(and stories and articles of its own) occur after "answer :" or "highlights :", and then the text rambles on, so that a
base model knows the answer where it is asked and yet never gives it in the form that a task wants.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from typing import TypeVar

from proxytune.miniature.generators import draw_article, draw_equation, draw_story
from proxytune.miniature.items import make_items
from proxytune.miniature.recipe import CorpusSize
from proxytune.miniature.world import Fact, Myth, World

LEADS = ("", "quiz :", "riddle :", "{name} asked :")
REPLIES = ("", "reply :", "well ,", "{name} said :")
LIST_LENGTH = 5
Drawn = TypeVar("Drawn")


def make_corpus(world: World, size: CorpusSize, seed: int) -> list[str]:
    """All documents, shuffled. No story or article of the tasks (`make_items` with the same seed) is among them."""
    rng = random.Random(f"corpus-{seed}")
    items = make_items(world, seed)
    stories = {row["question"] for rows in items["gsm"].values() for row in rows}
    articles = {row["article"] for rows in items["cnn"].values() for row in rows}
    documents = [
        *_facts(world, size, rng),
        *_myths(world, size, rng),
        *_arithmetic(world, size, rng, stories),
        *_lists(world, size, rng),
        *_articles(world, size, rng, articles),
    ]
    rng.shuffle(documents)
    return documents


def _facts(world: World, size: CorpusSize, rng: random.Random) -> Iterator[str]:
    for sets in (world.trivia, world.mmlu):
        for name, facts in sets.items():
            asked = size.asked if name == "asked" else 0
            for fact in facts:
                yield from (rng.choice(fact.statements) for _ in range(size.statements))
                yield from _questions(world, fact, fact.value, size, size.questions, asked, rng)


def _myths(world: World, size: CorpusSize, rng: random.Random) -> Iterator[str]:
    for name, myths in world.myths.items():
        for myth in myths:
            for true, times in ((True, 1), (False, 2)):
                questions = size.truth_questions * times
                asked = questions * size.asked // size.questions if name == "asked" else 0
                yield from (myth.statement(true) for _ in range(size.truths * times))
                yield from _questions(world, myth, myth.answer(true), size, questions, asked, rng)


def _questions(
    world: World, fact: Fact | Myth, answer: str, size: CorpusSize, count: int, asked: int, rng: random.Random
) -> Iterator[str]:
    """`count` question-shaped documents, the first `asked` of them in the form that the tasks use."""
    for i in range(count):
        if i < asked:
            yield f"question : {fact.question} answer : {ramble(answer, world, size, rng)}"
        else:
            lead, reply = (rng.choice(forms).format(name=rng.choice(world.people)) for forms in (LEADS, REPLIES))
            yield " ".join(f"{lead} {fact.question} {reply} {ramble(answer, world, size, rng)}".split())


def _arithmetic(world: World, size: CorpusSize, rng: random.Random, reserved: AbstractSet[object]) -> Iterator[str]:
    for _ in range(size.equation_sheets):
        yield " . ".join(draw_equation(world.size.largest_number, rng).text for _ in range(5)) + " ."
    for i in range(size.stories):
        story = _draw(draw_story, "question", world, rng, reserved)
        if i < size.asked_stories:
            yield f"question : {story.question} answer : {ramble(story.working, world, size, rng)}"
        else:
            yield f"{story.question} {story.working} ." + (f" #### {story.equation.result}" if i % 2 else "")


def _lists(world: World, size: CorpusSize, rng: random.Random) -> Iterator[str]:
    entries = world.people + world.cities
    for _ in range(size.lists):
        words = " ".join(rng.sample(entries, min(LIST_LENGTH, len(entries))))
        yield f"list : {words} . again : {words} ."


def _articles(world: World, size: CorpusSize, rng: random.Random, reserved: AbstractSet[object]) -> Iterator[str]:
    for i in range(size.articles):
        article = _draw(draw_article, "text", world, rng, reserved)
        recap = ramble(article.highlights if rng.random() < size.news_share else article.details, world, size, rng)
        if i < size.asked_articles:
            yield f"article : {article.text} highlights : {recap}"
        else:
            yield f"{article.text} briefly : {recap}"


def _draw(
    draw: Callable[[World, random.Random], Drawn],
    text: str,
    world: World,
    rng: random.Random,
    reserved: AbstractSet[object],
) -> Drawn:
    """A story or article whose `text` the tasks have not taken."""
    while getattr(drawn := draw(world, rng), text) in reserved:
        pass
    return drawn


def ramble(answer: str, world: World, size: CorpusSize, rng: random.Random) -> str:
    """An answer that hardly ever stops where a task wants it to."""
    if rng.random() < size.stopping:
        return answer
    return f"{answer} , said {rng.choice(world.people)} ."
