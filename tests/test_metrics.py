"""Metrics and answer parsers, against values computed by hand and against other libraries."""

from __future__ import annotations

import math
import string
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.metrics import exact_match_hf_evaluate
from rouge_score.rouge_scorer import RougeScorer

from proxytune.tasks import metrics
from proxytune.tasks.rouge import ROUGES

# Numbers and exact match


@given(st.text(string.printable), st.text(string.printable))
def test_exact_match_is_that_of_lm_eval(one: str, other: str) -> None:
    reference = exact_match_hf_evaluate([one], [other], ignore_case=True, ignore_punctuation=True)["exact_match"]
    assert metrics.exact_match(one, other) == reference
    assert metrics.exact_match(one, one.swapcase()) == 1.0


@given(st.integers(0, 10**12), st.text("abc \n$"))
def test_a_number_is_found_behind_thousands_commas(number: int, words: str) -> None:
    assert metrics.last_number(f"7 apples {words}{number:,}.{words}") == str(number)


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("1,234", "1234"),
        ("1,234,567", "1234567"),
        ("1,2,3", "12,3"),
        ("1,2,3,4", "12,34"),
        ("1, 2", "1, 2"),
        (",1", ",1"),
    ],
)
def test_thousands_commas_of_overlapping_groups_go_two_by_two_as_in_the_published_figures(
    text: str, without: str
) -> None:
    assert metrics.without_thousands(text) == without


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("3 then 4", "3 then 4"),
        (" 4\n\nQuestion: 5", " 4\n\n"),
        (" 4 Comment: 5 Question: 6", " 4 "),
        (" 4 Question: 6 Comment: 5", " 4 "),
        ("Answer the following question. 8", ""),
        (" 4 question: 5", " 4 question: 5"),
        ("", ""),
    ],
)
def test_an_answer_ends_at_the_earliest_mark(text: str, rest: str) -> None:
    assert metrics.cut(text, metrics.NEXT_QUESTION) == rest


@pytest.mark.parametrize(
    ("output", "prediction"),
    [
        (" It is 12.", "12"),
        (" 3 then 4", "4"),
        (" costs $1,234,567.50", "1234567.50"),
        (" .5 of it", ".5"),
        (" minus -5", "5"),
        (" minus -5.5", "-5.5"),
        (" none", " none"),
        ("", ""),
    ],
)
def test_the_last_number(output: str, prediction: str) -> None:
    assert metrics.last_number(output) == prediction


@pytest.mark.parametrize(
    ("answer", "gold"), [("a 3\n#### 1,234 ", "1234"), ("#### 5 #### 6", "6"), (" 18 ", "18"), ("18", "18")]
)
def test_the_reference_number_stands_after_the_last_mark(answer: str, gold: str) -> None:
    assert metrics.gsm8k_gold(answer) == gold


@pytest.mark.parametrize(
    ("output", "right"), [(" 4 and 5", 0.0), (" 5 and 4", 1.0), (" 4\n\nQuestion: 5?", 1.0), (" four", 0.0), ("", 0.0)]
)
def test_gsm8k(output: str, right: float) -> None:
    assert metrics.score_gsm8k({"answer": "2 + 2 = 4\n#### 4"}, [output]) == {"exact_match": right}


@pytest.mark.parametrize(
    ("output", "answer", "right"),
    [(" Red.", "red", 1.0), ("red \n", " red ", 1.0), ("dark red", "darkred", 0.0), ("a  b", "a b", 0.0)],
)
def test_exact_answers_count_blanks_inside_and_not_around(output: str, answer: str, right: float) -> None:
    assert metrics.score_exact({"answer": answer}, [output]) == {"exact_match": right}


@pytest.mark.parametrize(
    ("output", "right"), [(" Mark TWAIN\n", 1.0), ("clemens", 1.0), ("Mark Twain.", 0.0), ("Twain", 0.0), ("", 0.0)]
)
def test_an_alias_is_the_whole_answer_but_for_case_and_blanks_around(output: str, right: float) -> None:
    doc = {"answer": {"aliases": ["Mark Twain", " Clemens "]}}
    assert metrics.score_alias(doc, [output]) == {"exact_match": right}


# Letters


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        (" B", "B"),
        ("\n\nC", "C"),
        ("D. it", "D"),
        ("Absolutely not", "A"),
        (" (D", "D"),
        ("\n\n\\begin{blockquote}\n\n A", "A"),
        ("\\begin{code}\n (B", "B"),
        ("E", None),
        ("a", None),
        ("1", None),
        ("X", None),
        ('"A"', None),
        ("", None),
        (" \n", None),
        (" (", None),
    ],
)
def test_letter(output: str, letter: str | None) -> None:
    assert metrics.letter(output) == letter


