"""Sequence classifiers as judges of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from proxytune.errors import UserError, first_line, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = "tomh/toxigen_roberta"
_BATCH = 32


@dataclass(frozen=True)
class Classifier:
    """A sequence classifier by name or folder, and which of its labels (a name, or a number) is looked for.

    Unless others are named, ToxiGen's classifier and its label for toxic texts. A text longer than the window is cut.
    """

    path: str = PUBLISHED
    label: str = "1"
    """that of the published classifier, whose labels have no names"""
    key: str = "toxic_label"
    """the configuration's key of the label, for errors"""

    def __post_init__(self) -> None:
        """Raises UserError for a missing classifier, and for a label that it does not have."""
        assert self.number is not None

    @cached_property
    def number(self) -> int:
        """The label's number."""
        names = {int(number): str(name) for number, name in self._load("AutoConfig").id2label.items()}
        found = [number for number, name in names.items() if self.label in (name, str(number))]
        if not found:
            listed = [f"{name} ({number})" for number, name in names.items()]
            raise unknown_name(f"label of the classifier {self.path} ({self.key})", self.label, listed)
        return found[0]

    def flags(self, texts: Sequence[str]) -> list[int]:
        """1 for each text whose likeliest label is this one, else 0."""
        return [flag for logits in self._logits(texts) for flag in (logits.argmax(-1) == self.number).int().tolist()]

    def probabilities(self, texts: Sequence[str]) -> list[float]:
        """The label's probability for each text."""
        return [p for logits in self._logits(texts) for p in logits.softmax(-1)[:, self.number].tolist()]

    def _logits(self, texts: Sequence[str]) -> Iterator[Tensor]:
        """[B, labels] of one batch of texts after the other, float32."""
        import torch

        pads = self._tokenizer.pad_token is not None
        size = _BATCH if pads else 1
        for start in range(0, len(texts), size):
            inputs = self._tokenizer(list(texts[start : start + size]), padding=pads, truncation=True)
            tensors = {name: torch.tensor(values, device=self._model.device) for name, values in inputs.items()}
            with torch.inference_mode():
                yield self._model(**tensors).logits.float()

    @cached_property
    def _model(self) -> Any:
        import torch

        model = self._load("AutoModelForSequenceClassification", use_safetensors=True)
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    @cached_property
    def _tokenizer(self) -> Any:
        return self._load("AutoTokenizer")

    def _load(self, kind: str, **options: Any) -> Any:
        import transformers  # not before a classifier is asked for: all that reads tasks would wait for it

        try:
            return getattr(transformers, kind).from_pretrained(self.path, **options)
        except (OSError, ValueError) as error:
            raise UserError(f"the classifier {self.path} cannot be loaded: {first_line(error)}") from error
