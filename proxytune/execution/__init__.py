"""Runs programs that models wrote, in a sandbox, and says whether they passed."""

from proxytune.execution.sandbox import ISOLATIONS, Limits, Sandbox, Verdict

__all__ = ["ISOLATIONS", "Limits", "Sandbox", "Verdict"]
