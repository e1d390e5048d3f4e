"""Tiny sequence classifiers, and what they say without batches, padding or our code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tiny import tiny_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

WINDOW = 256


def save_classifier(folder: Path, labels: Sequence[str]) -> Path:
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=WINDOW,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    torch.manual_seed(1)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def classified(folder: Path, texts: Sequence[str], number: int = 1) -> list[int]:
    """Whether each text's likeliest label is `number`, text by text."""
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = tiny_tokenizer()
    found = []
    for text in texts:
        ids = tokenizer(text)["input_ids"][:WINDOW] or [tokenizer.pad_token_id]
        found.append(int(model(input_ids=torch.tensor([ids])).logits.argmax() == number))
    return found
