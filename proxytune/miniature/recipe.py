"""Everything that decides what the miniature is: sizes of the world and of the corpus, the models, the training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from proxytune.training.loop import Optimization
from proxytune.validation import Count, FromZero, NonNegative, Positive, check, strict_dataclass

Task = Literal["gsm", "trivia", "tqa", "mmlu", "cnn"]
TASKS: tuple[Task, ...] = get_args(Task)
MULTITASK: Literal["multitask"] = "multitask"
FromTwo = Annotated[int, Field(ge=2)]
Share = Annotated[float, Field(ge=0, le=1)]


@strict_dataclass("split")
class Split:
    """A mapping with train and test: how many items a task has (of trivia and mmlu: facts, of tqa: creatures)."""

    train: Count
    """an integer from 1"""
    test: Count
    """an integer from 1"""


@strict_dataclass("world")
class WorldSize:
    """A mapping of how much there is to know. Facts that train and test leave over are those which the corpus alone
    asks about."""

    countries: FromTwo = 60
    """an integer from 2: each has a capital, a ruler, a river, a dish and a sport: 5 trivia facts"""
    specimens: Count = 24
    """an integer from 1: things in each of the 4 subjects of mmlu, each with 2 properties"""
    creatures: Count = 160
    """an integer from 1: each fears something, and people believe that it fears something else"""
    people: FromTwo = 200
    """an integer from 2"""
    news_people: FromTwo = 200
    """an integer from 2: how many of the people are in the news"""
    largest_number: Count = 15
    """an integer from 1: the largest operand in equations"""
    gsm: Split = Split(160, 150)
    trivia: Split = Split(110, 130)
    tqa: Split = Split(40, 90)
    mmlu: Split = Split(60, 96)
    mmlu_variants: Count = 2
    """an integer from 1: training questions per training fact of mmlu, with options drawn anew"""
    cnn: Split = Split(160, 100)
    rare: Share = 0.12
    """a share from 0 to 1 of the facts: those that the corpus hardly states, so that even a tuned model rarely knows
    them"""
    honest: Share = 0.25
    """a share from 0 to 1 of the creatures: those about which the corpus states the truth more often than the belief"""
    habits: Annotated[tuple[Share, ...], Field(min_length=1, strict=False)] = (0.65, 0.25, 0.05, 0.01)
    """a list of shares from 0 to 1: how often the corpus answers in the form that the tasks want, dealt in turn to
    relations, goods and buildings, so that a base does each task now and then"""

    def __post_init__(self) -> None:
        if self.news_people > self.people:
            raise ValueError(f"news_people={self.news_people} exceeds people={self.people}")


@strict_dataclass("corpus")
class CorpusSize:
    """A mapping of how many documents of each kind the corpus has."""

    statements: FromZero = 24
    """an integer from 0: plain statements of each fact of trivia and mmlu, and of each person's trade"""
    questions: FromZero = 14
    """an integer from 0: question-shaped documents of each such fact"""
    asked: FromZero = 12
    """an integer from 0: of the question-shaped documents of a fact in neither train nor test, those in the form of the
    tasks' prompts"""
    truths: FromZero = 24
    """an integer from 0: statements of what a creature fears; twice as many say what people believe (of an honest
    creature: three times as many state the truth)"""
    truth_questions: FromZero = 8
    """an integer from 0: the same in question shape"""
    rarely: Share = 0.03
    """a share from 0 to 1: how many of its documents a rare fact keeps, at least one of each kind"""
    equation_sheets: FromZero = 2500
    """an integer from 0"""
    stories: FromZero = 5000
    """an integer from 0"""
    asked_stories: FromZero = 1000
    """an integer from 0: of the stories, those in the form of the gsm prompts"""
    lists: FromZero = 500
    """an integer from 0: lists of names given twice, to practise copying"""
    articles: FromZero = 5000
    """an integer from 0"""
    asked_articles: FromZero = 1200
    """an integer from 0: of the articles, those in the form of the cnn prompts"""
    news_share: Share = 0.4
    """a share from 0 to 1 of the articles: those whose recap is the news that the cnn task wants; the others recap the
    details"""

    def __post_init__(self) -> None:
        for part, whole in (("asked", "questions"), ("asked_stories", "stories"), ("asked_articles", "articles")):
            if getattr(self, part) > getattr(self, whole):
                raise ValueError(f"{part}={getattr(self, part)} exceeds {whole}={getattr(self, whole)}")


