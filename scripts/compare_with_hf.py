"""Does the fused path with alpha = 0 answer exactly like lm-eval's own `hf` model? Item by item, on real tasks.

    python scripts/compare_with_hf.py --model FOLDER_OR_GGUF --expert ADAPTER --data DIR [--limit 100] [TASK ...]

The fused path runs the expert too, and gives it weight 0. Prints items, equal items and both metrics of every task, and
ends with status 1 if an item differs. Where a tokenizer drops the first blank of a text (Llama-2), lm-eval's answers
lack theirs and differ.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import lm_eval
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM

from proxytune.engines.hf import HFEngine
from proxytune.experiment.answers.shared import SharedAnswers
from proxytune.experiment.answers.store import AnswerStore
from proxytune.experiment.lm_eval.evaluate import evaluate
from proxytune.experiment.planning import Items
from proxytune.fusion import Static
from proxytune.fusion.arm import Arm
from proxytune.models import Ensemble, FamilySpec, Source, load
from proxytune.tasks import load_task, task_info

TASKS = ["gsm8k_liu2024", "truthfulqa_mc1_lm_eval", "triviaqa_liu2024", "mmlu_fan2024", "cnn_dailymail_fan2024"]
ARM = Arm("fused", rule=Static(0.0), experts=("expert:lora",))


def main() -> int:
    options = _options()
    expert = Source(options.model, adapter=options.expert, dtype="float32")
    plain = Source(options.model, dtype="float32")
    ensemble = load(FamilySpec(base=plain, antiexpert=plain, experts={"lora": expert}))
    lm = HFLM(
        pretrained=plain.path,
        gguf_file=plain.gguf_file,
        dtype="float32",
        device=str(ensemble["base"].device),
        batch_size=options.batch_size,
    )
    different = 0
    for name in options.tasks or TASKS:
        started = time.perf_counter()
        ours = _fused(ensemble, _task(name, options), options)
        theirs = _hf(lm, _task(name, options), options)
        equal = sum(ours[item] == theirs[item] for item in theirs)
        different += len(theirs) - equal
        seconds = time.perf_counter() - started
        print(f"{name}: {equal} of {len(theirs)} items equal ({seconds:.0f} s)", flush=True)
        for item in theirs:
            if ours[item] != theirs[item]:
                print(f"  item {item}\n    fused {ours[item]!r}\n    hf    {theirs[item]!r}")
    return int(different > 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"default: {' '.join(TASKS)}")
    parser.add_argument("--model", required=True, help="a local folder, a .gguf file or a hub id")
    parser.add_argument("--expert", required=True, help="a PEFT adapter over the model")
    parser.add_argument("--data", required=True, type=Path, help="folder of the tasks' JSON-lines files")
    parser.add_argument("--limit", type=int, default=100, help="items per task (100)")
    parser.add_argument("--max-gen-toks", type=int, help="fewer new tokens than the tasks ask for, for both")
    parser.add_argument("--batch-size", type=int, default=8)
    return parser.parse_args()


def _task(name: str, options: argparse.Namespace) -> ConfigurableTask:
    task = load_task(name, options.data)
    if options.max_gen_toks is not None and task.OUTPUT_TYPE == "generate_until":
        asked = (task.config.generation_kwargs or {}).get("max_gen_toks", options.max_gen_toks)
        value = {"max_gen_toks": min(asked, options.max_gen_toks)}
        task.set_config(key="generation_kwargs", value=value, update=True)
    return task


def _fused(ensemble: Ensemble, task: ConfigurableTask, options: argparse.Namespace) -> dict[int, tuple]:
    with AnswerStore(None) as store:
        shared = SharedAnswers(HFEngine(ensemble, options.batch_size), [ARM], store, task.task_name)
        outcome = evaluate(shared, ARM, task, task_info(task), Items(options.data, options.limit, None, 0))
    return _answers(outcome.samples, task)


def _hf(lm: HFLM, task: ConfigurableTask, options: argparse.Namespace) -> dict[int, tuple]:
    task.set_fewshot_seed(0)
    results = lm_eval.evaluate(
        lm=lm, task_dict={"tasks": {task.task_name: task}}, limit=options.limit, bootstrap_iters=0, log_samples=True
    )
    return _answers(results["samples"][task.task_name], task)


def _answers(samples: list[dict], task: ConfigurableTask) -> dict[int, tuple]:
    """By item: the headline metric's value, and the generated text or which choices are greedy."""
    info = task_info(task)
    chosen = [sample for sample in samples if sample["filter"] == info.filter]
    answers = {}
    for sample in chosen:
        said = tuple(r[0][1] if isinstance(r[0], tuple) else r[0] for r in sample["resps"])
        value = sample[info.metric]
        answers[sample["doc_id"]] = (str(value), said)
    return answers


if __name__ == "__main__":
    sys.exit(main())