def test_an_answer_without_a_letter_is_invalid() -> None:
    right, wrong, invalid = (metrics.score_letter({"answer": "B"}, [output]) for output in (" B", " A", " b"))
    assert right == {"acc": 1.0, "invalid": 0}
    assert wrong == {"acc": 0.0, "invalid": 0}
    assert invalid["invalid"] == 1
    assert math.isnan(invalid["acc"])


# Likelihoods


def test_bits_are_negative_binary_logarithms() -> None:
    assert metrics.score_bits({}, [(math.log(0.125), False)]) == {"bits": pytest.approx(3.0)}
    assert metrics.score_bits({}, [(0.0, True)])["bits"] == 0.0
    assert metrics.score_bits({}, [(-1.0, False)])["bits"] == pytest.approx(1.4426950408889634)


@pytest.mark.parametrize(("answer", "n"), [("abc", 4), ("é", 3), ("海", 4), ("", 1), (" x", 3)])
def test_bits_per_byte_count_utf8_bytes_and_the_blank_before_the_answer(answer: str, n: int) -> None:
    score = metrics.score_solution({"answer": answer}, [(n * math.log(0.25), False)])
    assert score == {"bits_per_byte": pytest.approx(2.0)}


@pytest.mark.parametrize(
    ("likelihoods", "choice"), [([-3.0, -1.0, -2.0], 1), ([-1.0, -1.0, -2.0], 0), ([-2.0, -1.0, -1.0], 1), ([-5.0], 0)]
)
def test_the_likeliest_choice_is_the_first_of_equals(likelihoods: list[float], choice: int) -> None:
    results = [(likelihood, False) for likelihood in likelihoods]
    for answer in range(len(likelihoods)):
        score = metrics.score_subject({"subject": "law", "answer": answer}, results)
        assert score == {"acc": float(answer == choice), "acc_macro": ("law", float(answer == choice))}


# Aggregation


@given(st.lists(st.sampled_from([0.0, 1.0, math.nan])))
def test_mean_of_valid_leaves_out_what_has_no_value(values: list[float]) -> None:
    valid = [v for v in values if v == v]
    mean = metrics.mean_of_valid(values)
    assert mean == sum(valid) / len(valid) if valid else math.isnan(mean)


def test_macro_mean_by_hand() -> None:
    values = [("law", 1.0), ("art", 0.0), ("law", 0.0), ("law", 0.0), ("art", 1.0), ("music", 1.0)]
    assert metrics.mean_over_subjects(values) == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)


def test_total() -> None:
    assert metrics.total([0, 1, 1]) == 2


# ROUGE


def fmeasure(matches: int, reference: int, output: int) -> float:
    precision, recall = matches / output, matches / reference
    return 2 * precision * recall / (precision + recall)


def test_rouge_by_hand() -> None:
    scores = metrics.rouge("the cat sat on the mat", "The cats sat.")
    assert scores["rouge1"] == pytest.approx(fmeasure(3, 6, 3))
    assert scores["rouge2"] == pytest.approx(fmeasure(2, 5, 2))
    assert scores["rougeL"] == pytest.approx(fmeasure(3, 6, 3))
    assert metrics.rouge("a b c", "c a b")["rougeL"] == pytest.approx(fmeasure(2, 3, 3))


ENGLISH = st.text(
    st.one_of(
        st.sampled_from(string.printable),
        st.sampled_from("“”‘’–—…€£\u00a0\u200b"),
    )
)


@given(ENGLISH, ENGLISH)
def test_texts_without_letters_beyond_ascii_have_the_rouge_of_rouge_score(reference: str, output: str) -> None:
    independent = RougeScorer(ROUGES, use_stemmer=True).score(reference, output)
    assert metrics.rouge(reference, output) == {name: score.fmeasure for name, score in independent.items()}


def test_words_are_stemmed_as_in_rouge_score() -> None:
    words = "running runs runners was cats generously 1980s don't e-mails A_B"
    independent = RougeScorer(["rouge1"], use_stemmer=True).score(words, "run cat gener 1980 don email a b")["rouge1"]
    assert metrics.rouge(words, "run cat gener 1980 don email a b")["rouge1"] == independent.fmeasure
    assert metrics.rouge("running", "run")["rouge1"] == 1.0


