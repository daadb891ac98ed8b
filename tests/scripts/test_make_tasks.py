"""scripts/make_tasks.py writes the task files from the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from programs import run_script, script

TASKS = Path(__file__).resolve().parents[2] / "tasks"
make_tasks = script("make_tasks")


def test_generated_files_are_up_to_date(tmp_path):
    """The generator writes, byte for byte, the generated files that are there, and no other has its first line."""
    run_script("make_tasks", "--output", tmp_path)
    generated = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.yaml")}
    marked = {path for path in TASKS.rglob("*.yaml") if path.read_text("utf-8").startswith(make_tasks.HEADER)}
    assert {path.relative_to(TASKS): path.read_bytes() for path in marked} == generated
    assert len(generated) > 100


@pytest.mark.parametrize(
    "prompt, expected",
    [("Step. Question: {question}", "Question:"), ("一步。问题：{question}", "问题："), ("Pas. Q : {question}", "Q :")],
)
def test_the_label_of_a_question(prompt, expected):
    """The word with its colon before the question, where another example would begin."""
    assert make_tasks.label(prompt) == expected


def test_a_prompt_without_a_label_is_refused():
    """Generation could not be stopped at the next question."""
    with pytest.raises(ValueError, match="no label with a colon before {question} in 'Say {question}'"):
        make_tasks.label("Say {question}")


def test_edits_go_from_english_and_back():
    """Each other language once with English as the context, and once as the question; English alone with itself."""
    pairs = [("en", "en"), ("en", "de"), ("en", "zh"), ("de", "en"), ("zh", "en")]
    assert make_tasks.edits({"de": 0, "en": 0, "zh": 0}) == pairs


def test_template():
    """Columns become Jinja's, letters the choices."""
    assert make_tasks.template("{question} A. {A} E. {E}") == "{{question}} A. {{choices[0]}} E. {{choices[4]}}"
