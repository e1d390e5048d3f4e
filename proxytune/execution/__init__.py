"""Runs programs that models wrote, in a sandbox, and says whether they passed."""

from proxytune.execution.sandbox import ISOLATIONS, Isolation, Limits, Sandbox, Verdict

__all__ = ["ISOLATIONS", "Isolation", "Limits", "Sandbox", "Verdict"]
