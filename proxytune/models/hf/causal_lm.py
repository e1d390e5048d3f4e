"""A fused family as one Hugging Face causal LM.

    model = FusedCausalLM.compose(base="org/large", antiexpert="org/small", experts="org/small-tuned", rule=Static(1.0))
    model.generate(**model.prompts(["How are you?"]), max_new_tokens=20)

Shapes: B rows, t tokens, K kept positions, V tokens of the vocabulary, T experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from proxytune.compat.transformers import note_owner, plain_sample
from proxytune.errors import UserError, unknown_name
from proxytune.fusion.arm import Arm
from proxytune.fusion.rule import Fused, Rule
from proxytune.models.ensemble import Ensemble
from proxytune.models.hf.cache import FusedCache
from proxytune.models.hf.compose import by_role, expert_roles, gather, generation_config, make_arm
from proxytune.models.hf.config import FusedConfig, FusedOutput
from proxytune.models.hf.decoder import FusedDecoder
from proxytune.models.hf.drafted import asked_draft, check_draft, check_mode, drafting, generate_drafted
from proxytune.models.hf.inputs import (
    check_dynamic,
    check_finite,
    check_generation,
    kept,
    left_padded,
    new_mask,
    own_prompt,
    refuse,
)
from proxytune.models.hf.saved import read
from proxytune.models.hf.saving import check_options, write
from proxytune.models.member import Member
from proxytune.models.vocabulary import MissingTokens


class FusedCausalLM(FusedDecoder):
    """The models that a rule takes read the same tokens; the rule fuses their logits; the rest is transformers.

    Made by `compose`, `from_ensemble` or `from_pretrained`. It only decodes: the members stay in evaluation mode
    and get no gradients. Logits that are NaN or infinite raise a UserError that names the member or the rule.
    """

    config_class = FusedConfig
    _supports_sdpa = True

    def __init__(self, config: FusedConfig, ensemble: Ensemble | None = None, arm: Arm | None = None) -> None:
        super().__init__(config)
        if ensemble is None or arm is None:
            raise UserError("a FusedCausalLM has no weights of its own: use compose, from_ensemble or from_pretrained")
        self.ensemble = ensemble
        self.arm = arm
        # Registered so that parameters, devices and memory are seen; shared modules count once.
        self.members = torch.nn.ModuleList(dict.fromkeys(ensemble[role].model for role in arm.roles))
        self.all_tied_weights_keys: dict[str, str] = {}
        self.loss_type = "ForCausalLM"  # Trainer counts targets by it
        self.generation_config = generation_config(ensemble, arm.roles)
        self.eval()

    # --- making ---

    @classmethod
    def compose(
        cls,
        base: Any,
        experts: Any = None,
        antiexpert: Any = None,
        rule: Rule | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        missing_tokens: MissingTokens = "refuse",
    ) -> FusedCausalLM:
        """From models, Members, or sources (a hub id, a folder, a `Source`), mixed as you like.

        `experts` is one of these, or a mapping of names to them. Models in memory need `tokenizer`, the base's.
        Give the models that the rule takes; without a rule it is the base alone. The rule is tried out before anything
        loads.
        """
        parts = by_role(base, experts, antiexpert, rule)
        return cls.from_ensemble(gather(parts, tokenizer, missing_tokens), rule)

    @classmethod
    def from_ensemble(
        cls, ensemble: Ensemble, rule: Rule | None = None, experts: Sequence[str] | None = None
    ) -> FusedCausalLM:
        """Over members that are loaded already; `experts` are roles; None: all, if the rule takes experts."""
        arm = make_arm(rule, expert_roles(ensemble.members, rule) if experts is None else experts)
        windows = [window for window in (ensemble[role].window for role in arm.roles) if window is not None]
        config = FusedConfig(
            vocab_size=ensemble.vocab_size,
            max_position_embeddings=min(windows, default=None),
            architectures=[cls.__name__],
            dtype=ensemble["base"].model.dtype,
        )
        return cls(config, ensemble, arm)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | PathLike, **kwargs: Any
    ) -> FusedCausalLM:
        """What `save_pretrained` wrote, from a folder or a hub id; options: see `proxytune.models.hf.saved.read`."""
        path = str(pretrained_model_name_or_path)
        ensemble, rule, generation_config = read(path, **kwargs)
        model = cls.from_ensemble(ensemble, rule)
        model.config.name_or_path = model.name_or_path = path
        model.generation_config = generation_config
        return model

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | PathLike,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        **others: Any,
    ) -> None:
        """One folder per member, the rule in config.json, the tokenizer beside it; see `saving.write`.

        Only the main process writes. UserError for the other options of transformers.
        """
        check_options(others, state_dict=state_dict, push_to_hub=push_to_hub)
        if not is_main_process:
            return
        members = Ensemble(
            {role: self.ensemble[role] for role in self.arm.roles}, self.tokenizer, self.ensemble.end_tokens
        )
        write(save_directory, members, self.arm.rule, self.config, self.generation_config, max_shard_size)

    def alone(self, role: str) -> FusedCausalLM:
        """A single member over the same vocabulary, such as an assistant_model for `generate`. Nothing is copied."""
        member = replace(self.ensemble[role], role="base")
        return type(self).from_ensemble(Ensemble({"base": member}, self.ensemble.tokenizer))

    # --- reading ---

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.ensemble.tokenizer

    def prompts(self, texts: Sequence[str]) -> dict[str, Any]:
        """Keyword arguments of `generate` for plain prompts; members with a prompt of their own get its rendering."""
        if isinstance(texts, str):
            raise UserError("prompts takes a list of texts, not one text")
        shared: dict[str, Any] = left_padded(self.tokenizer, texts, self.device)
        own = {}
        for role in self.arm.roles:
            member = self.ensemble[role]
            if member.render is not None:
                tokenizer = member.tokenizer or self.tokenizer
                own[role] = left_padded(tokenizer, map(member.render, texts), self.device)
        return {**shared, "member_prompts": own} if own else shared

    def new_cache(self, rows: int, member_prompts: Mapping[str, Any] | None = None) -> FusedCache:
        """An empty cache for a batch of rows. `member_prompts` as in `forward`, for rows or a whole part of them."""
        own = {role: own_prompt(role, prompt, rows) for role, prompt in (member_prompts or {}).items()}
        for role in own.keys() - set(self.arm.roles):
            raise unknown_name("role in member_prompts", role, self.arm.roles)
        for role in self.arm.roles:
            if self.ensemble[role].render is not None and role not in own:
                raise UserError(f"{role} reads a prompt of its own: pass member_prompts, e.g. **model.prompts(texts)")
        return FusedCache(self.ensemble, self.arm.roles, rows, own)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: FusedCache | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        member_prompts: Mapping[str, Any] | None = None,
        return_dict: bool | None = None,
        **unsupported: Any,
    ) -> FusedOutput | tuple:
        """Fused logits after the last `logits_to_keep` of `input_ids` [B, t] (0: all), and the weights chosen there.

        `attention_mask` is [B, past + t], 1 = real. Positions are counted from it, for each member's own prompt.
        `member_prompts` maps roles to what they read in place of the prompt, the first t - logits_to_keep + 1 tokens:
        token ids [B, n], or what a tokenizer returns (padded on the left). Only with an empty cache.
        `labels` [B, t] (-100 = ignore) add the mean cross-entropy as `loss`, or its sum over `num_items_in_batch`, as
        transformers' Trainer asks; it has no gradients.
        Raises UserError for other arguments of transformers models, which have no meaning for several models, and for
        logits that are NaN or infinite after a real token.
        """
        refuse(unsupported)
        if input_ids is None or input_ids.ndim != 2:
            raise UserError("FusedCausalLM reads input_ids [rows, tokens]: the members share tokens, not embeddings")
        cache = self._cache(past_key_values, input_ids.shape[0], member_prompts)
        mask = new_mask(attention_mask, input_ids, cache.length)
        fused = self._step(cache, input_ids, mask, kept(logits_to_keep, input_ids.shape[1], labels, cache))
        output = FusedOutput(
            logits=cast(torch.FloatTensor, fused.logits),
            past_key_values=cache if use_cache is None or use_cache else None,
            weights=cast(torch.FloatTensor, fused.weights),
        )
        if labels is not None:
            output.loss = self.loss(fused.logits, labels, num_items_in_batch)
        return output.to_tuple() if return_dict is False else output

    def _step(self, cache: FusedCache, tokens: Tensor, mask: Tensor, keep: int) -> Fused:
        """Every distinct member runs once, the arm fuses: logits [B, K, V] and weights [T, B, K]."""
        read = self.ensemble.step(cache.next_inputs(tokens, mask, keep))
        logits = cache.members.by_role(self.arm.roles, read)
        fused = self.arm.answer(logits)
        check_finite(fused.logits, logits, mask[:, -keep:], self.arm.rule)
        if self.arm.rule is not None:
            cache.note(fused.weights)
        return fused

    def _cache(self, given: Any, rows: int, member_prompts: Mapping[str, Any] | None) -> FusedCache:
        if given is None:
            return self.new_cache(rows, member_prompts)
        if not isinstance(given, FusedCache):
            raise UserError(f"past_key_values must be a FusedCache (model.new_cache), not {type(given).__name__}")
        if member_prompts:
            raise UserError("member_prompts belong to an empty cache: pass them to new_cache, or no past_key_values")
        return given

    # --- generating ---

    def generate(
        self,
        *args: Any,
        assistant_model: PreTrainedModel | None = None,
        draft: Literal["expert", "ngram"] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in transformers; `member_prompts` as in `forward`. With `return_dict_in_generate=True` the weights of
        every step are in `past_key_values.weights` [T, B, steps].

        `draft` makes greedy decoding and sampling quicker, with the same tokens (docs/speculation.md): "expert" lets
        the expert read ahead, "ngram" repeats what followed the same tokens before; the members verify it in one pass.
        """
        check_dynamic(kwargs.get("cache_implementation"))
        if draft is not None:
            check_draft(draft, self.arm.experts, {"assistant_model": assistant_model, **kwargs})
        # With a tokenizer of its own, transformers translates between the two.
        if assistant_model is not None and kwargs.get("assistant_tokenizer") is None:
            assistant_model = self._assistant(assistant_model)
        with drafting(draft):
            return cast(Any, super()).generate(*args, assistant_model=assistant_model, **kwargs)

    def _sample(self, input_ids: Tensor, **arguments: Any) -> Any:  # type: ignore[override]
        """Greedy decoding and sampling, with the draft that `generate` was given."""
        draft = asked_draft()
        if draft is None:
            return plain_sample(self, input_ids, **arguments)
        return generate_drafted(self, input_ids, draft=draft, **arguments)

    def _assistant(self, model: PreTrainedModel) -> PreTrainedModel:
        """`model` cut to the family's vocabulary, so that padding rows are no candidates.

        A chat member drafts from the plain prompt: that changes how many of its drafts are right, never the answer.
        """
        if not isinstance(model, FusedCausalLM):
            member = Member("base", model, self.config.vocab_size)
        elif model.arm.rule is None:
            member = replace(model.ensemble["base"], render=None)
        else:
            return model
        return type(self).from_ensemble(Ensemble({"base": member}, self.tokenizer))

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict, generation_mode: Any, batch_size: int, max_cache_length: int
    ) -> None:
        """Puts a FusedCache for the expanded batch into `model_kwargs`, with the own prompts inside."""
        prompts = model_kwargs.pop("member_prompts", None)
        check_generation(generation_config, own_prompts=bool(prompts))
        check_mode(generation_mode, generation_config)
        rows = batch_size * max(generation_config.num_beams, generation_config.num_return_sequences)
        given = model_kwargs.get("past_key_values")
        if generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = cache = self._cache(given, rows, prompts)
            note_owner(cache, user=given is not None)
            if generation_config.is_assistant:
                cache.activate_past_recording()

    @property
    def device(self) -> torch.device:
        """Where logits meet: the base's device."""
        return self.ensemble.device

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.ensemble["base"].model.get_input_embeddings()


AutoConfig.register(FusedConfig.model_type, FusedConfig)
AutoModelForCausalLM.register(FusedConfig, FusedCausalLM)
