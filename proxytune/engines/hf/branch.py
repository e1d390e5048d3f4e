"""The unit of decoding: a prefix of a request's answers, and the arms that have produced it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from proxytune.engines.hf.batching import Pending
from proxytune.engines.hf.stopping import StopConditions
from proxytune.engines.requests import GenerateRequest
from proxytune.fusion.arm import Arm


@dataclass(eq=False)
class Branch:
    """A prefix of a request's answers, the arms that have produced it, and a draft of what follows it.

        tokens  … a b    draft  c d e      members read  b c d e      places 0 1 2 3 are after b, c, d, e

    An arm that chooses c, d and then x continues with … a b c d x; e, which the members have read, is `forgotten`.
    """

    pending: Pending[GenerateRequest]
    stops: dict[str, StopConditions]
    """Keyed by the base of an arm; bases that read the same prompt share an object."""
    arms: list[Arm]
    tokens: tuple[int, ...] = ()
    row: dict[str, int] = field(default_factory=dict)
    """The branch's row in the KV state of each member that it needs, by role; rows are in the order of branches."""
    forgotten: int = 0
    """The number of last tokens that its members have read but that are not part of the branch."""
    draft: tuple[int, ...] = ()
    drafter: str | None = None
    """The name of the drafter that may draft for it."""
    most: int = 0
    """The maximum length of its draft."""
    ended: bool = False
    """Whether the last token of the draft ends the answers of all arms, so that no member reads it."""

    @property
    def is_full(self) -> bool:
        """Whether its answers have the maximum number of tokens."""
        return len(self.tokens) == self.pending.request.max_new_tokens

    @property
    def reading(self) -> tuple[int, ...]:
        """The tokens that its members read next."""
        return (self.tokens[-1], *(self.draft[:-1] if self.ended else self.draft))

    @property
    def size(self) -> int:
        """The number of its places: one after each token of `reading`, or after the prompt."""
        return 1 + len(self.draft) - self.ended

    @property
    def places(self) -> list[Place]:
        """The places at which its arms choose a token."""
        return [Place(self, position) for position in range(self.size)]


class Place(NamedTuple):
    """Where a token is chosen: after the tokens of a branch and the first `position` of its draft."""

    branch: Branch
    position: int

    @property
    def step(self) -> int:
        """The number of tokens before it in the answer."""
        return len(self.branch.tokens) + self.position
