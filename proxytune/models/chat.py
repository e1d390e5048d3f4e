"""A member's own prompt: the plain prompt as the user's turn of the member's chat template."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

from jinja2.exceptions import TemplateError
from pydantic import AfterValidator, BeforeValidator

from proxytune.errors import UserError, unknown_name
from proxytune.models.vocabulary import tokens_before
from proxytune.validation import strict_dataclass

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _date(value: str) -> str:
    try:
        return date.fromisoformat(value).isoformat()
    except ValueError as error:
        raise ValueError(f"{value!r} is not a date: give one like 2024-07-26") from error


PUBLISHED = {
    "liu2024": (
        "[INST]{% if messages[0].role == 'system' %}<<SYS>>\n{{ messages[0].content }}\n<</SYS>>\n\n{% endif %}"
        " {{ messages[-1].content }} [/INST]"
    ),
}
"""Templates that published code uses instead of the model's own. https://github.com/alisawuffles/proxy-tuning has no
blank before <<SYS>> and one after the system prompt, and only for the expert of proxy-tuning."""


@strict_dataclass("chat")
class Chat:
    """How a chat model is given what other members read as a plain prompt, as in Liu et al. 2024 (arXiv 2401.08565)."""

    system_prompt: str | None = None
    """a text: the system turn, or null for none; the template then inserts its own default if it has one"""
    user_prefix: str = ""
    """a text that precedes the user's question (such as "Complete the following: ")"""
    response_prefixes: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    """a list of texts: endings of the plain prompt (such as "Answer:") that move to the start of the model's turn"""

    template: str | None = None
    """a name among the model's chat templates, "liu2024" (the framing in that paper's code), or null: the model's own,
    which is "default" where it has several"""
    date: Annotated[str, AfterValidator(_date)] = "2024-07-26"
    """a date like "2024-07-26": today's date for templates that mention it, so that prompts are the same every day"""

    def split(self, prompt: str) -> tuple[str, str]:
        """The user's question, and the start of the model's turn ("" if the prompt ends in none of the prefixes)."""
        prefix = next((p for p in self.response_prefixes if prompt.endswith(p)), "")
        return self.user_prefix + prompt.removesuffix(prefix).strip(), prefix

    def strftime(self, form: str) -> str:
        """`date` formatted as by `time.strftime`; templates call this as `strftime_now`."""
        return date.fromisoformat(self.date).strftime(form)


@dataclass(frozen=True)
class ChatPrompt:
    """Turns a plain prompt into the text that a chat model reads: `Member.render`. Equal objects render equally."""

    chat: Chat
    template: str
    tokenizer: PreTrainedTokenizerBase = field(compare=False, repr=False)

    @classmethod
    def of(cls, chat: Chat, tokenizer: PreTrainedTokenizerBase, role: str) -> ChatPrompt:
        """Raises UserError if the model has no such chat template, or if the template refuses the system prompt."""
        prompt = cls(chat, _template(chat, tokenizer, role), tokenizer)
        try:
            prompt("")
        except TemplateError as error:
            raise UserError(f"{role}: the chat template refuses chat.system_prompt: {error}") from error
        return prompt

    def __call__(self, prompt: str) -> str:
        """The rendered turns, without the beginning-of-sequence token if the tokenizer adds it to every text."""
        asked, prefix = self.chat.split(prompt)
        system = [] if self.chat.system_prompt is None else [{"role": "system", "content": self.chat.system_prompt}]
        text = self.tokenizer.apply_chat_template(
            [*system, {"role": "user", "content": asked}],
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=True,
            strftime_now=self.chat.strftime,
        )
        assert isinstance(text, str)
        if tokens_before(self.tokenizer)[:1] == [self.tokenizer.bos_token_id]:
            text = text.removeprefix(str(self.tokenizer.bos_token))
        space = " " if prefix and not text[-1:].isspace() else ""
        return text + space + prefix


def _template(chat: Chat, tokenizer: PreTrainedTokenizerBase, role: str) -> str:
    own = tokenizer.chat_template
    known = PUBLISHED | (own if isinstance(own, dict) else {} if own is None else {"default": own})
    wanted = "default" if chat.template is None else chat.template
    if chat.template is None and own is None:
        raise UserError(f"{role}: {tokenizer.name_or_path!r} has no chat template, so chat has no meaning for it")
    if wanted not in known:
        raise unknown_name(f"chat template of {role}", wanted, known)
    return known[wanted]
