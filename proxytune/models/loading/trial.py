"""A trial of what engines rely on: a row gives the same logits in a batch and on its own, read in parts and at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from peft import PeftModel, PeftType
from torch import Tensor

from proxytune.errors import UserError, first_line
from proxytune.models.member import ADAPTERS_OFF, Member
from proxytune.models.threads import few_threads

LENGTHS = 24, 3
"""Tokens of the two rows, so that one has much padding; the last two of each are read one by one."""
_LIMIT = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Largest KL divergence in nats that may come of rounding, by number type."""
_LIMIT_16_BIT = 0.05
_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, NotImplementedError)


def check_reading(members: Iterable[Member]) -> None:
    """UserError for a module that does not read as engines have it read: through a cache, in rows padded on the left.

    Recurrent models whose state is kept elsewhere, models that look ahead (encoders) and positions that count padding
    are of this kind. Modules that give NaN pass: their answers are found invalid one by one.
    """
    for member in {(id(member.model), member.adapter): member for member in members}.values():
        kind = _kind(member)
        try:
            with few_threads([member]):
                apart = _divergence(member)
        except _ERRORS as error:
            raise UserError(f"{member.role}: {kind} can't be read through a cache: {first_line(error)}") from error
        if apart > _LIMIT.get(member.model.dtype, _LIMIT_16_BIT):
            raise UserError(
                f"{member.role}: {kind} is not supported: a row read in a batch, through a cache, differs from the "
                f"same row read alone without one by {apart:.2g} nats"
            )


def _kind(member: Member) -> str:
    model = member.model.config.model_type
    if not isinstance(member.model, PeftModel) or member.adapter == ADAPTERS_OFF:
        return model
    return f"{model} with an adapter of type {PeftType(member.model.peft_type).value}"


def _divergence(member: Member) -> float:
    """The largest KL divergence in nats between what follows a token of a row read either way."""
    rows = [(torch.arange(length) * 7 + 3).remainder(member.vocab_size) for length in LENGTHS]
    known = torch.tensor([token not in set(member.missing) for token in range(member.vocab_size)])
    alone, together = torch.stack([_alone(member, row) for row in rows]), _together(member, rows)
    alone = alone[..., known[: alone.shape[-1]]].log_softmax(dim=-1)
    together = together[..., known].log_softmax(dim=-1)
    return torch.nn.functional.kl_div(together, alone, log_target=True, reduction="none").sum(dim=-1).max().item()


def _together(member: Member, rows: Sequence[Tensor]) -> Tensor:
    """Logits after each of the last three tokens of `rows`, read as engines do: [B, 3, V]."""
    width = max(map(len, rows))
    tokens = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([torch.arange(width) >= width - len(row) for row in rows]).long()
    state = member.start(len(rows))
    logits = [member.read(state, tokens[:, :-2], mask[:, :-2])]
    logits += [member.read(state, tokens[:, i : i + 1]) for i in (width - 2, width - 1)]
    return torch.cat(logits, dim=1).float().cpu()


@torch.inference_mode()
def _alone(member: Member, row: Tensor) -> Tensor:
    """The same of one row, at once and without a cache: [3, rows of the head up to V]."""
    with member.active():
        logits = member.model(input_ids=member.known(row[None].to(member.device)), use_cache=False).logits
    return logits[0, -3:, : member.vocab_size].float().cpu()
