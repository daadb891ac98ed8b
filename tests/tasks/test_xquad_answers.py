"""The scores on every question of the XQuAD files of the evaluation data."""

import json

import pytest

from lm_eval_plnd.rows.benchmarks import xquad
from lm_eval_plnd.scoring.answers import answer_scores

LANGUAGES = "en de es ru zh vi th ar el tr hi ro".split()
APART = 397  # another question's answer comes from this many rows on: another article


@pytest.fixture(params=LANGUAGES)
def questions(request, shared_data) -> list[dict]:
    """Every question of one language, or a skip."""
    if not (shared_data / "xquad" / f"xquad.{request.param}.json").is_file():
        pytest.skip(f"no xquad.{request.param}.json in the evaluation data")
    return list(xquad(request.param, data_dir=str(shared_data))["validation"])


def test_gold_answers_score_one_and_others_near_zero(questions, record_property):
    """Each gold answer scores 1, an empty one 0, and another question's nearly 0; Thai letters overlap by chance."""
    assert len(questions) == 1190
    assert [q for q in questions for a in q["answers"] if set(answer_scores(q, [a]).values()) != {1.0}] == []
    assert [q for q in questions if set(answer_scores(q, [" \n"]).values()) != {0.0}] == []
    others = [questions[(n + APART) % len(questions)]["answers"][0] for n in range(len(questions))]
    scores = [answer_scores(question, [other]) for question, other in zip(questions, others, strict=True)]
    match, f1 = (sum(score[metric] for score in scores) / len(scores) for metric in ("exact_match", "f1"))
    language = questions[0]["language"]
    record_property("cross_row", json.dumps({"language": language, "exact_match": match, "f1": f1}))
    print(f"{language}: another row's answer scores exact match {match:.4f}, F1 {f1:.4f}")
    assert match < 0.002
    assert f1 < (0.15 if language == "th" else 0.02)
