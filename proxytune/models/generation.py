"""Evaluation decodes as the task says. Other settings in models' generation configs are reported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import GenerationConfig

_SAMPLING = {"temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}
"""Settings without an effect unless do_sample is set."""
_NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "length_penalty"), 1.0),
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), 1),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "diversity_penalty"), 0),
    **dict.fromkeys(("do_sample", "early_stopping", "remove_invalid_values"), False),
}
"""The values at which a setting does nothing."""
_TECHNICAL = (
    *("_from_model_config", "transformers_version", "bos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("use_", "cache_", "max_cache", "prefill_", "compile_", "disable_compile", "continuous_", "low_memory"),
    *("return_", "output_", "is_assistant", "assistant_", "num_assistant", "target_", "prompt_lookup", "max_matching"),
    *("speculation_", "eos_token_id", "max_length", "max_new_tokens"),
)
"""Prefixes of settings that change no token, that evaluation applies (end tokens) or that tasks set (lengths)."""


def ignored_settings(config: GenerationConfig | None) -> dict[str, Any]:
    """The settings of a member's generation config that `generate` applies but evaluation does not."""
    given = {} if config is None else config.to_diff_dict()
    return {
        name: value
        for name, value in sorted(given.items())
        if not name.startswith(_TECHNICAL)
        and value != _NEUTRAL.get(name)
        and (given.get("do_sample") or name not in _SAMPLING)
    }
