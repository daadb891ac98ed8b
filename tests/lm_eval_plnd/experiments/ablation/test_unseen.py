"""Sets are not evaluated by `plnd ablate --text` on the documents that they were detected on."""

from __future__ import annotations

import json

import numpy as np
import pytest

from handmade import neurons_metadata
from lm_eval_plnd.experiments.ablation.unseen import check_unseen
from plnd.demo_data import demo_corpus, demo_model
from plnd.detection.config import DetectConfig
from plnd.detection.run import detect
from plnd.errors import PLNDError
from plnd.io.corpus import read_documents
from plnd.models.loading import load_model, load_tokenizer
from plnd.neurons.neuron_set import NeuronSet


@pytest.fixture(scope="module")
def model():
    """The demo's, and its tokenizer."""
    return load_model(str(demo_model()), dtype="float32", device="cpu"), load_tokenizer(str(demo_model()))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Ten documents, the first and the last of them too short."""
    texts = list(read_documents(demo_corpus("detect") / "corpora" / "zh.jsonl"))
    path = tmp_path_factory.mktemp("corpus") / "zh.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["短。", *texts[:8], "短。"]))
    return path


def detected(model, documents, **settings) -> NeuronSet:
    """Some neurons that matter in these documents."""
    config = DetectConfig(qk="off", max_length=48, **settings)
    return detect(model[0], documents, config, tokenizer=model[1]).select(fraction=0.01)


def test_what_was_detected_on_is_not_evaluated(model, corpus):
    """The whole file, and as far as one document into its last half; combined sets come from the first one's."""
    whole, five = (detected(model, read_documents(corpus), max_documents=n) for n in (None, 5))
    for neurons, seen in ((whole, 9), (five, 6), (five - whole, 6)):
        message = (
            f"of its 10 documents the set was detected on the first {seen}, and the last 5 are evaluated: detect with"
            " --max-documents 4 or fewer, or name another text"
        )
        with pytest.raises(PLNDError, match=message):
            check_unseen(neurons, model[1], "zh", str(corpus))


def test_what_was_not_is(model, corpus):
    """The first half of the file, other texts of as many documents, and sets of other makers, which do not say."""
    texts = list(read_documents(corpus))
    check_unseen(detected(model, texts, max_documents=4), model[1], "zh", str(corpus))
    check_unseen(detected(model, texts[::-1]), model[1], "zh", str(corpus))
    check_unseen(detected(model, texts[:-2] * 9), model[1], "zh", str(corpus))
    check_unseen(detected(model, texts), model[1], "en", str(demo_corpus("detect") / "corpora" / "en.jsonl"))
    handmade = NeuronSet(
        {"0.o_proj": np.arange(2, dtype=np.int32)}, {"0.o_proj": np.ones(2, np.float32)}, neurons_metadata()
    )
    check_unseen(handmade, model[1], "zh", str(corpus))
