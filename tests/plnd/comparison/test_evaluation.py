"""The loss on documents: of each as it is alone, whatever stands beside it and wherever the weights are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import cpu_offload

from plnd.comparison.documents import Document
from plnd.comparison.evaluation import document_nats
from plnd.models.layout import Layout
from plnd.roles.activations import Watch
from tiny import tiny_model

DOCUMENTS = [Document(0, [5, 9, 33, 7, 61, 4, 8, 11, 90, 3], 11), Document(1, [8, 3, 90], 7), Document(2, [2, 44], 9)]


def alone(model) -> list[float]:
    """Each document's loss, by the model's own, one at a time."""
    found = []
    for document in DOCUMENTS:
        tokens = torch.tensor([document.ids])
        with torch.no_grad():
            found.append(float(model(tokens, labels=tokens).loss) * (len(document.ids) - 1))
    return found


@pytest.mark.parametrize("name", ["gemma2", "llama"])
def test_a_document_loses_in_a_batch_what_it_loses_alone(name):
    """Also beside one that is longer than the window, behind which padding that is masked sees nothing."""
    model = tiny_model(name)
    np.testing.assert_allclose(document_nats(model, DOCUMENTS, 3), alone(model), rtol=1e-6)


def test_an_offloaded_model_is_read():
    """Tokens go where the embedding runs, not where its weights are between passes; activations are read, too."""
    model, plain = tiny_model("llama"), tiny_model("llama")
    cpu_offload(model, execution_device="cpu")
    np.testing.assert_array_equal(document_nats(model, DOCUMENTS, 3), document_nats(plain, DOCUMENTS, 3))
    read = []
    for one in (model, plain):
        watch = Watch(Layout(one))
        with watch.attached():
            read.append(watch.read([document.ids for document in DOCUMENTS])[0])
    torch.testing.assert_close(*read, rtol=0, atol=0)
