"""Keeps secrets out of shell histories, printed configurations, logs and results.

A secret comes from the environment, `token: ${oc.env:HF_TOKEN}`, and is never written anywhere. Configurations are
saved and printed with that text. Where they are resolved for a reader, values from the environment become `***`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

from proxytune.errors import UserError

MASK = "***"
SHORTEST = 6
"""Shorter values of environment variables are not taken for secrets: masking them would garble every text."""
WORDS = {"token", "key", "apikey", "secret", "password", "passwd", "credential", "credentials"}
"""Words in the names of secrets."""
TOKENS = re.compile(r"\b(?:hf|api_org|gh[pousr])_[A-Za-z0-9]{30,}\b|(?<=://)[^\s/@:]+:[^\s/@]+(?=@)")
"""Secrets by their form: access tokens of the hub and others, a name and password in an address."""


def check(config: DictConfig) -> None:
    """Raises UserError for a secret in plain text, and for one that is given to a key not named as a secret."""
    for key, value in texts(config):
        # Hydra's notes of the command line are kept as they were typed.
        if key.startswith(("hydra.overrides.", "hydra.job.override_dirname")):
            continue
        if TOKENS.search(value):
            raise UserError(
                f"{key} holds an access token in plain text, which would be kept with the results: log in with "
                "`hf auth login`, or put it into the environment variable HF_TOKEN"
            )
        if is_secret(key.rpartition(".")[2]):
            if value and "${oc.env:" not in value:
                raise UserError(
                    f"{key} is a secret in plain text, which would be kept with the results: "
                    f"put it into an environment variable and give {key}=${{oc.env:NAME}}"
                )
        elif "${" in value and (names := [name for name in re.findall(r"\w+", value) if is_secret(name)]):
            raise UserError(
                f"{key} would show {names[0]}, which is a secret: only a key that is called one may take it"
            )


def is_secret(name: str) -> bool:
    """Whether `name` is that of a secret: HF_TOKEN, api_key or password, not missing_tokens or tokenizer."""
    return not WORDS.isdisjoint(re.split(r"[^a-z0-9]+", name.lower()))


def hidden(text: str) -> str:
    """`text` without what looks like a secret, and without the values of environment variables that are called one."""
    for name, value in os.environ.items():
        if is_secret(name) and len(value) >= SHORTEST:
            text = text.replace(value, MASK)
    return TOKENS.sub(MASK, text)


def resolved(config: DictConfig) -> dict[str, Any]:
    """Plain values for printing and recording."""
    with environment_masked():
        values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@contextmanager
def environment_masked() -> Iterator[None]:
    """While it lasts, `${oc.env:NAME}` is `***` if there is such a variable."""

    def masked(name: str, *default: object) -> str | None:
        return MASK if name in os.environ else oc.env(name, *default)

    OmegaConf.register_new_resolver("oc.env", masked, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def texts(config: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in `config`, interpolations unresolved, with its full key."""
    node = OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else config
    if isinstance(node, dict):
        for name, child in node.items():
            yield from texts(child, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for child in node:
            yield from texts(child, key)
    elif isinstance(node, str):
        yield key, node
