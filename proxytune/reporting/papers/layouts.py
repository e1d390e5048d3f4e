"""How the papers lay out their tables: columns, rows, the bounds of a row, and which experiments fill "ours"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

GAP, RELATIVE = "gap_closed", "relative_performance"


@dataclass(frozen=True)
class Layout:
    """One table of a paper. A *panel* groups rows (by the size of a model); a row is (panel, arm).

    Figures measured here fill the panel of their experiment; arms that the paper does not have are added as rows below.
    """

    id: str
    title: str
    tasks: Mapping[str, str]
    """Column -> heading, in the paper's order; averages among them."""
    rows: Mapping[tuple[str, str], str]
    """(panel, arm) -> label, in the paper's order."""
    experiments: Mapping[str, str]
    """Experiment in conf/experiment -> the panel that it fills."""
    bounds: Mapping[str, str]
    """Panel -> the panel whose base and tuned model bound its rows."""
    summary: Literal["mean_of_gaps", "gap_of_means"]
    """Whether `gap_closed` is averaged over tasks, or computed from the averages."""
    tuned: str = "tuned"
    """The arm that is the upper bound."""
    averages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column -> the columns it is the mean of."""
    shared: Mapping[str, str] = field(default_factory=dict)
    """Arm -> its panel, where that is the same in every experiment (one large model, several small ones)."""
    runs: Mapping[str, str] = field(default_factory=dict)
    """Column -> the task that measures it here; the others are only in the paper."""
    decimals: int = 1

    def panel(self, experiment: str, arm: str) -> str:
        return self.shared.get(arm, self.experiments[experiment])


@dataclass(frozen=True)
class Paper:
    id: str
    citation: str
    statement: str
    """Which of the two summary figures the paper printed."""
    labels: Mapping[str, str]
    """Arm -> what the paper calls it, in its order."""
    tables: tuple[Layout, ...]


_LIU_LABELS = {
    "expert": "expert",
    "base": "base (untuned)",
    "proxy": "proxy-tuned",
    "tuned": "directly tuned",
    "tuned_lora": "LoRA-tuned",
}


def _liu_rows(*arms: str) -> dict[tuple[str, str], str]:
    large = {(size, arm): f"{size} {_LIU_LABELS[arm]}" for size in ("13B", "70B") for arm in arms}
    return {("7B", "expert"): "7B directly tuned (the expert)", **large}


_LIU_INSTRUCTION = {
    "alpacafarm": "AlpacaFarm ↑",
    "gsm8k": "GSM ↑",
    "toxigen": "ToxiGen ↓",
    "truthfulqa_mc": "TruthfulQA MC ↑",
    "truthfulqa_open": "TruthfulQA open ↑",
}
_LIU_BOUNDS = {"13B": "13B", "70B": "70B"}
_LIU_INSTRUCTION_RUNS = {task: f"{task}_liu2024" for task in _LIU_INSTRUCTION}
_LIU_INSTRUCTION_EXPERIMENTS = {
    f"liu2024_instruction_{task}_{size}b": f"{size}B"
    for task in ("alpacafarm", "gsm8k", "toxigen", "truthfulqa", "truthfulqa_open")
    for size in ("13", "70")
}
_LIU_TASK_EXPERIMENTS = {
    f"liu2024_{task}_{size}b": f"{size}B" for task in ("gsm8k", "triviaqa") for size in ("13", "70")
}

LIU2024 = Paper(
    id="liu2024",
    citation="Liu et al. 2024 (arXiv 2401.08565)",
    statement=(
        "Liu et al. 2024 print gap_closed, (proxy − base) / (tuned − base) averaged over the tasks; "
        "relative_performance, proxy / tuned of the averages over the tasks where higher is better, is added here."
    ),
    labels=_LIU_LABELS,
    tables=(
        Layout(
            id="instruction",
            title="Instruction tuning, Llama-2 7B → 13B and 70B (Table 2)",
            tasks=_LIU_INSTRUCTION,
            rows={key: label for key, label in _liu_rows("base", "proxy", "tuned").items() if key[0] != "7B"},
            experiments=_LIU_INSTRUCTION_EXPERIMENTS,
            bounds=_LIU_BOUNDS,
            summary="mean_of_gaps",
            shared={"expert": "7B"},
            runs=_LIU_INSTRUCTION_RUNS,
        ),
        Layout(
            id="instruction_published",
            title="Instruction tuning, figures published with the code",
            tasks=_LIU_INSTRUCTION,
            rows=_liu_rows("base", "proxy", "tuned"),
            experiments=_LIU_INSTRUCTION_EXPERIMENTS,
            bounds=_LIU_BOUNDS,
            summary="mean_of_gaps",
            shared={"expert": "7B"},
            runs=_LIU_INSTRUCTION_RUNS,
            decimals=4,
        ),
        Layout(
            id="code",
            title="Code, CodeLlama-7B-Python → Llama-2 13B and 70B (pass@10)",
            tasks={"codexeval": "CodexEval ↑", "ds1000": "DS-1000 ↑"},
            rows=_liu_rows("base", "proxy", "tuned"),
            experiments={f"liu2024_code_{size}b": f"{size}B" for size in ("13", "70")},
            bounds=_LIU_BOUNDS,
            summary="mean_of_gaps",
            shared={"expert": "7B"},
            runs={"codexeval": "humaneval_liu2024"},
        ),
        Layout(
            id="black_box",
            title="Black-box base, Llama-2 7B → GPT-3.5 (section 7)",
            tasks={"realtimeqa": "RealTimeQA ↑"},
            rows={
                ("7B", "antiexpert"): "7B base (the antiexpert)",
                ("7B", "expert"): "7B on later news (the expert)",
                ("GPT-3.5", "base"): "GPT-3.5",
                ("GPT-3.5", "proxy"): "GPT-3.5 proxy-tuned",
            },
            experiments={"liu2024_blackbox": "GPT-3.5"},
            bounds={},
            summary="mean_of_gaps",
            shared={"antiexpert": "7B", "expert": "7B"},
            runs={"realtimeqa": "realtimeqa_mc_liu2024"},
        ),
        Layout(
            id="task_tuning",
            title="Task tuning, Llama-2 7B → 13B and 70B",
            tasks={"triviaqa": "TriviaQA ↑", "gsm8k": "GSM ↑"},
            rows=_liu_rows("base", "proxy", "tuned", "tuned_lora"),
            experiments=_LIU_TASK_EXPERIMENTS,
            bounds=_LIU_BOUNDS,
            summary="mean_of_gaps",
            shared={"expert": "7B"},
            runs={"triviaqa": "triviaqa_liu2024", "gsm8k": "gsm8k_liu2024"},
        ),
        Layout(
            id="task_tuning_published",
            title="Task tuning, figures published with the code",
            tasks={"gsm8k": "GSM ↑"},
            rows=_liu_rows("proxy", "tuned"),
            experiments={name: panel for name, panel in _LIU_TASK_EXPERIMENTS.items() if "gsm8k" in name},
            bounds=_LIU_BOUNDS,
            summary="mean_of_gaps",
            shared={"expert": "7B"},
            runs={"gsm8k": "gsm8k_liu2024"},
            decimals=4,
        ),
        Layout(
            id="alpha_sweep",
            title="α from 0.2 to 2.0, Llama-2 7B → 13B (section 6.2; no figures recorded)",
            tasks={"gsm8k": "GSM ↑", "truthfulqa_mc": "TruthfulQA MC ↑"},
            rows={},
            experiments={"liu2024_alpha_sweep_gsm8k": "13B", "liu2024_alpha_sweep_truthfulqa": "13B"},
            bounds=_LIU_BOUNDS,
            summary="mean_of_gaps",
            runs=_LIU_INSTRUCTION_RUNS,
        ),
    ),
)

_FIVE = {
    "gsm8k": "GSM8K",
    "truthfulqa": "TruthfulQA",
    "triviaqa": "TriviaQA",
    "cnn_dailymail": "CNN/DM",
    "mmlu": "MMLU",
}
_FAN_RUNS = {task: f"{task}_fan2024" for task in _FIVE} | {"truthfulqa": "truthfulqa_mc_fan2024"}
_FAN_BOUNDS = dict.fromkeys(("13B", "1.1B", "7B"), "13B")
_FAN_LARGE = dict.fromkeys(("base", "tuned", "tuned_lora", "tuned_multitask"), "13B")
_FAN_SMALL = {"1b": "1.1B", "7b": "7B"}


def _single(
    id: str, title: str, experiments: str, rows: Mapping[tuple[str, str], str], tasks: Mapping[str, str] = _FIVE
) -> Layout:
    return Layout(
        id=id,
        title=title,
        tasks={**tasks, "avg": "Avg"},
        rows=rows,
        experiments={experiments.format(size): panel for size, panel in _FAN_SMALL.items()},
        bounds=_FAN_BOUNDS,
        summary="gap_of_means",
        averages={"avg": tuple(tasks)},
        shared=_FAN_LARGE,
        runs=_FAN_RUNS,
        decimals=2,
    )


def _multi(id: str, title: str, experiments: str, rows: Mapping[tuple[str, str], str]) -> Layout:
    seen = tuple(task for task in _FIVE if task != "mmlu")
    headings = {"avg": "Avg", **{task: _FIVE[task] for task in seen}, "seen_avg": "seen avg", "mmlu": "MMLU (unseen)"}
    return Layout(
        id=id,
        title=title,
        tasks=headings,
        rows=rows,
        experiments={experiments.format(size): panel for size, panel in _FAN_SMALL.items()},
        bounds=_FAN_BOUNDS,
        summary="gap_of_means",
        tuned="tuned_multitask",
        averages={"seen_avg": seen, "avg": ("seen_avg", "mmlu")},
        shared=_FAN_LARGE,
        runs=_FAN_RUNS,
        decimals=2,
    )


FAN2024 = Paper(
    id="fan2024",
    citation="Fan et al. 2024 (arXiv 2406.15480)",
    statement=(
        "Fan et al. 2024 print relative_performance, fused / tuned of the averages, and call it closing the gap; "
        "gap_closed, (fused − base) / (tuned − base) of the same averages, is added here."
    ),
    labels={
        "base": "base",
        "tuned": "full fine-tuning",
        "tuned_lora": "LoRA",
        "tuned_multitask": "multi-task tuning",
        "expert": "expert",
        "expert_multitask": "multi-task expert",
        "proxy": "proxy (α = 1)",
        "dynamic_grid": "dynamic (grid)",
        "all_dynamic_grid": "all experts, dynamic (grid)",
    },
    tables=(
        _single(
            "single_task",
            "Single task, small Llama → Llama-2 13B",
            "fan2024_single_{}",
            {
                ("13B", "base"): "13B base",
                ("13B", "tuned"): "13B full fine-tuning",
                ("13B", "tuned_lora"): "13B LoRA",
                ("1.1B", "expert"): "1.1B expert",
                ("1.1B", "proxy"): "1.1B → 13B proxy (α = 1)",
                ("1.1B", "dynamic_grid"): "1.1B → 13B dynamic",
                ("7B", "expert"): "7B expert",
                ("7B", "proxy"): "7B → 13B proxy (α = 1)",
                ("7B", "dynamic_grid"): "7B → 13B dynamic",
            },
        ),
        _multi(
            "multi_task",
            "Several tasks, small Llamas → Llama-2 13B",
            "fan2024_multi_{}",
            {
                ("13B", "base"): "13B base",
                ("13B", "tuned_multitask"): "13B multi-task tuning",
                ("1.1B", "antiexpert"): "1.1B base",
                ("1.1B", "expert_multitask"): "1.1B multi-task tuning",
                ("1.1B", "all_dynamic_grid"): "1.1B experts → 13B dynamic",
                ("7B", "antiexpert"): "7B base",
                ("7B", "expert_multitask"): "7B multi-task tuning",
                ("7B", "all_dynamic_grid"): "7B experts → 13B dynamic",
            },
        ),
        _single(
            "icl",
            "In-context learning, 5 examples (no figures recorded)",
            "fan2024_icl_{}",
            {},
            tasks={task: _FIVE[task] for task in ("gsm8k", "triviaqa", "mmlu")},
        ),
        _multi("task_arithmetic", "Task arithmetic (no figures recorded)", "fan2024_task_arithmetic_{}", {}),
    ),
)

_SIX = {
    "math500": "MATH500",
    "aime24": "AIME24",
    "amc": "AMC",
    "minerva": "Minerva",
    "olympiadbench": "OlympiadBench",
    "gsm8k": "GSM8K",
}


def _rast(large: str, small: Mapping[str, str], recorded: tuple[str, ...]) -> Layout:
    """Accuracies of one large model; `small` has a size for each experiment's name of it, `recorded` those printed."""
    fused = {(size, "proxy"): f"{large} + Δ{size}" for size in recorded}
    return Layout(
        id=f"math_{large.lower()}",
        title=f"Reasoning, SimpleRL-Zoo → Qwen2.5-{large} (the accuracies that are on record)",
        tasks=_SIX,
        rows={(large, "base"): f"{large} base", **fused, (large, "tuned"): f"{large} tuned by reinforcement"},
        experiments={f"rast2025_{name}_{large.lower()}": size for name, size in small.items()},
        bounds=dict.fromkeys((large, *small.values()), large),
        summary="mean_of_gaps",
        shared={"base": large, "tuned": large},
        runs={task: f"{task}_rast2025" for task in _SIX},
    )


