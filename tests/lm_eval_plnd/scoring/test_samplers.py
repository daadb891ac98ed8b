"""Few-shot examples that do not give the answer away."""

import pytest

from lm_eval_plnd.scoring.samplers import OtherFacts

ROWS = [{"subject": f"land {n}", "pattern": p, "prompt": f"{n} {p}"} for p in range(3) for n in range(5)]


def test_shots_are_other_facts_in_the_same_paraphrase():
    """No shot has the subject that is asked, all have its paraphrase, and none comes twice."""
    sampler = OtherFacts(ROWS, rnd=0)
    for asked in ROWS:
        shots = sampler.sample(4, eval_doc=asked)
        assert {shot["subject"] for shot in shots} == {row["subject"] for row in ROWS} - {asked["subject"]}
        assert {shot["pattern"] for shot in shots} == {asked["pattern"]}


def test_too_many_shots():
    """More shots than other facts are refused."""
    with pytest.raises(ValueError, match="larger than population"):
        OtherFacts(ROWS, rnd=0).sample(5, eval_doc=ROWS[0])


def test_any_row_without_a_question():
    """Without a row that is asked, every row may come."""
    assert len(OtherFacts(ROWS, rnd=0).sample(len(ROWS))) == len(ROWS)
