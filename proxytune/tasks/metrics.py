"""What lm-eval's metrics lack: the papers' answer parsers. Plain Python, one item at a time, named by the task YAMLs.

A `score_*` function is an lm-eval `process_results`: (document, [output]) -> {metric: value}.
nan marks an item without a value.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NEXT_QUESTION = ("Answer the following question", "Question:", "Comment:")
"""Where a model continues with an exercise of its own invention, the answer ends (Liu et al. 2024)."""
WRAPPERS = ("(", "\\begin{blockquote}", "\\begin{code}")
"""What base models put before a letter. These give the published TruthfulQA figures from the published outputs; the
code released with the paper takes out four more (quotes, bold, fences), so that 50 more of LLaMA-2-70B's 817 answers
name a letter (accuracy 0.4256, not 0.4231)."""
LETTERS = "ABCD"
_NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(prediction: str, gold: str) -> float:
    """1.0 if both are the same but for case and ASCII punctuation."""
    return float(_normal(prediction) == _normal(gold))


def _normal(text: str) -> str:
    return text.lower().translate(_PUNCTUATION)


def cut(text: str, marks: Iterable[str]) -> str:
    """`text` up to the first of `marks`."""
    for mark in marks:
        text = text.partition(mark)[0]
    return text


def without_thousands(text: str) -> str:
    """1,234 -> 1234. Overlapping groups (1,2,3) keep every second comma, as in the published figures."""
    return re.sub(r"(\d),(\d)", r"\1\2", text)


def last_number(output: str) -> str:
    """The last number in `output`, or all of it where there is none. A sign counts only before a decimal fraction."""
    text = without_thousands(output)
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else text


def gsm8k_gold(answer: str) -> str:
    """The number after #### in a GSM8K solution (or the bare number)."""
    return without_thousands(answer.rpartition("####")[2].strip())


def score_gsm8k(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """GSM8K exact match of Liu et al. 2024 (arXiv 2401.08565): the last number before the model asks something new."""
    return {"exact_match": exact_match(last_number(cut(results[0], NEXT_QUESTION)), gsm8k_gold(doc["answer"]))}


def letter(output: str) -> str | None:
    """The answer's letter: its first character once the wrappers are gone; None where that is not one of A-D."""
    for wrapper in WRAPPERS:
        output = output.replace(wrapper, "")
    first = output.strip()[:1]
    return first if first and first in LETTERS else None


def score_letter(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Accuracy over the answers that name a letter; the others have no accuracy (nan) and count as `invalid`."""
    prediction = letter(results[0])
    if prediction is None:
        return {"acc": math.nan, "invalid": 1}
    return {"acc": float(prediction == doc["answer"]), "invalid": 0}


def score_exact(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1.0 if the stripped output is `doc["answer"]` but for case and punctuation."""
    return {"exact_match": exact_match(results[0].strip(), doc["answer"].strip())}


def score_alias(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """TriviaQA exact match of Liu et al. 2024: the output is an alias, but for case and surrounding blanks."""
    aliases = {alias.strip().lower() for alias in doc["answer"]["aliases"]}
    return {"exact_match": float(results[0].strip().lower() in aliases)}


def rouge(reference: str, output: str) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F1 in [0, 1], English words stemmed."""
    from proxytune.tasks.rouge import scorer  # brings all of nltk, which most tasks do without

    return {name: score.fmeasure for name, score in scorer().score(reference, output).items()}


def score_rouge(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """ROUGE of the output against `doc["highlights"]`."""
    return rouge(doc["highlights"], results[0])


def score_truthful(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1.0 where the output's best ROUGE with a true answer is above its best with a false one."""
    true, false = (
        [rouge(answer, results[0]) for answer in doc[f"{kind}_answers"]] for kind in ("correct", "incorrect")
    )
    return {f"{name}_acc": float(_best(true, name) > _best(false, name)) for name in ("rouge1", "rougeL")}


def _best(scores: Sequence[Mapping[str, float]], name: str) -> float:
    return max((score[name] for score in scores), default=0.0)


def score_subject(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Whether the likeliest choice (the first of equals) is number `doc["answer"]`; `acc_macro` adds the subject."""
    likelihoods = [likelihood for likelihood, _ in results]
    acc = float(likelihoods.index(max(likelihoods)) == doc["answer"])
    return {"acc": acc, "acc_macro": (doc["subject"], acc)}


def score_bits(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Surprise at the reference answer, in bits: −log₂ of its probability."""
    return {"bits": -results[0][0] / math.log(2)}


def score_solution(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Bits per UTF-8 byte of `doc["answer"]` and the blank before it; 2 to that power is the perplexity per byte."""
    return {"bits_per_byte": score_bits(doc, results)["bits"] / len(f" {doc['answer']}".encode())}


def mean_over_subjects(values: Sequence[tuple[str, float]]) -> float:
    """The mean over subjects of the mean over a subject's items."""
    subjects: dict[str, list[float]] = {}
    for subject, value in values:
        subjects.setdefault(subject, []).append(value)
    return sum(sum(items) / len(items) for items in subjects.values()) / len(subjects)


def mean_of_valid(values: Sequence[float]) -> float:
    """Mean over the values that are not nan; nan if none is left."""
    valid = [value for value in values if not math.isnan(value)]
    return sum(valid) / len(valid) if valid else math.nan


def total(values: Sequence[float]) -> float:
    """How many, for counts such as `invalid`."""
    return sum(values)
