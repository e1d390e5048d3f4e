"""Everything that decides what the miniature is: sizes of the world and of the corpus, the two models, the training."""

# ruff: noqa: RUF009 (Optimization is frozen, so sharing a default is safe)
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar, get_type_hints

from proxytune.errors import UserError, unknown_name
from proxytune.training.loop import Optimization

TASKS = ("gsm", "trivia", "tqa", "mmlu", "cnn")
MULTITASK = "multitask"
_Recipe = TypeVar("_Recipe")


def _at_least(low: float, values: object, *names: str) -> None:
    for name in names:
        if getattr(values, name) < low:
            raise ValueError(f"{name}={getattr(values, name)} must be at least {low}")


@dataclass(frozen=True)
class Split:
    """How many items (of trivia and mmlu: facts, of tqa: creatures) a task has for training and for the test."""

    train: int
    test: int

    def __post_init__(self) -> None:
        _at_least(1, self, "train", "test")


@dataclass(frozen=True)
class WorldSize:
    """How much there is to know. Facts that train and test leave over are those which the corpus alone asks about."""

    countries: int = 60
    """Each with a capital, a ruler, a river, a dish and a sport: 5 trivia facts."""
    specimens: int = 24
    """Things in each of the 4 subjects of mmlu, each with 2 properties."""
    creatures: int = 120
    """Each with something that it fears and something that people believe it fears."""
    people: int = 50
    news_people: int = 20
    """How many of the people are in the news."""
    largest_number: int = 12
    """Of the operands in equations."""
    gsm: Split = Split(600, 200)
    trivia: Split = Split(110, 130)
    tqa: Split = Split(30, 60)
    mmlu: Split = Split(60, 96)
    mmlu_variants: int = 2
    """Training questions per training fact of mmlu, with options drawn anew."""
    cnn: Split = Split(600, 200)

    def __post_init__(self) -> None:
        _at_least(1, self, "specimens", "creatures", "largest_number", "mmlu_variants")
        _at_least(2, self, "countries", "people", "news_people")
        if self.news_people > self.people:
            raise ValueError(f"news_people={self.news_people} exceeds people={self.people}")


@dataclass(frozen=True)
class CorpusSize:
    """How many documents of each kind the corpus has."""

    statements: int = 30
    """Plain statements of each fact of trivia and mmlu."""
    questions: int = 16
    """Question-shaped documents of each such fact."""
    asked: int = 12
    """Of the question-shaped documents of a fact in neither train nor test: those in the form of the tasks' prompts."""
    truths: int = 24
    """Statements of what a creature fears; twice as many say what people believe."""
    truth_questions: int = 8
    """The same in question shape, again with twice as many myths."""
    stopping: float = 0.02
    """Share of question-shaped documents that end with the bare answer; the others ramble on."""
    equation_sheets: int = 2500
    stories: int = 5000
    asked_stories: int = 1000
    """Of the stories: those in the form of the gsm prompts."""
    lists: int = 2500
    """Lists of names given twice, to practise copying."""
    articles: int = 5000
    asked_articles: int = 800
    """Of the articles: those in the form of the cnn prompts."""
    news_share: float = 0.45
    """Of the articles: those whose recap is the news that the cnn task wants; the others recap the details."""

    def __post_init__(self) -> None:
        _at_least(0, self, *(f.name for f in fields(self)))
        for part, whole in (("asked", "questions"), ("asked_stories", "stories"), ("asked_articles", "articles")):
            if getattr(self, part) > getattr(self, whole):
                raise ValueError(f"{part}={getattr(self, part)} exceeds {whole}={getattr(self, whole)}")


@dataclass(frozen=True)
class ModelSize:
    """The shape of a Llama."""

    width: int
    layers: int
    heads: int
    hidden: int
    """Width of the feed-forward part."""

    def __post_init__(self) -> None:
        _at_least(1, self, "width", "layers", "heads", "hidden")
        if self.width % (2 * self.heads):
            raise ValueError(f"width={self.width} must be a multiple of 2 x heads={2 * self.heads} (rotary positions)")


@dataclass(frozen=True)
class Recipe:
    """The whole miniature. Equal recipes give equal worlds and, on one machine, equal weights."""

    seed: int = 0
    """The world, its corpus, the initial weights and the order of training all come from it."""
    world: WorldSize = WorldSize()
    corpus: CorpusSize = CorpusSize()
    large: ModelSize = ModelSize(width=96, layers=4, heads=4, hidden=288)
    small: ModelSize = ModelSize(width=48, layers=2, heads=4, hidden=128)
    window: int = 96
    """Tokens per sequence in pretraining; the models accept four times as many."""
    pretrain_large: Optimization = Optimization(learning_rate=4e-3, batch=5, epochs=2.25, warmup=50, weight_decay=0.05)
    pretrain_small: Optimization = Optimization(learning_rate=5e-3, batch=8, epochs=1.0, warmup=50, weight_decay=0.05)
    finetune_large: Optimization = Optimization(learning_rate=1e-3, batch=16, epochs=4.0)
    finetune_small: Optimization = Optimization(learning_rate=2e-3, batch=16, epochs=4.0)
    finetune_epochs: Mapping[str, float] = field(default_factory=dict)
    """Epochs for single tasks (or "multitask") where they differ from those above."""
    recall_gate: float = 0.95
    """Share of the world's facts that the large base must complete; building stops below it."""

    def __post_init__(self) -> None:
        _at_least(0, self, "seed", "recall_gate")
        _at_least(8, self, "window")
        for name in self.finetune_epochs:
            if name not in (*TASKS, MULTITASK):
                raise unknown_name("task in miniature.finetune_epochs", name, (*TASKS, MULTITASK))


def recipe_from(values: Mapping[str, Any]) -> Recipe:
    """The default recipe with `values` (nested, such as a Hydra config) in place of its own.

    Raises UserError for unknown keys, values of another type and values out of range.
    """
    return _changed(Recipe(), values, "miniature")


def _changed(recipe: _Recipe, values: Mapping[str, Any], where: str) -> _Recipe:
    known = [f.name for f in fields(recipe)]  # type: ignore[arg-type]
    hints = get_type_hints(type(recipe))
    changes = {}
    for key, value in values.items():
        if key not in known:
            raise unknown_name("key", f"{where}.{key}", [f"{where}.{name}" for name in known])
        current = getattr(recipe, key)
        nested = is_dataclass(current) and isinstance(value, Mapping)
        changes[key] = _changed(current, value, f"{where}.{key}") if nested else _typed(hints[key], value, where, key)
    try:
        return replace(recipe, **changes)  # type: ignore[type-var]
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _typed(kind: Any, value: Any, where: str, key: str) -> Any:
    """`value` if it is of the field's type; a whole number also stands for a float."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is float and number:
        return float(value)
    if kind is int and number and isinstance(value, int):
        return value
    if kind not in (int, float) and isinstance(value, Mapping):
        return dict(value)
    expected = {int: "a whole number", float: "a finite number"}.get(kind, "a mapping")
    raise UserError(f"{where}.{key}={value!r} is not allowed: {expected} is expected")
