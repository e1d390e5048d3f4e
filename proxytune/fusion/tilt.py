"""The calculus of moving a distribution along logit differences. Shapes: n rows, T experts, V tokens.

With the log-normaliser psi(w) = log sum_v P_v exp(sum_t w_t d_tv), its gradient m(w) and its Hessian C(w), which are
the mean and the covariance of d under P~_w:

    KL(P~_w || P) = w . m(w) - psi(w)        gradient  C(w) w
    KL(P || P~_w) = psi(w) - w . m(0)        gradient  m(w) - m(0)

For one expert both grow with |w| on either side of 0.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

FLAT = 1e-4
"""A difference that varies by less than this over the tokens (in nats) says nothing: every weight gives the base,
up to rounding."""
LARGE = 60.0
"""Exponents within +-60 neither overflow float32 sums nor lose anything from them."""


class Tilt:
    """The family P~_w = softmax(logits + sum_t w_t d_t) of n rows, seen from P = P~_0.

    A token that `logits` masks with -inf has probability 0 throughout; a row that masks every token counts as uniform.
    """

    def __init__(self, logits: Tensor, differences: Sequence[Tensor], reach: float) -> None:
        """`logits` [n, V] and T finite `differences` [n, V], all float32; weights will be within +-`reach`."""
        top = logits.amax(-1, keepdim=True)
        self.log_p, self.d = logits - top, list(differences)
        if torch.isneginf(top).any():
            self.log_p.masked_fill_(torch.isneginf(top), 0.0)
        self.lowest, self.highest = (torch.stack([f(d, -1) for d in self.d]) for f in (torch.amin, torch.amax))
        extreme = reach * torch.maximum(-self.lowest, self.highest).sum(0) > LARGE
        self.extreme = extreme[:, None] if extreme.any() else None
        # psi(0) and m(0) come from the same sums as at any w, so that both divergences are exactly 0 at w = 0.
        p = self.log_p.exp()
        total = _sum(p)
        self.psi0, self.mean0 = total.log(), self._mean(p, total)

    def only(self, t: int) -> Tilt:
        """The same family with expert t alone."""
        return self._along(self.d[t], self.mean0[t], self.lowest[t], self.highest[t])

    def together(self) -> Tilt:
        """The same family with one weight for all experts."""
        d = torch.stack(self.d).sum(0)
        return self._along(d, self.mean0.sum(0), d.amin(-1), d.amax(-1))

    def _along(self, d: Tensor, mean0: Tensor, lowest: Tensor, highest: Tensor) -> Tilt:
        line = copy.copy(self)
        line.d, line.mean0, line.lowest, line.highest = [d], mean0[None], lowest[None], highest[None]
        return line

    @property
    def flat(self) -> Tensor:
        """[T, n]: True where d is the same at every token that `logits` allows."""
        if self.log_p.sum().isfinite():
            return self.highest - self.lowest <= FLAT
        allowed, likeliest = ~torch.isneginf(self.log_p), self.log_p.argmax(-1, keepdim=True)
        differences = [torch.where(allowed, d, d.gather(-1, likeliest)) for d in self.d]
        return torch.stack([d.amax(-1) - d.amin(-1) <= FLAT for d in differences])

    def divergences(self, w: Tensor) -> Tensor:
        """[2, n]: KL(P~ || P) and KL(P || P~) in nats at w [T, n]."""
        p, total, psi = self._at(w)
        return self._divergences(w, psi, self._mean(p, total))

    def line(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One expert, w [1, n]: the divergences, their first and their second derivatives, each [2, n]."""
        p, total, psi = self._at(w)
        mean, square, cube = (_sum(p.mul_(self.d[0])) / total for _ in range(3))
        variance = square - mean * mean
        skew = cube - mean * (3 * square - 2 * mean * mean)
        first = torch.stack([w[0] * variance, mean - self.mean0[0]])
        second = torch.stack([variance + w[0] * skew, variance])
        return self._divergences(w, psi, mean[None]), first, second

    def gradients(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The divergences [2, n] and their gradients [2, T, n] at w [T, n]."""
        p, total, psi = self._at(w)
        weighted = [p * d for d in self.d]
        mean = torch.stack([_sum(pd) for pd in weighted]) / total
        # C w is the covariance of each d_t with sum_s w_s d_s: no T x T matrix.
        along = torch.stack([d * w_s[:, None] for d, w_s in zip(self.d, w, strict=True)]).sum(0)
        product = torch.stack([_sum(pd * along) for pd in weighted]) / total
        gradient = torch.stack([product - mean * (w * mean).sum(0), mean - self.mean0])
        return self._divergences(w, psi, mean), gradient

    def _at(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """At w [T, n]: P~ times a factor per row [n, V], its sum [n], and psi [n]."""
        x = self.log_p
        for w_t, d in zip(w, self.d, strict=True):
            x = torch.addcmul(x, d, w_t[:, None])
        if self.extreme is None:
            p = x.exp_()
            total = _sum(p)
            return p, total, total.log() - self.psi0
        top = torch.where(self.extreme, x.amax(-1, keepdim=True), 0.0)
        p = x.sub_(top).exp_()
        total = _sum(p)
        return p, total, total.log() + top[:, 0] - self.psi0

    def _mean(self, p: Tensor, total: Tensor) -> Tensor:
        """[T, n]: the mean of each d; with one expert it writes over p."""
        if len(self.d) == 1:
            return (_sum(p.mul_(self.d[0])) / total)[None]
        return torch.stack([_sum(p * d) for d in self.d]) / total

    def _divergences(self, w: Tensor, psi: Tensor, mean: Tensor) -> Tensor:
        return torch.stack([(w * mean).sum(0) - psi, psi - (w * self.mean0).sum(0)])


def _sum(x: Tensor) -> Tensor:
    """x.sum(-1) of [n, V], to the last bit the same for a row alone as for a row among others."""
    # PyTorch splits a single long row between threads, which changes the order of the additions.
    return x.sum(-1) if len(x) > 1 else torch.cat([x, x]).sum(-1)[:1]