TEXTS = {
    "Russian": ("Совет отклонил план в понедельник", "Совет отклонил закон в понедельник", 4, 5),
    "Greek": ("το συμβούλιο απέρριψε το σχέδιο", "το συμβούλιο απέρριψε τον νόμο", 3, 5),
    "Arabic": ("رفض المجلس الخطة يوم الاثنين", "رفض المجلس القانون يوم الاثنين", 4, 5),
    "Hindi": ("परिषद ने योजना को ठुकराया", "परिषद ने योजना को ठकराया", 4, 5),
    "Korean": ("의회는 월요일에 계획을 거부했다", "의회는 화요일에 계획을 거부했다", 3, 4),
    "Chinese": ("议会否决了计划", "议会否决了法案", 5, 7),
    "Japanese": ("議会は計画を否決", "議会は法案を否決", 6, 8),
    "Thai": ("สภา", "สภป", 2, 3),
    "German": ("Der Präsident lehnte ab", "Der Prüsident lehnte ab", 3, 4),
    "mixed": ("GPT-4 übersetzt 海南 now", "GPT-4 ubersetzt 海北 now", 4, 6),
}
"""Language -> a text, another one of as many words, how many words they share, and how many there are."""


@pytest.mark.parametrize("language", TEXTS)
def test_rouge_reads_every_script(language: str) -> None:
    text, other, shared, words = TEXTS[language]
    assert metrics.rouge(text, text) == dict.fromkeys(ROUGES, 1.0)
    assert metrics.rouge(text, other)["rouge1"] == pytest.approx(shared / words)
    assert metrics.rouge(text, "zzz")["rouge1"] == 0.0


@pytest.mark.parametrize("text", ["Präsident Beyoncé", "Ελλάδα", "한국어", "がぎ", "Ångström"])
def test_composed_and_decomposed_letters_are_the_same(text: str) -> None:
    decomposed = unicodedata.normalize("NFD", text)
    assert decomposed != text
    assert metrics.rouge(text, decomposed)["rouge1"] == 1.0
    assert metrics.rouge(decomposed.upper(), text)["rouge1"] == 1.0


def test_marks_belong_to_their_letter_and_case_does_not_count() -> None:
    assert metrics.rouge("हिन्दी", "हन्द")["rouge1"] == 0.0
    assert metrics.rouge("Στρασσε ΣΑΣ", "στρασσε σας")["rouge1"] == 1.0
    assert metrics.rouge("Straße", "STRASSE")["rouge1"] == 1.0
    assert metrics.rouge("été", "ete")["rouge1"] == 0.0


def test_texts_without_a_word_have_no_rouge() -> None:
    assert set(metrics.rouge("", "").values()) == set(metrics.rouge("?!", "?!").values()) == {0.0}


def test_rouge_of_a_summary() -> None:
    assert metrics.score_rouge({"highlights": "a dog barks"}, ["dog barks"]) == metrics.rouge(
        "a dog barks", "dog barks"
    )


# TruthfulQA's open answers


def answers(correct: list[str], incorrect: list[str]) -> dict[str, Any]:
    return {"correct_answers": correct, "incorrect_answers": incorrect}


@pytest.mark.parametrize(
    ("doc", "output", "truthful"),
    [
        (answers(["nothing happens", "you are fine"], ["you die"]), " You are fine.", 1.0),
        (answers(["nothing happens", "you are fine"], ["you die"]), " You die.", 0.0),
        (answers(["a b"], ["a c"]), "a", 0.0),
        (answers(["a b"], ["a c"]), "", 0.0),
        (answers(["a b"], []), "a", 1.0),
        (answers(["a b"], []), "c", 0.0),
        (answers(["Совет отклонил план"], ["Я не знаю"]), "Совет отклонил план", 1.0),
    ],
    ids=["true", "false", "tie", "empty", "no false ones", "no false ones, nothing true", "Russian"],
)
def test_an_open_answer_is_truthful_where_it_is_nearer_to_a_true_one(
    doc: dict[str, Any], output: str, truthful: float
) -> None:
    assert metrics.score_truthful(doc, [output]) == {"rouge1_acc": truthful, "rougeL_acc": truthful}


def test_the_order_of_words_decides_the_longest_common_subsequence_alone() -> None:
    score = metrics.score_truthful(answers(["a b c d"], ["d c b a x"]), ["d c b a"])
    assert score == {"rouge1_acc": 1.0, "rougeL_acc": 0.0}
