"""The page: what is in it, that it asks no one for anything, and that nothing in a text or a name becomes markup."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace

import pytest

from html_elements import Elements
from plnd.inspection.page import neuron_page, strongest, title
from plnd.inspection.profiles import (
    CorpusRead,
    Firing,
    Inspection,
    LanguageProfile,
    NeuronProfile,
    Writing,
    WrittenToken,
)

HOSTILE = [
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "\"><a href='http://evil.example/'>",
    "\x1b[31m\x00\x9b\u202e\u2028",
    "{{ 7191 * 7 }}{% raw %}",
    "body:has(*) { background: url(http://evil.example) }",
]


def firing(value: float, token: str, before: str = "a ", after: str = " b") -> Firing:
    """A token on which a neuron fires, at the beginning of the first document."""
    return Firing(value, token, before, after, document=0, position=0, token_id=5)


def inspection(text: str = "我们", language: str = "zh", **changes) -> Inspection:
    """Two neurons and two languages by hand, with a text and a name wherever one can be."""
    written = tuple(WrittenToken(n, f"{text}{n}", 2.5 - n) for n in range(3))
    writing = Writing("column of down_proj", written, tuple(replace(t, logit=-t.logit) for t in written))
    languages = (
        LanguageProfile(language, 12.5, -0.25, 0.5, 0.125, (firing(-3.5, text), firing(1.5, " x", text, text))),
        LanguageProfile("he", None, 0.0, 0.0, 0.0, ()),
    )
    first = NeuronProfile("0.up_proj", 7, 9.0, ("0.down_proj.7",), "input column of down_proj", 1.5, languages, writing)
    second = replace(
        first, address="1.q_proj", importance=None, also=(), writing=Writing("nothing: queries"), large=0.0
    )
    corpora = {language: CorpusRead(10, 1234), "he": CorpusRead(3, 99)}
    given = {"model": text, "language": language, "sha256": "ab" * 32, "chosen_from": 40, "measure": "importance"}
    return Inspection(**{**given, "corpora": corpora, "neurons": (first, second), **changes})


def test_every_neuron_has_its_card():
    """Its name, languages, tokens with their signs in their contexts, and what it writes."""
    elements = Elements(neuron_page(inspection()))
    assert elements.of("h1") == ["zh neurons of 我们"]
    assert elements.of("h3") == ["0.up_proj.7", "1.q_proj.7"]
    assert elements.of("a") == ["0.up_proj.7", "1.q_proj.7"]
    links = [attributes["href"] for tag, attributes in elements.tags if tag == "a"]
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert {link.removeprefix("#") for link in links} <= set(ids) and len(ids) == len(set(ids))
    assert elements.of("h4") == ["zh", "he", "Writes"] * 2
    assert elements.of("mark") == ["我们", "␣x", "我们", "␣x"]
    page = neuron_page(inspection())
    for expected in ("−3.5", "+1.5", "12.5%", "never fires", "the same as 0.down_proj.7", "its value is 0", "queries"):
        assert expected in page
    texts = [attributes for tag, attributes in elements.tags if attributes.get("class") in ("text", "chip")]
    assert texts and all(attributes["dir"] == "auto" for attributes in texts)


def test_the_overview_compares_languages():
    """A number a language, of the measure that the inspection says, and a dash where there is none."""
    page = neuron_page(inspection())
    row = page[page.index('href="#n1"') : page.index('href="#n2"')]
    assert re.findall(r'<td class="number[^>]*>([^<]*)</td>', row) == ["12.5", "–"] and "--shade:10" in row
    assert "mean importance for the language" in page
    plain = neuron_page(inspection(measure="mean |value|"))
    row = plain[plain.index('href="#n1"') : plain.index('href="#n2"')]
    assert re.findall(r'<td class="number[^>]*>([^<]*)</td>', row) == ["0.5", "0"]
    assert "mean of |value| over the language" in plain and ">importance <b>" not in plain


def test_written_tokens_of_the_overview_are_those_of_the_sign_at_the_strongest_token():
    """Where the strongest token has a negative value, what is promoted there is the other list."""
    profile = inspection().neurons[0]
    found = strongest(profile)
    assert found is not None and found.value == -3.5
    assert title(replace(inspection(), language=None)) == "Neurons of 我们"
    silent = replace(profile, languages=tuple(replace(one, firings=()) for one in profile.languages))
    assert strongest(silent) is None and "never fires" in neuron_page(replace(inspection(), neurons=(silent,)))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text):
    """In tokens, contexts, names of models and of languages: the same elements, no script, no address, no control."""
    plain, page = neuron_page(inspection()), neuron_page(inspection(text, language=text))
    elements = Elements(page)
    tags = [tag for tag, _ in elements.tags]
    assert tags == [tag for tag, _ in Elements(plain).tags]
    assert not {"script", "iframe", "object"} & set(tags)
    for tag, attributes in elements.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,")), tag
    steering = {unicodedata.category(letter) for letter in page.replace("\n", "")}
    assert not steering & {"Cc", "Cf", "Cs", "Zl", "Zp"} and "50337" not in page
    style = page[page.index("<style>") : page.index("</style>")]
    assert "evil" not in style and "url(" not in style


def test_the_page_asks_no_one():
    """A policy that allows nothing from outside, nothing that refers there, light and dark, the same bytes again."""
    page = neuron_page(inspection())
    assert "default-src 'none'" in page and "http://" not in page and "https://" not in page and "@import" not in page
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    assert page == neuron_page(inspection())
    assert '#language-2:checked) [data-language]:not([data-language="2"])' in page