_BOTH = ("printed", "recomputed")
_RECOVERED = {"14B → 32B": _BOTH, "7B → 32B": ("printed",), "1.5B → 32B": _BOTH, "7B → 14B": _BOTH}
RAST2025 = Paper(
    id="rast2025",
    citation="RAST 2025 (arXiv 2506.15710)",
    statement=(
        "RAST 2025 prints recovery rates: gap_closed of each task, which is averaged over the tasks here. One of them "
        "(Minerva, 32B + Δ1.5B) does not follow from its row. It prints no intervals; an item of AIME24 is 3.3 points. "
        "A dash is a figure that the paper prints and that is not on record here."
    ),
    labels={"base": "base", "expert": "expert", "proxy": "fused", "tuned": "tuned by reinforcement"},
    tables=(
        _rast("32B", {"14b": "14B", "7b": "7B", "15b": "1.5B"}, ("14B", "1.5B")),
        _rast("14B", {"7b": "7B"}, ("7B",)),
        Layout(
            id="recovery",
            title="Recovery rates (gap closed) as printed, and recomputed where the row's accuracies are on record",
            tasks=_SIX,
            rows={(panel, arm): f"{panel} {arm}" for panel, arms in _RECOVERED.items() for arm in arms},
            experiments={},
            bounds={},
            summary="mean_of_gaps",
        ),
    ),
)


