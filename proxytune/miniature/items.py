"""The rows of all tasks: what `<data_dir>/<task>/{train,test}.jsonl` hold."""

from __future__ import annotations

import random
from collections.abc import Callable

from proxytune.miniature.generators import draw_article, draw_story
from proxytune.miniature.recipe import TASKS, Split
from proxytune.miniature.world import Fact, Myth, World
from proxytune.tasks.data import Row

UNSEEN = "quoted"


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