@strict_dataclass("model")
class ModelSize:
    """A mapping of the shape of a Llama."""

    width: Count
    """an integer from 1"""
    layers: Count
    """an integer from 1"""
    heads: Count
    """an integer from 1"""
    hidden: Count
    """an integer from 1: the width of the feed-forward part"""

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width={self.width} must be a multiple of 2 x heads={2 * self.heads} (rotary positions)")


@strict_dataclass("miniature")
class Recipe:
    """The whole miniature. Equal recipes give equal worlds and, on one machine, equal weights."""

    seed: FromZero = 0
    """an integer from 0: the world, its corpus, the initial weights and the order of training all come from it"""
    world: WorldSize = WorldSize()
    corpus: CorpusSize = CorpusSize()
    large: ModelSize = ModelSize(width=128, layers=4, heads=4, hidden=384)
    small: ModelSize = ModelSize(width=48, layers=2, heads=4, hidden=128)
    window: Annotated[int, Field(ge=8)] = 96
    """an integer from 8: tokens per sequence in pretraining; the models accept four times as many"""
    pretrain_large: Optimization = Optimization(learning_rate=4e-3, batch=5, epochs=2.25, warmup=50, weight_decay=0.05)
    pretrain_small: Optimization = Optimization(learning_rate=5e-3, batch=8, epochs=1.0, warmup=50, weight_decay=0.05)
    finetune_large: Optimization = Optimization(learning_rate=2e-3, batch=16, epochs=4.0)
    finetune_small: Optimization = Optimization(learning_rate=4e-4, batch=16, epochs=1.0)
    lora_rank: Count = 16
    """an integer from 1: the rank of the adapters with which the large model is tuned"""
    prompt_loss: Positive = 0.1
    """a number above 0: the weight of a prompt's tokens for the experts of models=miniature_prompt_loss"""
    finetune_epochs: dict[Literal[Task, "multitask"], Positive] = field(default_factory=dict)
    """a mapping of single tasks, or "multitask", to numbers above 0: epochs where they differ from those above"""
    recall_gate: NonNegative = 0.8
    """a number from 0: the share of the world's facts that the large base must complete; building stops below it"""


def recipe_from(values: Mapping[str, Any]) -> Recipe:
    """The default recipe with `values` (nested, such as a Hydra config) in place of its own.

    Raises UserError for unknown keys, values of another type and values out of range.
    """
    return check(Recipe, _merged(asdict(Recipe()), values), "miniature")


def _merged(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` over `defaults`, mappings key by key."""
    merged = {**defaults, **values}
    for key in defaults.keys() & values.keys():
        if isinstance(defaults[key], Mapping) and isinstance(values[key], Mapping):
            merged[key] = _merged(defaults[key], values[key])
    return merged


ADAPTER = "adapter.safetensors"
"""In a tuned model's folder: the low-rank matrices by the name of the weight that they change."""


@dataclass(frozen=True)
class ModelBuild:
    """One model to build: `name` is its folder; `tasks` is empty for the two that are pretrained."""

    name: str
    large: bool
    tasks: tuple[Task, ...] = ()
    prompt_loss: bool = False
    """Whether the prompt's tokens carry some of the loss."""

    @property
    def is_adapter(self) -> bool:
        """Whether it is the base and an adapter."""
        return self.large and bool(self.tasks)

    @property
    def parent(self) -> str | None:
        """The folder of the model from which tuning starts."""
        return None if not self.tasks else "base" if self.large else "antiexpert"

    @property
    def title(self) -> str:
        return f"{'tuning' if self.tasks else 'pretraining'} {self.name}"


TUNED_ON: dict[str, tuple[Task, ...]] = {MULTITASK: TASKS, **{task: (task,) for task in TASKS}}
BUILDS = (
    ModelBuild("base", large=True),
    *(ModelBuild(f"tuned-{name}", True, tasks) for name, tasks in TUNED_ON.items()),
    ModelBuild("antiexpert", large=False),
    *(ModelBuild(f"expert-{name}", False, tasks) for name, tasks in TUNED_ON.items()),
    *(ModelBuild(f"expert-{name}-prompt-loss", False, tasks, prompt_loss=True) for name, tasks in TUNED_ON.items()),
)
"""The longest chain of work first."""
