"""The descriptions in a trained folder: recipe.json for programs, README.md (the model card) for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from proxytune.training.recipe import Recipe

if TYPE_CHECKING:
    from proxytune.training.trainer import WeightedTrainer


def make_card(recipe: Recipe, trainer: WeightedTrainer, examples: int, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What recipe.json holds, once `trainer` is done; losses are means per weighted token, in nats."""
    steps = [row for row in trainer.state.log_history if "loss" in row]
    last = steps[-1]
    return {
        "recipe": recipe.hash,
        **recipe.facts,
        "examples": examples,
        "examples_left_out": len(recipe.examples) - examples,
        "steps": trainer.state.global_step,
        "processes": trainer.accelerator.num_processes,
        "device_batch": recipe.tuning.device_batch,
        "packing": recipe.tuning.packing,
        "mean_loss": sum(row["loss"] for row in steps) / len(steps),
        "final_loss": last["loss"],
        "seconds": round(last["seconds"], 3),
        "tokens": last["tokens"],
        "tokens_per_second": round(last["tokens"] / last["seconds"], 1),
        **provenance,
    }


def readme(card: Mapping[str, Any], start: str) -> str:
    """The model card of a tuned folder; `start` is where the model that it started from was loaded from."""
    adapter = card["tuning"]["method"] == "lora"
    rows = {
        "recipe": card["recipe"],
        "started from": f"{start} ({card['start'] or 'identity not known'})",
        "examples": f"{card['examples']}, and {card['examples_left_out']} left out (longer than max_length)",
        "data": card["data"],
        "steps": f"{card['steps']} of {card['tuning']['batch']} examples",
        "loss, last step / mean": f"{card['final_loss']:.4f} / {card['mean_loss']:.4f}",
        "a pass": f"{card['device_batch']} examples{', packed' * card['packing']}; {card['processes']} processes",
        "time": f"{card['seconds']:.0f} s, {card['tokens_per_second']:.0f} tokens/s",
        **origin(card),
        **card["tuning"],
    }
    kind = "A LoRA adapter" if adapter else "A model"
    return front_matter("peft" if adapter else "transformers", start) + (
        f"\n{kind} tuned by proxytune on prompts and answers of a task's training split.\n\n{table(rows)}"
    )


def front_matter(library: str, start: str) -> str:
    return f"---\nlibrary_name: {library}\nbase_model: {json.dumps(start)}\ntags: [proxytune]\n---\n"


def table(rows: Mapping[str, Any]) -> str:
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())


def origin(card: Mapping[str, Any]) -> dict[str, str]:
    """The rows about code and libraries, if the card has them."""
    return {name: _flat(card[name]) for name in ("code", "libraries") if name in card}


def _flat(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
