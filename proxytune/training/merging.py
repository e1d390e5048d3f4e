"""Several experts as one: task arithmetic (Ilharco et al. 2023, arXiv 2212.04089), as in Fan et al. 2024.

merged = antiexpert + scale * sum over experts of (expert - antiexpert)          for every tensor, in float32
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from proxytune.errors import UserError, unknown_name
from proxytune.models import FamilySpec, Source, identity, load
from proxytune.models.checking import check_sources
from proxytune.models.loading import load_tokenizers
from proxytune.training import folder as files
from proxytune.training.card import front_matter, table
from proxytune.training.recipe import hash_of

METHODS = ("task_arithmetic",)


def check_merge(method: str, scale: float, experts: Sequence[str], known: Mapping[str, Any]) -> None:
    """Raises UserError for a method, a scale or experts (`known`: those of the family) that cannot be merged."""
    if method not in METHODS:
        raise UserError(
            f"method={method} is not known; allowed: {', '.join(METHODS)}. For other methods merge the same folders "
            "with mergekit (https://github.com/arcee-ai/mergekit) and give its output as an expert's path"
        )
    if not math.isfinite(scale):
        raise UserError(f"scale={scale} is not allowed: it is a finite number, the multiple of the experts' changes")
    if not experts:
        raise UserError("experts=[] is empty: name at least one expert of the family")
    for name in experts:
        if name not in known:
            raise unknown_name("expert in experts", name, known)
        if experts.count(name) > 1:
            raise UserError(f"experts: {name!r} is named twice")


def merge(family: FamilySpec, experts: Sequence[str], scale: float, folder: Path, method: str = METHODS[0]) -> dict:
    """Writes the merged model as an ordinary Hugging Face folder; returns what its recipe.json holds.

    Adapters are merged into their module first. The model has the number type in which the antiexpert is loaded.
    What was merged already is not merged again.
    Raises UserError as `check_merge` does, if the members differ in vocabulary or in the shape of a tensor, and if
    `folder` holds anything else.
    """
    check_merge(method, scale, experts, family.experts)
    if family.antiexpert is None:
        raise UserError("the family has no antiexpert: merging starts from it")
    card = _card(method, scale, family.antiexpert, {name: family.experts[name] for name in experts})
    if _finished(folder, card):
        return card
    # The antiexpert takes the base's place, so that vocabularies are compared with its own.
    small = FamilySpec(family.antiexpert, family.antiexpert, family.experts)
    model, dtype = _weights_of(small, "antiexpert")
    with torch.no_grad():
        start = dict(model.named_parameters())
        changes = {name: torch.zeros_like(weight) for name, weight in start.items()}
        for name in experts:
            _add_change(changes, start, _weights_of(small, f"expert:{name}")[0], name)
        for name, weight in start.items():
            weight.add_(changes[name], alpha=scale)
    tokenizer = load_tokenizers({"antiexpert": family.antiexpert})["antiexpert"]
    draft = folder / files.UNFINISHED / files.DRAFT
    with files.writing(folder):
        model.to(dtype).save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        files.finish(folder, draft, card, _readme(card, family.antiexpert.path))
    return card


def _card(method: str, scale: float, antiexpert: Source, experts: Mapping[str, Source]) -> dict[str, Any]:
    sources = {"antiexpert": antiexpert, **experts}
    check_sources(sources)
    facts = {
        "method": method,
        "scale": scale,
        "antiexpert": identity(antiexpert),
        "experts": {name: identity(source) for name, source in experts.items()},
    }
    return {"recipe": hash_of(facts), **facts}


def _finished(folder: Path, card: Mapping[str, Any]) -> bool:
    """Whether `folder` holds what `card` says; UserError if it holds anything else."""
    file = folder / files.RECIPE
    if file.is_file() and files.read(file, ["recipe"]) == card:
        return True
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if file.is_file() or (names - files.OTHERS and files.UNFINISHED not in names):
        raise UserError(f"{folder} holds something else: give another output=, or remove it")
    return False


def _weights_of(family: FamilySpec, role: str) -> tuple[Any, torch.dtype]:
    """The model of `role` in float32, an adapter merged into its weights; the number type that it was loaded in."""
    model: Any = load(family, [role])[role].model
    dtype = model.dtype
    model.float()
    return model.merge_and_unload() if isinstance(model, PeftModel) else model, dtype


def _add_change(
    total: dict[str, torch.Tensor], start: Mapping[str, torch.Tensor], expert: PreTrainedModel, name: str
) -> None:
    tuned = dict(expert.named_parameters())
    if lacking := sorted(start.keys() ^ tuned.keys()):
        raise UserError(f"expert {name!r} is no tuned antiexpert: only one of the two has the tensor {lacking[0]!r}")
    for key, weight in start.items():
        if tuned[key].shape != weight.shape:
            shapes = f"{list(tuned[key].shape)}, the antiexpert's {list(weight.shape)}"
            raise UserError(f"expert {name!r} is no tuned antiexpert: its {key!r} has the shape {shapes}")
        total[key] += tuned[key] - weight


def _readme(card: Mapping[str, Any], start: str) -> str:
    experts = ", ".join(f"{name} ({content})" for name, content in card["experts"].items())
    rows = {name: card[name] for name in ("recipe", "method", "scale", "antiexpert")} | {"experts": experts}
    return front_matter("transformers", start) + (
        "\nSeveral tuned models as one, merged by proxytune: antiexpert + scale * sum of (expert - antiexpert).\n\n"
        f"{table(rows)}"
    )
