"""The page: what is in it, that it asks no one, that nothing in a file becomes markup, and what browsers show."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import unicodedata

import pytest

from browser import needs_browser, rendered
from exploring import inspection, scores
from handmade import make_neurons
from html_elements import Elements
from plnd.errors import PLNDError
from plnd.explorer.arrays import size
from plnd.explorer.contents import together
from plnd.explorer.page import MAX_BYTES, explorer_page

HOSTILE = "</script><img src=x onerror=alert(1)>\u202e\x1b[31m{{ 'seven' ~ 'teen' }}"


def facts_of(page: str) -> dict:
    """What the script reads first."""
    return json.loads(re.search(r'<script type="application/json" id="facts">(.*?)</script>', page, re.S)[1])


def test_what_the_page_holds(contents):
    """Names, sizes, a piece for every block; the same bytes again."""
    page = explorer_page(contents)
    found, elements = facts_of(page), Elements(page)
    assert found["blocks"] == ["0", "1"] and found["languages"] == ["zh", "en"] and found["sets"] == ["zh", "en"]
    assert found["widths"][0] == [6, 4, 4, 6, 8, 8, 8] and found["scales"] == {}
    assert [set(found["map"][kind][0][0]) <= {None} for kind in ("own", "largest", "mean", "sets")] == [False] * 4
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert {"piece-0", "piece-1", "facts", "map", "neuron"} <= set(ids) and len(ids) == len(set(ids))
    assert elements.of("h1") == ["Neurons of made/by-hand"] and page == explorer_page(contents)
    assert "float32, without rounding" in page and "≈" not in elements.of("p")


def test_profiles_stand_where_a_value_is_read(contents):
    """A row of `up_proj` and the column of `down_proj` are one neuron, and share what is known of it."""
    found = facts_of(explorer_page(contents))["profiles"]
    assert set(found) == {"0.down_proj.3", "1.q_proj.5"}
    zh = found["0.down_proj.3"][0]["languages"][0]
    assert (zh["name"], zh["number"], zh["large"]) == ("zh", 12.5, 0.125)
    assert zh["firings"] == [[-3.5, "我们 ", "我们", " b", 0, 4]]


def test_the_page_asks_no_one(contents):
    """No address but its own; a policy that allows its one script, by digest, and nothing else."""
    page = explorer_page(contents)
    assert not re.search(r"(?:https?:)?//[a-z]", re.sub(r"<script>.*?</script>", "", page, flags=re.S))
    assert "@import" not in page and "url(" not in page
    assert all(address.startswith(("#", "data:,")) for address in Elements(page).addresses())
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert "unsafe-eval" not in policy and "http" not in policy


def test_the_script_writes_text_only():
    """Nothing that makes markup, code or a request of a text."""
    script = explorer_page(together({"zh": scores("zh", 2)}, {}, {}))
    script = re.search(r"<script>(.*?)</script>", script, re.S)[1]
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "fetch(",
                 "XMLHttpRequest", "import(", "WebSocket", "sendBeacon", "localStorage", "cookie"):  # fmt: skip
        assert word not in script, word


def hostile():
    """A page with a text that would like to be more wherever one can be."""
    model = {**scores("zh", 2).metadata.model, "name": HOSTILE}
    sets = {HOSTILE: make_neurons({"0.q_proj": [1]}, model=model), "b": make_neurons({"0.q_proj": [1]}, model=model)}
    one = {HOSTILE: scores(HOSTILE, 2, model=model), "en": scores("en", 1, model=model)}
    return together(one, sets, {HOSTILE: inspection(HOSTILE)})


def test_hostile_text_stays_text(contents):
    """In names of models, languages and files, and in tokens: no further element, no control, no template."""
    page = explorer_page(hostile())
    tags = [tag for tag, _ in Elements(page).tags]
    assert "img" not in tags and tags.count("script") == 3 + 1  # facts, the script, and two blocks
    assert "seventeen" not in page
    assert not {unicodedata.category(x) for x in page.replace("\n", "")} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert facts_of(page)["sets"][0] == HOSTILE.replace("\u202e", r"\u202e").replace("\x1b", r"\x1b")


def test_a_rounded_page_says_so(contents):
    """How exact it is, in words; and it is smaller."""
    page = explorer_page(contents, rounded=True)
    assert re.search(r"rounded to 16 bits, to within 0\.0\d+ %, and marked ≈", page)
    assert set(facts_of(page)["scales"]) == {"zh", "en"} and len(page) < len(explorer_page(contents))


def test_what_importance_is_the_mean_over(contents):
    """Documents, or, by the methods that add up over a corpus, its tokens."""
    assert "Importance is the mean over documents, as in" in explorer_page(contents)
    method = {**scores("zh", 2).metadata.method, "name": "relevance"}
    page = explorer_page(together({"zh": scores("zh", 2, method=method)}, {}, {}))
    assert "Importance is the mean over all tokens of the corpus, as in" in page


def test_pages_that_browsers_cannot_take(monkeypatch, contents):
    """Are refused before they are made, with what makes them smaller."""
    assert MAX_BYTES >= 2**27
    monkeypatch.setattr("plnd.explorer.page.MAX_BYTES", size(contents, rounded=True) - 1)
    with pytest.raises(PLNDError, match="choose --rounded or --projections"):
        explorer_page(contents)
    with pytest.raises(PLNDError, match="choose --projections"):
        explorer_page(contents, rounded=True)


@pytest.mark.parametrize("kind", ["scores", "sets", "inspections"])
def test_one_kind_of_file_is_enough(contents, kind):
    """And the map begins with what there is."""
    given = {"scores": {}, "sets": {}, "inspections": {}} | {kind: getattr(contents, kind)}
    found = facts_of(explorer_page(together(**given)))
    there = {name for name, grids in found["map"].items() if grids}
    assert there == {"scores": {"own", "largest", "mean"}, "sets": {"sets"}, "inspections": {"inspected"}}[kind]


# in a browser


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("rounded", [False, True])
def test_a_browser_shows_a_neurons_own_numbers(contents, tmp_path, rounded):
    """A link to a neuron opens it: importance and rank in each language as in the scores, its sets and its tokens."""
    page = tmp_path / "page.html"
    page.write_text(explorer_page(contents, rounded=rounded), encoding="utf-8")
    shown, console = rendered(page, tmp_path / "profile", "#at=0.down_proj.3")
    assert console == []
    card = shown[shown.index('<section id="neuron"') : shown.index('<section id="projection"')]
    assert "<h2" in card and "0.down_proj.3" in card and "In 2 of 2 sets" in card and "我们" in card
    cells = re.findall(r'<td class="number">(.*?)</td>', card)
    for place, one in enumerate(contents.scores.values()):
        importance, _, rank = cells[3 * place : 3 * place + 3]
        value, all_of_them = float(one.mean["0.down_proj"][3]), one.mean["0.down_proj"]
        if rounded:
            assert float(importance.lstrip("≈").replace(",", "")) == pytest.approx(value, rel=6e-3)
            assert importance.startswith("≈") and rank.startswith("≈")
        else:
            assert float(re.search(r'value="([^"]+)"', importance)[1]) == value
            assert int(rank) == 1 + int((all_of_them > value).sum())


@pytest.mark.slow
@needs_browser
def test_a_browser_runs_nothing_of_a_hostile_file(tmp_path):
    """Texts that would like to be more are shown; an address that is none is said to be none."""
    page = tmp_path / "page.html"
    page.write_text(explorer_page(hostile()), encoding="utf-8")
    shown, console = rendered(page, tmp_path / "profile", "#at=0.up_proj.3")
    assert console == [] and "<img" not in shown and "&lt;img src=x" in shown
    shown, console = rendered(page, tmp_path / "profile", "#at=0.up_proj.8")
    assert console == [] and "0.up_proj.8: no such neuron; 0.up_proj: from 0 to 7" in shown
