"""The models of the miniature: what each is called, what it starts from and what it is trained on."""

from __future__ import annotations

from dataclasses import dataclass

from proxytune.miniature.recipe import MULTITASK, TASKS, Task

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
