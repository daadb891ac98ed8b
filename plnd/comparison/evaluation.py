"""What sets of neurons do to text: the loss on every document, without and with an intervention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from plnd.comparison.documents import Document
from plnd.detection.documents import batched
from plnd.detection.measures.relevance import next_token_nats
from plnd.interventions import Kind, intervened
from plnd.models.batches import padded
from plnd.models.layout import input_device, unwrap
from plnd.models.running import measured
from plnd.neurons.neuron_set import NeuronSet


@torch.no_grad()
def document_nats(model: nn.Module, documents: Sequence[Document], batch_size: int) -> np.ndarray:
    """The sum of each document's next-token losses, scored in float32 or more, [documents] float64."""
    language_model = unwrap(model)
    order = sorted(range(len(documents)), key=lambda n: -len(documents[n].ids))
    nats = np.empty(len(documents))
    with measured(language_model, [language_model], whole=False):
        for rows in batched(order, batch_size):
            batch = padded([documents[n].ids for n in rows])
            ids, mask = (tensor.to(input_device(language_model)) for tensor in batch)
            seen = torch.ones_like(mask)  # see `padded`
            logits = language_model(input_ids=ids, attention_mask=seen, use_cache=False).logits
            nats[rows] = next_token_nats(logits, ids, mask).double().cpu().numpy()
    return nats


def nats_without(
    model: nn.Module,
    neurons: NeuronSet,
    kind: Kind,
    means: Mapping[str, np.ndarray],
    documents: Mapping[str, Sequence[Document]],
    batch_size: int,
) -> dict[str, np.ndarray]:
    """`document_nats` of every language's documents while neurons are ablated.

    Args:
        model: the model.
        neurons: which; none at all leave the model as it is.
        kind: how, a kind of `plnd.intervened`.
        means: the values of kind `mean`.
        documents: by language.
        batch_size: documents in one pass.
    """
    with intervened(model, neurons, kind=kind, means=means if kind == "mean" else None):
        return {language: document_nats(model, found, batch_size) for language, found in documents.items()}
