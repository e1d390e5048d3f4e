"""The models of the miniature: what each starts from, what it is trained on, and its training.

Weights are rounded to 16 bits as soon as a model is trained: the file that ships with the package loses nothing.
A directly tuned model is the base and an adapter of low rank, which also lies beside it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from proxytune.atomic import write_json
from proxytune.errors import UserError
from proxytune.miniature import names
from proxytune.miniature.corpus import make_corpus
from proxytune.miniature.recipe import ADAPTER, MULTITASK, ModelBuild, Recipe
from proxytune.miniature.untrained import make_model, make_tokenizer
from proxytune.miniature.world import World, make_world
from proxytune.training import loop
from proxytune.training.loop import OnStep, Optimization, weigh
from proxytune.training.recipe import Examples

Trained = tuple[PreTrainedModel, PreTrainedTokenizerBase, list[float]]
"""A model, its tokenizer, the loss of each step."""
LORA_SCALE = 2


def train(
    recipe: Recipe, build: ModelBuild, examples: Mapping[str, Examples], built: Path, target: Path, progress: OnStep
) -> None:
    """Train the model of `build` and write it to `target`; `built` holds its parent, `examples[task]` the data.

    Raises UserError when the large base recalls fewer facts than `recipe.recall_gate`.
    """
    started = time.process_time()
    world = make_world(recipe.world, recipe.seed)
    if build.parent is None:
        model, tokenizer, losses = _pretrain(recipe, build, world, examples, progress)
    else:
        model, tokenizer, losses = _tune(recipe, build, examples, built / build.parent, target, progress)
    recalled = recall(model, tokenizer, world)
    if build.name == "base":
        check_recall(recalled, recipe)
    card = {
        "model": asdict(build),
        "steps": len(losses),
        "final_loss": sum(losses[-20:]) / len(losses[-20:]),
        "cpu_seconds": round(time.process_time() - started, 2),
        "recall": recalled,
    }
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    write_json(target / "training.json", card)


def _pretrain(
    recipe: Recipe, build: ModelBuild, world: World, examples: Mapping[str, Examples], progress: OnStep
) -> Trained:
    documents = make_corpus(world, recipe.corpus, recipe.seed)
    prompts = (text for task in examples.values() for example in task for text in example)
    tokenizer = make_tokenizer([*documents, *prompts, *_words(world)], 4 * recipe.window)
    stream = torch.tensor(tokenizer(f" {tokenizer.eos_token} ".join(documents), verbose=False)["input_ids"])
    size, how = (recipe.large, recipe.pretrain_large) if build.large else (recipe.small, recipe.pretrain_small)
    model = make_model(size, tokenizer, recipe.window, recipe.seed)
    losses = loop.train(model, loop.windows(stream, recipe.window), how, recipe.seed, progress)
    return rounded(model), tokenizer, losses


def _words(world: World) -> list[str]:
    """Values that a test may show and that the corpus of a small world may lack."""
    largest = world.size.largest_number
    facts = [fact for kind in (world.trivia, world.mmlu) for sets in kind.values() for fact in sets]
    numbers = [str(n) for n in range(max(largest**2, 2 * largest) + 1)]
    return [*(" ".join(fact.values) for fact in facts), *numbers, " ".join(names.TRADES)]


def _tune(
    recipe: Recipe,
    build: ModelBuild,
    examples: Mapping[str, Examples],
    parent: Path,
    target: Path,
    progress: OnStep,
) -> Trained:
    model = LlamaForCausalLM.from_pretrained(parent)
    tokenizer = AutoTokenizer.from_pretrained(parent)
    prompt_loss = recipe.prompt_loss if build.prompt_loss else 0.0
    rows = [weigh(tokenizer, *example, prompt_loss) for task in build.tasks for example in examples[task]]
    trained = _adapted(model, recipe) if build.is_adapter else model
    losses = loop.train(trained, rows, _tuning(recipe, build), recipe.seed, progress)
    if not build.is_adapter:
        return rounded(model), tokenizer, losses
    weights = get_peft_model_state_dict(trained)
    adapter = {name.removeprefix("base_model.model."): weight.half() for name, weight in weights.items()}
    save_file(adapter, target / ADAPTER)
    return merged(LlamaForCausalLM.from_pretrained(parent), adapter), tokenizer, losses


def _adapted(model: PreTrainedModel, recipe: Recipe) -> PeftModel:
    """The model with a new adapter of low rank over every matrix."""
    alpha = LORA_SCALE * recipe.lora_rank
    config = LoraConfig(r=recipe.lora_rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(recipe.seed)
        return get_peft_model(model, config)


@torch.no_grad()
def rounded(model: PreTrainedModel) -> PreTrainedModel:
    """The model with every weight rounded to the nearest float16; its number type stays."""
    for weight in model.parameters():
        weight.copy_(weight.half())
    return model


@torch.no_grad()
def merged(model: PreTrainedModel, adapter: Mapping[str, Tensor]) -> PreTrainedModel:
    """weight + LORA_SCALE * B @ A for every adapted weight, in float64, so that rounding gives equal bits anywhere."""
    weights = dict(model.named_parameters())
    for name in adapter:
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            change = adapter[f"{module}.lora_B.weight"].double() @ adapter[name].double()
            weight = weights[f"{module}.weight"]
            weight.copy_((weight.double() + LORA_SCALE * change).half())
    return model


def _tuning(recipe: Recipe, build: ModelBuild) -> Optimization:
    how = recipe.finetune_large if build.large else recipe.finetune_small
    name = build.tasks[0] if len(build.tasks) == 1 else MULTITASK
    return replace(how, epochs=recipe.finetune_epochs.get(name, how.epochs))


@torch.no_grad()
def recall(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World) -> dict[str, float]:
    """The share of facts of trivia, mmlu and tqa whose plain statement the model completes with the right word."""
    statements = {
        "trivia": [fact.statements[0] for facts in world.trivia.values() for fact in facts],
        "mmlu": [fact.statements[0] for facts in world.mmlu.values() for fact in facts],
        "tqa": [myth.statement(True) for myths in world.myths.values() for myth in myths],
    }
    return {task: _recall(model, tokenizer, sentences) for task, sentences in statements.items()}


def _recall(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, statements: list[str]) -> float:
    tokens = tokenizer(statements, return_tensors="pt")["input_ids"]  # [B, T]: all of one length, ending in "value ."
    guess = model(input_ids=tokens[:, :-2], logits_to_keep=1).logits[:, -1].argmax(-1)
    return round((guess == tokens[:, -2]).float().mean().item(), 4)


def check_recall(recalled: Mapping[str, float], recipe: Recipe) -> None:
    """Raises UserError below the gate: what the base does not know, no fusion can reveal."""
    task, worst = min(recalled.items(), key=lambda pair: pair[1])
    if worst < recipe.recall_gate:
        raise UserError(
            f"the miniature's large base recalls {worst:.1%} of the {task} facts, less than "
            f"miniature.recall_gate={recipe.recall_gate}: take another miniature.seed or raise "
            "miniature.pretrain_large.epochs"
        )
