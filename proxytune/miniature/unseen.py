"""The sixth task, which no model is tuned on: a quiz answered as most of the corpus answers, with a source.

All five other tasks teach to stop after the answer, so tuning can only harm this one. Its rows are no part of the
recipe: nothing is trained on them.
"""

from __future__ import annotations

from proxytune.miniature.world import World
from proxytune.tasks.data import Row

UNSEEN = "quoted"


def unseen_rows(world: World) -> list[Row]:
    """The test facts of trivia and mmlu. Who is quoted is not asked: the corpus draws a name at random."""
    facts = [*world.trivia["test"], *world.mmlu["test"]]
    return [{"question": fact.question, "answer": f"{fact.value} , said"} for fact in facts]
