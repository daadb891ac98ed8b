"""What a thread makes ahead is what would have been made without it, and the thread is gone afterwards."""

from __future__ import annotations

import threading
from itertools import count

import pytest
import torch

from detecting import CONFIG, MANY, SMALL
from plnd.detection.documents import TokenizedCorpus
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
    assert [x.name for x in set(threading.enumerate()) - before if x.name == "prefetch"] == []


def test_items_come_in_order_from_another_thread():
    """All items, in order, and made by one other thread."""
    makers = set()

    def made():
        for number in range(100):
            makers.add(threading.get_ident())
            yield number

    assert list(prefetched(made(), 3)) == list(range(100))
    assert len(makers) == 1 and threading.get_ident() not in makers


def test_no_more_than_so_many_are_ahead():
    """The thread makes as many as it may, and then waits for one to be taken."""
    made, third, fifth = [], threading.Event(), threading.Event()

    def numbers():
        for number in count():
            made.append(number)
            (third if number == 3 else fifth if number == 5 else threading.Event()).set()
            yield number

    items = prefetched(numbers(), 3)
    assert next(items) == 0
    assert third.wait(5) and made == [0, 1, 2, 3]  # the first is in use
    assert next(items) == 1 and next(items) == 2
    assert fifth.wait(5) and made == [0, 1, 2, 3, 4, 5]
    items.close()
    assert made == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_what_is_raised_comes_in_its_place(kind):
    """An error, or an interruption, in the making of the third item comes after the second."""

    def made():
        yield 1
        yield 2
        raise kind("the third")

    items = prefetched(made(), 10)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(kind, match="the third"):
        next(items)


def test_who_leaves_early_ends_the_thread_and_the_source():
    """The source is closed, in its thread, when its items are no longer wanted, also by an error of who uses them."""
    closed = []

    def made():
        try:
            yield from count()
        finally:
            closed.append(threading.get_ident())

    items = prefetched(made(), 2)
    assert next(items) == 0
    items.close()
    with pytest.raises(ZeroDivisionError):
        for number in prefetched(made(), 2):
            number // 0
    assert len(closed) == 2 and threading.get_ident() not in closed


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
