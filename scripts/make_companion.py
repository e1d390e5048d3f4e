"""Makes a small companion of a model that has none: drops layers, heals the rest by distillation from the whole model.

    python scripts/make_companion.py base=FILE.gguf data=FOLDER output=FOLDER [key=value ...]

The recipe is in make_companion.yaml. The loss is KL(base || companion) over the whole vocabulary at every
position of packed text; forward passes are in bfloat16, weights and optimizer in float32. `output` becomes an ordinary
Hugging Face folder with the base's tokenizer; its companion.json holds the recipe, a hash of the text, and the
perplexities of both models on documents that were held out.

Shapes: B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from proxytune.errors import UserError
from proxytune.models import Source
from proxytune.models.loading.load import load_for_tuning

RECIPE = Path(__file__).with_suffix(".yaml")


def main(arguments: list[str]) -> None:
    recipe = _recipe(arguments)
    torch.manual_seed(recipe.seed)
    source = Source(recipe.base, dtype="float32")
    base, tokenizer = load_for_tuning("base", source)
    base.requires_grad_(False).eval()
    companion, _ = load_for_tuning("base", source)
    drop_layers(companion, recipe.keep)
    train, held_out = documents(recipe)
    stream = tokens(tokenizer, train)
    print(f"{parameters(base) / 1e6:.0f} M -> {parameters(companion) / 1e6:.0f} M parameters; {len(stream)} tokens")
    unhealed = perplexity(companion, tokenizer, held_out, recipe.window)
    started = time.perf_counter()
    losses = distil(base, companion, stream, recipe)
    card = {
        "recipe": OmegaConf.to_container(recipe),
        "text_sha256": hashlib.sha256("\0".join([*train, *held_out]).encode()).hexdigest(),
        "parameters": {"base": parameters(base), "companion": parameters(companion)},
        "tokens_seen": len(losses) * recipe.batch * recipe.window,
        "final_loss": sum(losses[-20:]) / len(losses[-20:]),
        "seconds": round(time.perf_counter() - started),
        "held_out_perplexity": {
            "base": perplexity(base, tokenizer, held_out, recipe.window),
            "layers dropped": unhealed,
            "companion": perplexity(companion, tokenizer, held_out, recipe.window),
        },
    }
    companion.save_pretrained(recipe.output)
    tokenizer.save_pretrained(recipe.output)
    Path(recipe.output, "companion.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps({key: card[key] for key in ("seconds", "final_loss", "held_out_perplexity")}, indent=2))


def _recipe(arguments: list[str]) -> DictConfig:
    try:
        recipe = OmegaConf.load(RECIPE)
        OmegaConf.set_struct(recipe, True)
        recipe = OmegaConf.merge(recipe, OmegaConf.from_dotlist(arguments))
    except OmegaConfBaseException as error:
        raise UserError(f"{str(error).splitlines()[0]}; the keys are {', '.join(OmegaConf.load(RECIPE))}") from error
    missing = OmegaConf.missing_keys(recipe)
    if missing:
        raise UserError(f"no value for {', '.join(sorted(missing))}: give KEY=VALUE")
    return recipe


def drop_layers(model: PreTrainedModel, keep: list[int]) -> None:
    """Leaves the decoder layers numbered in `keep`, in that order. Raises UserError for a number that is none."""
    layers = model.model.layers
    wrong = [i for i in keep if i not in range(len(layers))]
    if wrong or not keep:
        raise UserError(f"keep={list(keep)}: give numbers of layers from 0 to {len(layers) - 1}")
    model.model.layers = nn.ModuleList(layers[i] for i in keep)
    for position, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = position
    model.config.num_hidden_layers = len(keep)
    if getattr(model.config, "layer_types", None) is not None:
        model.config.layer_types = [model.config.layer_types[i] for i in keep]


def documents(recipe: DictConfig) -> tuple[list[str], list[str]]:
    """(for training, held out), both in an order drawn from the seed."""
    texts = []
    for file, columns in recipe.text.items():
        path = Path(recipe.data, file)
        if not path.is_file():
            raise UserError(f"data={recipe.data} has no file {file}")
        for line in path.open(encoding="utf-8"):
            row = json.loads(line)
            texts.append("\n\n".join(row[column] for column in columns))
    random.Random(recipe.seed).shuffle(texts)
    held_out = max(1, round(recipe.held_out * len(texts)))
    return texts[held_out:], texts[:held_out]


def tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """[N]: the documents one after the other, each ended by the end-of-sequence token."""
    rows = tokenizer(texts, verbose=False)["input_ids"]
    return torch.tensor([token for row in rows for token in (*row, tokenizer.eos_token_id)])


def distil(base: PreTrainedModel, companion: PreTrainedModel, stream: Tensor, recipe: DictConfig) -> list[float]:
    """Trains the companion; returns the loss of each step in nats per token."""
    optimizer = torch.optim.AdamW(
        companion.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, recipe.warmup, recipe.steps)
    windows = stream[: len(stream) // recipe.window * recipe.window].view(-1, recipe.window)  # [N, T]
    order = torch.cat([torch.randperm(len(windows)) for _ in range(recipe.steps * recipe.batch // len(windows) + 1)])
    teacher = base.to(torch.bfloat16)
    companion.train()
    losses, started = [], time.perf_counter()
    for step in range(recipe.steps):
        batch = windows[order[step * recipe.batch : (step + 1) * recipe.batch]]
        with torch.no_grad():
            target = teacher(batch, use_cache=False).logits
        with torch.autocast(batch.device.type, torch.bfloat16):
            logits = companion(batch, use_cache=False).logits
        loss, gradient = divergence(target.flatten(0, 1), logits.flatten(0, 1))
        logits.backward(gradient.view_as(logits))
        nn.utils.clip_grad_norm_(companion.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss)
        if (step + 1) % 20 == 0:
            left = (time.perf_counter() - started) / (step + 1) * (recipe.steps - step - 1)
            print(f"step {step + 1} of {recipe.steps}: {sum(losses[-20:]) / 20:.3f} nats, {left / 60:.0f} min left")
    base.to(torch.float32)
    companion.eval()
    return losses


@torch.no_grad()
def divergence(target: Tensor, logits: Tensor, rows: int = 64) -> tuple[float, Tensor]:
    """Mean KL(target || logits) over rows and its gradient in `logits`; all [B·T, V]. Chunks of rows stay in cache."""
    total, gradients = 0.0, []
    for t, q in zip(target.split(rows), logits.split(rows), strict=True):
        t, q = t.float().log_softmax(-1), q.float().log_softmax(-1)
        p = t.exp()
        total += (p * (t - q)).sum().item()
        gradients.append(((q.exp() - p) / len(logits)).to(logits.dtype))
    return total / len(logits), torch.cat(gradients)


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], window: int) -> float:
    """exp of the mean loss per token, each document on its own and cut to the first `window` tokens."""
    total = count = 0.0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=window)["input_ids"]
        if ids.shape[1] > 1:
            losses = F.cross_entropy(model(ids).logits[0, :-1].float(), ids[0, 1:], reduction="sum")
            total, count = total + losses.item(), count + ids.shape[1] - 1
    return float(torch.tensor(total / count).exp())


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"make_companion: {error}")
