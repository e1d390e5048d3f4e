"""Exponential tilting of a distribution along logit differences. Shapes: n rows, T experts, V tokens.

With the log-normaliser psi(w) = log sum_v P_v exp(sum_t w_t d_tv), its gradient m(w) and its Hessian C(w), which are
the mean and the covariance of d under P~_w:

    KL(P~_w || P) = w . m(w) - psi(w)        gradient  C(w) w
    KL(P || P~_w) = psi(w) - w . m(0)        gradient  m(w) - m(0)

For one expert both grow with |w| on either side of 0.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from proxytune.fusion.logits import CACHED, add, cached

FLAT = 1e-4
"""A difference that varies by less than this over the tokens, in nats, has no effect: every weight gives the base up
to rounding."""
LARGE = 60.0
"""Exponents within +-60 neither overflow nor underflow float32 sums."""
UNDIVIDED = 2**15
"""PyTorch uses one thread for sums of fewer numbers."""

Moments = Callable[[Tensor, Tensor, Tensor], list[Tensor]]
"""From p [k, V] (may be overwritten), d [T, k, V] and w [T, k] to sums over the tokens, each [k]."""


class Tilt:
    """The family P~_w = softmax(logits + sum_t w_t d_t) of n rows, seen from P = P~_0.

    A token that `logits` masks with -inf has probability 0 at every w; a row that masks every token counts as uniform.
    """

    def __init__(self, logits: Tensor, d: Tensor, reach: float, like: Tilt | None = None) -> None:
        """`logits` [n, V] and finite differences `d` [T, n, V], float32; weights will be within +-`reach`.

        `like` is another family with the same `d`, whose `range` is reused.
        """
        self.log_p, self.d = torch.empty_like(logits), d
        ranges, sums = [], list[list[Tensor]]()
        for part in cached(logits):
            top = logits[part].amax(-1, keepdim=True)
            log_p = torch.sub(logits[part], top, out=self.log_p[part])
            if not math.isfinite(top.sum().item()):
                log_p.masked_fill_(torch.isneginf(top), 0.0)
            if like is None:
                ranges.append(torch.stack(torch.aminmax(d[:, part], dim=-1)))
            # Use the same sums as at any other w, so that both divergences are exactly 0 at w = 0.
            p = log_p.exp()
            sums.append([_sum(p), *_mean(p, d[:, part], top)])
        total, *means = _joined_all(sums)
        self.psi0, self.mean0 = total.log(), _stacked(means) / total
        self.range: Tensor = _joined(ranges) if like is None else like.range
        """[2, T, n] the smallest and the largest difference."""
        self.extreme = self._extreme(reach)

    def _extreme(self, reach: float) -> Tensor | None:
        """[n]: whether exponents may exceed `LARGE`; None if no row's may."""
        if reach * len(self.d) * self.range.abs().max().item() <= LARGE:
            return None
        extreme = reach * torch.maximum(-self.range[0], self.range[1]).sum(0) > LARGE
        return extreme if extreme.any() else None

    def rows(self, index: Tensor) -> Tilt:
        """The same families, restricted to the rows `index` [k], ascending."""
        if len(index) == len(self.psi0):
            return self
        some = copy.copy(self)
        some.log_p, some.d = self.log_p[index], self.d[:, index]
        some.psi0, some.mean0 = self.psi0[index], self.mean0[:, index]
        some.range = self.range[..., index]
        some.extreme = None if self.extreme is None else self.extreme[index]
        return some

    def lines(self) -> Tilt:
        """One family per expert, each with one weight: T n rows, those of the first expert first."""
        experts = self.d.shape[0]
        if experts == 1:
            return self
        each = copy.copy(self)
        each.log_p, each.psi0 = self.log_p.repeat(experts, 1), self.psi0.repeat(experts)
        each.d, each.mean0 = self.d.flatten(0, 1)[None], self.mean0.flatten()[None]
        each.range = self.range.flatten(1)[:, None]
        each.extreme = None if self.extreme is None else self.extreme.repeat(experts)
        return each

    def together(self) -> Tilt:
        """The same family with one weight for all experts."""
        line = copy.copy(self)
        line.d, line.mean0 = add(self.d)[None], add(self.mean0)[None]
        line.range = torch.stack(torch.aminmax(line.d, dim=-1))
        return line

    @property
    def spread(self) -> Tensor:
        """[T, n]: the range of d over the tokens."""
        return self.range[1] - self.range[0]

    @property
    def flat(self) -> Tensor:
        """[T, n]: True where d is the same at every token that `logits` allows."""
        if math.isfinite(self.log_p.sum().item()):
            return self.spread <= FLAT
        allowed, likeliest = ~torch.isneginf(self.log_p), self.log_p.argmax(-1, keepdim=True)
        at_likeliest = self.d.gather(-1, likeliest.expand(len(self.d), -1, -1))
        lowest, highest = torch.where(allowed, self.d, at_likeliest).aminmax(dim=-1)
        return highest - lowest <= FLAT

    def divergences(self, w: Tensor) -> Tensor:
        """[2, n]: KL(P~ || P) and KL(P || P~) in nats at w [T, n]."""
        psi, total, sums = self._expect(_mean, w)
        return self._divergences(w, psi, _stacked(sums) / total)

    def line(self, w: Tensor) -> Tensor:
        """For one expert, w [1, n]: the divergences, their first and their second derivatives, [6, n]."""
        psi, total, sums = self._expect(_powers, w)
        mean, square, cube = (some / total for some in sums)
        variance = square - mean * mean
        skew = cube - mean * (3 * square - 2 * mean * mean)
        w, mean0 = w[0], self.mean0[0]
        forward, backward = w * mean - psi, psi - w * mean0
        return torch.stack([forward, backward, w * variance, mean - mean0, variance + w * skew, variance])

    def gradients(self, w: Tensor) -> Tensor:
        """The divergences and their gradients at w [T, n]: [2 + 2 T, n], KL(P~ || P) first."""
        psi, total, sums = self._expect(_along, w)
        mean, product = (_stacked(sums) / total).chunk(2)
        return torch.cat([self._divergences(w, psi, mean), product - mean * add(w * mean), mean - self.mean0])

    def _divergences(self, w: Tensor, psi: Tensor, mean: Tensor) -> Tensor:
        return torch.stack([_dot(w, mean) - psi, psi - _dot(w, self.mean0)])

    def _expect(self, moments: Moments, w: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """psi(w) [n], the sum of P exp(w . d) [n], and the M sums of `moments`, each [n]."""
        sums, scales = list[list[Tensor]](), []
        for log_p, d, part in self._parts():
            x = log_p
            for d_t, w_t in zip(d, w[:, part, None], strict=True):
                x = torch.addcmul(x, d_t, w_t)
            if self.extreme is not None:
                scales.append(torch.where(self.extreme[part], x.amax(-1), 0.0))
                x.sub_(scales[-1][:, None])
            p = x.exp_()
            sums.append([_sum(p), *moments(p, d, w[:, part])])
        total, *others = _joined_all(sums)
        psi = torch.cat(scales) + total.log() if scales else total.log()
        return psi - self.psi0, total, others

    def _parts(self) -> Iterator[tuple[Tensor, Tensor, slice]]:
        """Slices of rows that fit the cache: their log_p, their d, and the slice."""
        if self.log_p.numel() <= CACHED:
            yield self.log_p, self.d, slice(None)
            return
        for part in cached(self.log_p):
            yield self.log_p[part], self.d[:, part], part


def _joined(parts: list[Tensor]) -> Tensor:
    """Concatenates along the rows, the last dimension."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _joined_all(parts: list[list[Tensor]]) -> list[Tensor]:
    """Concatenates each of several tensors along the rows."""
    return parts[0] if len(parts) == 1 else [torch.cat(some, -1) for some in zip(*parts, strict=True)]


def _stacked(tensors: list[Tensor]) -> Tensor:
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def _dot(w: Tensor, x: Tensor) -> Tensor:
    """The dot product over the experts: [n] from [T, n] and [T, n]."""
    return (w * x)[0] if w.shape[0] == 1 else add(w * x)


def _mean(p: Tensor, d: Tensor, w: Tensor) -> list[Tensor]:
    if d.shape[0] == 1:
        return [_sum(p.mul_(d[0]))]
    return [_sum(p * d_t) for d_t in d]


def _powers(p: Tensor, d: Tensor, w: Tensor) -> list[Tensor]:
    """For one expert: the sums of p d, p d^2, p d^3."""
    d_1 = d[0]
    return [_sum(p.mul_(d_1)) for _ in range(3)]


def _along(p: Tensor, d: Tensor, w: Tensor) -> list[Tensor]:
    """The sums of p d_t, then of p d_t sum_s w_s d_s, which are enough for C w."""
    total = d[0] * w[0, :, None]
    for d_s, w_s in zip(d[1:], w[1:], strict=True):
        total.addcmul_(d_s, w_s[:, None])
    weighted = [p * d_t for d_t in d]
    means = [_sum(pd) for pd in weighted]
    return means + [_sum(pd.mul_(total)) for pd in weighted]


def _sum(x: Tensor) -> Tensor:
    """x.sum(-1) of [n, V]; each row's sum is bitwise independent of the number of rows."""
    # PyTorch splits a single long row across threads, which changes the order of the additions.
    return x.sum(-1) if x.numel() < UNDIVIDED or len(x) > 1 else torch.cat([x, x]).sum(-1)[:1]