def _eft(id: str, title: str, experiments: Mapping[str, str], tasks: Mapping[str, str]) -> Layout:
    return Layout(
        id=id,
        title=f"{title} (no figures recorded)",
        tasks=tasks,
        rows={},
        experiments=experiments,
        bounds=_LIU_BOUNDS,
        summary="mean_of_gaps",
        runs={task: f"{task}_liu2024" for task in tasks},
    )


EFT2024 = Paper(
    id="eft2024",
    citation="Mitchell et al. 2024 (arXiv 2310.12962)",
    statement=(
        "Mitchell et al. 2024 compare dialogues by a judge: these are other tasks, and both summaries are added. "
        "With the small tuned model as drafter, they find up-scaled sampling about 2.5 times as fast."
    ),
    labels={"up": "up-scaled", "down": "down-scaled"},
    tables=(
        _eft(
            "scales",
            "Emulated fine-tuning, up- and down-scaling, Llama-2 7B with 13B and 70B",
            {f"eft2024_scales_{size}b": f"{size}B" for size in ("13", "70")},
            {"gsm8k": "GSM ↑", "truthfulqa_mc": "TruthfulQA MC ↑"},
        ),
        _eft(
            "frontier",
            "Two behaviours traded off by λ, Llama-2 7B → 13B",
            {"eft2024_frontier_13b": "13B"},
            {"truthfulqa_mc": "TruthfulQA MC ↑", "toxigen": "ToxiGen ↓"},
        ),
    ),
)

PAPERS = {paper.id: paper for paper in (LIU2024, FAN2024, EFT2024, RAST2025)}
