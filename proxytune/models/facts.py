"""What is known of a family's members without their weights: all that prompts and the keys of answers need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from proxytune.errors import unknown_name
from proxytune.models.vocabulary import token_numbers, vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


class AnyMember(Protocol):
    """What `MemberFacts` and a loaded `Member` have in common."""

    @property
    def ends(self) -> frozenset[int]: ...

    @property
    def ignored(self) -> Mapping[str, Any]: ...

    @property
    def remote(self) -> bool: ...


MemberT_co = TypeVar("MemberT_co", bound=AnyMember, covariant=True)


@dataclass(frozen=True)
class MemberFacts:
    """A member whose weights have not been read; its fields are those of `Member`."""

    role: str
    window: int | None
    dtype: Any
    """torch.dtype of its weights."""
    ends: frozenset[int]
    identity: str
    tokenizer: PreTrainedTokenizerBase
    read_config: Callable[[], PreTrainedConfig]
    """Reads its configuration, for callers that need more of it."""
    render: Callable[[str], str] | None = None
    missing: tuple[int, ...] = ()
    unknown: int = 0
    ignored: Mapping[str, Any] = field(default_factory=dict)

    remote: ClassVar[bool] = False
    """Whether it is behind an endpoint, which only returns the most likely tokens."""

    @cached_property
    def config(self) -> PreTrainedConfig:
        return self.read_config()


class Members(Generic[MemberT_co]):
    """Members by role ("base", "antiexpert", "expert:<name>", "tuned:<name>") over one vocabulary."""

    def __init__(
        self,
        members: Mapping[str, MemberT_co],
        tokenizer: PreTrainedTokenizerBase,
        end_tokens: Sequence[str] | None = None,
    ) -> None:
        """`end_tokens` end an answer; None: the end tokens of the members (`ends`)."""
        self.members = dict(members)
        self.tokenizer = tokenizer
        self.vocab_size = vocabulary_size(tokenizer)
        self.end_tokens = end_tokens

    @property
    def remote(self) -> bool:
        """Whether any member is behind an endpoint."""
        return any(member.remote for member in self.members.values())

    def __getitem__(self, role: str) -> MemberT_co:
        if role not in self.members:
            raise unknown_name("role", role, self.members)
        return self.members[role]

    def ends(self, roles: Iterable[str]) -> tuple[int, ...]:
        """The tokens that end an answer of `roles`, ascending: those given to the family, else the union of those named
        by the family's tokenizer, the members' own tokenizers and their generation configs.

        A chat expert may end its turn with a token that only its own generation config lists (`<|eot_id|>`,
        `<|im_end|>`): the fused answer ends there too, like the expert's own.
        """
        if self.end_tokens is not None:
            return token_numbers(self.tokenizer, self.end_tokens)
        found = ends_of(self.tokenizer.eos_token_id).union(*(self[role].ends for role in roles))
        return tuple(sorted(token for token in found if token < self.vocab_size))


def ends_of(listed: int | Sequence[int] | None, tokenizer: PreTrainedTokenizerBase | None = None) -> frozenset[int]:
    """The tokens that end an answer of a member: those of its generation config, and that of its own tokenizer."""
    tokens = [*(listed if isinstance(listed, list | tuple) else [listed])]
    tokens += [] if tokenizer is None else [tokenizer.eos_token_id]
    return frozenset(token for token in tokens if token is not None)
