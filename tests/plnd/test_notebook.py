"""What people see of plnd's objects at a prompt and in a notebook: a line, and a small table that names them."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest

import plnd
from handmade import MODEL, importance_matrix, make_neurons, make_scores, scores_metadata
from plnd import notebook
from plnd.comparison.summary import Comparison, Outcome
from plnd.inspection.profiles import CorpusRead, Inspection, LanguageProfile, NeuronProfile, Writing
from plnd.logit_lens.lens import DecodedTokens, LensCounts
from plnd.roles.parallel import Parallel

NEURON = NeuronProfile(
    "0.down_proj", 3, 1.5, (), "input", 2.0, (LanguageProfile("zh", 1.25, 0.0, 0.5, 0.1, ()),), Writing("none")
)
ONE = np.ones((1, 2, 2, 4))
OUTCOME = Outcome(np.full((1, 2), 7), ONE, np.ones((1, 1, 2, 4)), np.full((2, 4), 8))
SHOWN = {
    "neurons": (
        make_neurons({"0.down_proj": [1, 2], "1.q_proj": [0]}) - make_neurons({"0.down_proj": [2]}),
        "minus zh",
    ),
    "scores": (make_scores(importance_matrix()), "down_proj"),
    "inspection": (Inspection("m", "zh", None, 9, "importance", {"zh": CorpusRead(2, 8)}, (NEURON,)), "0.down_proj.3"),
    "lens": (LensCounts("m", "zh", "cld3", 2, 1, 3, ("input", "0"), ("en", "zh"), np.full((2, 2), 3)), "50.0%"),
    "comparison": (Comparison(("en", "zh"), {("plnd", "zero"): OUTCOME}, {}, "plnd"), "own/others"),
}


class Reader(HTMLParser):
    """The tags that are open and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):  # noqa: D102
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag):  # noqa: D102
        assert self.open.pop() == tag

    def handle_data(self, data):  # noqa: D102
        self.text += data


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_notebook_shows_is_whole_and_says_what_it_is(name):
    """Every tag that is opened is closed, there is no script in it, and what matters of the object stands there."""
    found, words = SHOWN[name]
    page = Reader(found._repr_html_())
    assert page.open == [] and words in page.text
    assert page.tags <= {"div", "b", "table", "thead", "tbody", "tr", "th", "td", "small"}


@pytest.mark.parametrize("name", SHOWN)
def test_a_repr_is_a_line(name):
    """However many neurons, documents or blocks: no arrays."""
    assert "\n" not in repr(SHOWN[name][0]) and len(repr(SHOWN[name][0])) < 200


def test_reprs_do_not_grow_with_what_they_stand_for():
    """A set of a thousand times the neurons, examples in parallel, a vocabulary, a hundred blocks: a line."""
    widths = {f"{block}.down_proj": 100_000 for block in range(100)}
    large = make_neurons({a: range(0, 100_000, 100) for a in widths}, model={**MODEL, "blocks": 100, "widths": widths})
    tokens = DecodedTokens("m", 1, 1, 1, ("input",), np.zeros((1, 250_000), dtype=np.int64))
    texts = Parallel(["en", "zh"], [["a" * 99, "b" * 99]] * 1000)
    assert max(len(repr(x)) for x in (large, large.model, tokens, texts)) < 200
    assert "100,000 of 10,000,000 neurons" in repr(large)
    assert len(large._repr_html_()) < 30_000


def test_what_an_artifact_says_of_itself_is_shown_as_text():
    """A language that is HTML does not become HTML: artifacts come from strangers."""
    hostile = make_neurons({"0.down_proj": [1]}, language="<img src=x onerror=alert(1)>")
    for shown in (
        hostile._repr_html_(),
        notebook.table(("<b>",), [("<script>",)]),
        notebook.card("<i>", {"<u>": "<s>"}),
    ):
        assert not Reader(shown).tags & {"img", "script", "i", "u", "s"}
    assert "<img src=x onerror=alert(1)>" in Reader(hostile._repr_html_()).text


def test_block_map_has_a_cell_for_each_block_and_says_its_numbers():
    """Where a model has no such projection, too; the most neurons have the darkest cell."""
    html = notebook.block_map({"0.q_proj": 4, "1.q_proj": 1}, {"0.q_proj": 6, "1.q_proj": 6, "1.k_proj": 4})
    assert html.count("<td title=") == 4 and "0.q_proj: 4 of 6" in html and "no 0.k_proj" in html
    assert "190,1.00)" in html and "190,0.36)" in html


def test_an_empty_set_is_shown():
    """With nothing on its map."""
    empty = make_neurons({})
    assert "0 of 88" in Reader(empty._repr_html_()).text and "190," not in empty._repr_html_()


def test_a_corpus_without_a_name_has_none():
    """Scores made in Python say how much was read, and not that it is called None."""
    corpus = {**scores_metadata()["corpus"], "source": None}
    assert "None" not in Reader(make_scores(importance_matrix(), corpus=corpus)._repr_html_()).text


def test_load_reads_whatever_it_is(tmp_path):
    """`plnd.load` gives scores of a scores file and a set of a neurons file."""
    scores, neurons = SHOWN["scores"][0], make_neurons({"0.down_proj": [1, 2]})
    scores.save(tmp_path / "s")
    neurons.save(tmp_path / "n")
    assert plnd.load(tmp_path / "n") == neurons and plnd.load(str(tmp_path / "s")).digest == scores.digest
