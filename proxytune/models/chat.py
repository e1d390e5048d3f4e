"""A member's own prompt: the plain prompt as the user's turn of the member's chat template."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from jinja2.exceptions import TemplateError
from pydantic import BeforeValidator

from proxytune.errors import UserError
from proxytune.validation import strict_dataclass

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@strict_dataclass("chat")
class Chat:
    """How a chat model is asked what the others read as a plain prompt, as in Liu et al. 2024 (arXiv 2401.08565)."""

    system_prompt: str | None = None
    """a text: the system turn, or null for none, and the template puts in its own default if it has one"""
    response_prefixes: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    """a list of texts: ends of the plain prompt ("Answer:", say) that are not asked but begin the model's turn"""

    def split(self, prompt: str) -> tuple[str, str]:
        """What the user asks, and what begins the model's turn ("" if the prompt ends in none of the prefixes)."""
        prefix = next((p for p in self.response_prefixes if prompt.endswith(p)), "")
        return prompt.removesuffix(prefix).strip(), prefix


@dataclass(frozen=True)
class ChatPrompt:
    """Turns a plain prompt into the text that a chat model reads: `Member.render`. Equal ones render equally."""

    chat: Chat
    template: str
    tokenizer: PreTrainedTokenizerBase = field(compare=False, repr=False)

    @classmethod
    def of(cls, chat: Chat, tokenizer: PreTrainedTokenizerBase, role: str) -> ChatPrompt:
        """Raises UserError where the model has no chat template, or one that refuses the system prompt."""
        if not isinstance(tokenizer.chat_template, str):
            raise UserError(f"{role}: {tokenizer.name_or_path!r} has no chat template, so chat has no meaning for it")
        prompt = cls(chat, tokenizer.chat_template, tokenizer)
        try:
            prompt("")
        except TemplateError as error:
            raise UserError(f"{role}: the chat template refuses chat.system_prompt: {error}") from error
        return prompt

    def __call__(self, prompt: str) -> str:
        """The rendered turns, without a beginning-of-sequence token where tokenising the text adds it anyway."""
        asked, prefix = self.chat.split(prompt)
        system = [] if self.chat.system_prompt is None else [{"role": "system", "content": self.chat.system_prompt}]
        messages = [*system, {"role": "user", "content": asked}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert isinstance(text, str)
        if _adds_bos(self.tokenizer):
            text = text.removeprefix(str(self.tokenizer.bos_token))
        space = " " if prefix and not text[-1:].isspace() else ""
        return text + space + prefix


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
