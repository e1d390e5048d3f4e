"""The trained models that come with the package: one safetensors file, half the size of the folders it unpacks to.

A tensor is called `<model>/<name>`. A tuned model is stored as its adapter over the base. The metadata has the words of
the tokenizer and the hash of the recipe that the models were trained by, with the rows of all tasks. What packing and
unpacking need is imported there: most runs only look for the unpacked folder.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from proxytune.errors import UserError
from proxytune.miniature.items import make_items
from proxytune.miniature.recipe import ADAPTER, BUILDS, ModelBuild, Recipe
from proxytune.miniature.world import make_world
from proxytune.training.recipe import hash_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILE = Path(__file__).with_name("models.safetensors")


def recipe_hash(recipe: Recipe) -> str:
    """Hash of a recipe and of the rows that it gives every task."""
    items = make_items(make_world(recipe.world, recipe.seed), recipe.seed)
    return hash_of([asdict(recipe), items])


def file_hash() -> str:
    """Hash of the file, by which its unpacked folder is named; UserError if it is missing."""
    try:
        return hashlib.sha256(FILE.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise _unusable(FILE, "is missing") from error


def pack(folder: Path, recipe: Recipe, file: Path = FILE) -> None:
    """Writes the models of a built miniature in `folder` as one file."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    tensors: dict[str, Tensor] = {}
    for build in BUILDS:
        stored = load_file(folder / build.name / (ADAPTER if build.is_adapter else "model.safetensors"))
        tensors |= {f"{build.name}/{name}": tensor.half() for name, tensor in stored.items()}
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    words = tokenizer.convert_ids_to_tokens(list(range(2, len(tokenizer))))
    save_file(tensors, file, metadata={"recipe": recipe_hash(recipe), "words": " ".join(words)})


def unpack(recipe: Recipe, folder: Path, file: Path = FILE) -> None:
    """Writes the file's models into `folder`, each as an ordinary Hugging Face folder.

    Raises UserError for a file that is damaged or was built by another recipe.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            facts = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise _unusable(file, f"cannot be read ({error})") from error
    if facts.get("recipe") != recipe_hash(recipe):
        raise _unusable(file, "was built by another recipe")
    from proxytune.miniature.untrained import make_tokenizer

    tokenizer = make_tokenizer([facts["words"]], 4 * recipe.window)
    for build in BUILDS:
        try:
            _write(build, recipe, tensors, tokenizer, folder)
        except (RuntimeError, KeyError) as error:
            raise _unusable(file, f"has no complete {build.name}") from error


def _write(
    build: ModelBuild, recipe: Recipe, tensors: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    from proxytune.miniature.training import merged
    from proxytune.miniature.untrained import make_model

    size = recipe.large if build.large else recipe.small
    model: PreTrainedModel = make_model(size, tokenizer, recipe.window, recipe.seed)
    model.load_state_dict(_of("base" if build.is_adapter else build.name, tensors))
    if build.is_adapter:
        model = merged(model, _of(build.name, tensors))
    model.save_pretrained(folder / build.name)
    tokenizer.save_pretrained(folder / build.name)


def _of(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One model's tensors; the head's weight is the embedding's."""
    own = {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
    embedding = own.get("model.embed_tokens.weight")
    return own if embedding is None else own | {"lm_head.weight": embedding}


def _unusable(file: Path, why: str) -> UserError:
    build = "build it with python scripts/build_miniature.py"
    return UserError(f"{file} {why}: reinstall proxytune, {build}, or train with miniature.train=true")
