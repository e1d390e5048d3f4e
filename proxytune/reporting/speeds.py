"""What decoding a task took, in one line: speed, each model's share of the time, and how many drafts were accepted."""

from __future__ import annotations

from collections.abc import Iterator

from proxytune.record import Bandwidth, Drafts, Record


def speeds(record: Record) -> Iterator[str]:
    """A line for each task for which an engine that measures itself has computed answers."""
    timings = record.provenance.timings
    for task, costs in timings.costs.items():
        seconds, tokens = timings.task_seconds.get(task), sum(arm.tokens for arm in costs.arms.values())
        if not seconds or not tokens:
            continue
        parts = [f"{role} {100 * part / seconds:.0f} %" for role, part in costs.members.items()]
        line = f"{task}: {tokens:,} tokens of all arms in {seconds:.3g} s, {tokens / seconds:.3g}/s"
        yield (
            line
            + (f"; {', '.join(parts)} of the time" if parts else "")
            + _drafts(costs.drafts)
            + _bandwidth(costs.bandwidth)
        )


def _drafts(drafts: Drafts) -> str:
    if drafts.acceptance is None or drafts.tokens_per_pass is None:
        return ""
    right = f"{100 * drafts.acceptance:.0f} % of {drafts.drafted:,} drafted tokens right"
    return f"; {drafts.tokens_per_pass:.2g} tokens a pass, {right}"


def _bandwidth(bandwidth: Bandwidth) -> str:
    if not bandwidth.read or not bandwidth.seconds:
        return ""
    copied = "" if bandwidth.copied is None else f" (a copy in memory: {bandwidth.copied / 1e9:.3g})"
    return f"; weights read at {bandwidth.read / bandwidth.seconds / 1e9:.3g} GB/s{copied}"
