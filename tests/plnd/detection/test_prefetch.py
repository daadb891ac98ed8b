"""What a thread makes ahead is what would have been made without it, and the thread is gone afterwards."""

from __future__ import annotations

import threading
from itertools import count

import pytest
import torch

from detecting import CONFIG, MANY, SMALL
from plnd.detection.documents import OwnTokenizer, TokenizedCorpus
from plnd.detection.prefetch import prefetched
from plnd.detection.run import detect
from plnd.detection.shards import Shard
from plnd.models.layout import Layout
from tiny import tiny_model


@pytest.fixture(autouse=True)
def no_thread_is_left():
    """Whatever a test does, the thread ends."""
    before = set(threading.enumerate())
    yield
    assert [x.name for x in set(threading.enumerate()) - before if x.name.startswith("prefetch")] == []


def test_items_come_in_order_made_by_another_thread():
    """All items, in order; read in the caller's thread, and made of by one other."""
    readers, makers = set(), set()

    def numbers():
        for number in range(100):
            readers.add(threading.get_ident())
            yield number

    def make(number: int) -> int:
        makers.add(threading.get_ident())
        return number**2

    assert list(prefetched(numbers(), make, lambda: 3)) == [n**2 for n in range(100)]
    assert readers == {threading.get_ident()} and len(makers) == 1 and not makers & readers


def test_no_more_than_so_many_are_ahead():
    """As many are read as there is room for, and made while those before are in use."""
    read, third = [], threading.Event()

    def make(number: int) -> int:
        if number == 3:
            third.set()
        return number

    items = prefetched((read.append(n) or n for n in count()), make, lambda: 4)
    assert next(items) == 0 and third.wait(5) and read == [0, 1, 2, 3]
    assert next(items) == 1 and next(items) == 2 and read == [0, 1, 2, 3, 4, 5]
    items.close()
    assert read == [0, 1, 2, 3, 4, 5]


def test_without_room_reading_ends():
    """Whoever has enough is given what was read, and no more is."""
    read: list[int] = []
    assert list(prefetched((read.append(n) or n for n in count()), str, lambda: 5 - len(read))) == list(
        "01234"[: len(read)]
    )
    assert 0 < len(read) <= 5


def test_what_is_raised_comes_in_its_place():
    """An error in reading, or in making, the third item comes after the second."""

    def broken():
        yield 1
        yield 2
        raise ValueError("the third")

    for items in (prefetched(broken(), int, lambda: 10), prefetched(["1", "2", "the third"], int, lambda: 10)):
        assert [next(items), next(items)] == [1, 2]
        with pytest.raises(ValueError, match="the third"):
            next(items)


def test_an_interruption_of_reading_is_raised_at_once():
    """What was read before it is not waited for."""

    def interrupted():
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(prefetched(interrupted(), int, lambda: 10))


def test_tokens_that_come_in_one_list_are_those_of_their_document():
    """A corpus may fill the same list again for every document."""
    one: list[int] = []

    def documents():
        for document in MANY[:6]:
            one[:] = document
            yield one

    corpus = TokenizedCorpus(documents(), None, CONFIG, Layout(tiny_model("llama")), Shard())
    assert [d.ids for _, _, found in corpus.windows(4) for d in found] == [
        list(x)[: CONFIG.max_length] for x in MANY[:6]
    ]


@pytest.mark.parametrize("own", [True, False])
def test_a_tokenizer_that_others_may_use_stays_in_their_thread(own):
    """What a call sets in it holds for whoever calls it at the same time: only one of our own goes into the thread."""
    callers = set()

    def tokenizer(text: str, **_: object) -> dict[str, list[int]]:
        callers.add(threading.get_ident())
        return {"input_ids": [int(word) for word in text.split()]}

    corpus = TokenizedCorpus(
        ["5 6 7 8"] * 3,
        OwnTokenizer(lambda: tokenizer) if own else tokenizer,
        CONFIG,
        Layout(tiny_model("llama")),
        Shard(),
    )
    assert [d.ids for _, _, found in corpus.windows(2) for d in found] == [[5, 6, 7, 8]] * 3
    assert (threading.get_ident() in callers) != own


def test_no_more_documents_are_read_than_are_wanted():
    """Of a corpus of which some documents are wanted the thread reads up to the last of them, and not one more."""
    read = []

    def documents():
        for document in [[5] * 3, *MANY]:
            read.append(len(document))
            yield document

    config = CONFIG.__class__(min_length=4, max_documents=2)
    corpus = TokenizedCorpus(documents(), None, config, Layout(tiny_model("llama")), Shard())
    assert [[d.number for d in found] for _, _, found in corpus.windows(100)] == [[1, 2]]
    assert len(read) == 3 and corpus.sections[0].short.numbers == [0]


def test_an_interruption_of_a_pass_leaves_no_thread():
    """Ctrl-C while the model computes ends detection, though the corpus never would."""
    model, passes = tiny_model("llama", torch.float32), count()

    def interrupt(*_: object) -> None:
        if next(passes) == 2:
            raise KeyboardInterrupt

    handle = model.model.layers[1].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        detect(model, ([3 + n % 90] * 6 for n in count()), SMALL)
    handle.remove()
