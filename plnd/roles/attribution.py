"""How much neurons of each role contribute to the output, and to the correct answer (arXiv:2406.09265, section 6).

At the last token of an input, neuron i of a block adds A_i·v_i to what the feed-forward returns, with v_i its column of
`down_proj`. Its contribution score is |A_i|·‖v_i‖ as a share of the sum over the block's neurons (eq. 9), its effective
score E_r·A_i·v_i with E_r the output embedding of the correct answer (eq. 10). Norms after the feed-forward (Gemma,
OLMo 2) and before the head stay outside, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from plnd.errors import PLNDError
from plnd.models.layout import Layout
from plnd.models.quantised import dequantised
from plnd.roles.activations import block_slices, feed_forward_widths
from plnd.roles.roles import ROLES

if TYPE_CHECKING:
    from plnd.roles.activations import Chunk

Weighting = Literal["product", "activation"]
WEIGHTINGS = ("product", "activation")
ANSWER_TOKENS = ("first", "mean")
TOP = 0.05
COLUMNS = (
    "language",
    "role",
    "block",
    "neurons",
    "contribution_total",
    "contribution_mean",
    "top_share",
    *(f"{token}_{value}" for token in ANSWER_TOKENS for value in ("max", "min", "mean", "variance")),
)


class Attribution:
    """Contribution and effective scores by language, role and block; hand it to `find_roles` as `listener`.

    Args:
        model: the model that `find_roles` runs.
        languages: number of languages.
        answers: for each example, for each language, the tokens of the correct answer; None leaves eq. 10 out. Of an
            answer of several tokens there is the score of the first one, and of the mean of all their embeddings.
        weighting: what A_i is in a gated feed-forward: `product`, what multiplies v_i, the activation times the up
            projection, so that eq. 2 holds; or `activation`, the output of the non-linearity alone. They are one where
            there is no gate.
    """

    def __init__(
        self,
        model: Any,
        languages: int,
        answers: Sequence[Sequence[Sequence[int]]] | None = None,
        *,
        weighting: Weighting = "product",
    ) -> None:
        if weighting not in WEIGHTINGS:
            raise PLNDError(f"unknown weighting {weighting!r}: expected one of {', '.join(WEIGHTINGS)}")
        layout = Layout(model)
        self.slices = block_slices(feed_forward_widths(layout))
        self.coefficients = weighting == "product"
        self.answers = answers
        self.targets = {name: layout.targets[f"{name}.down_proj"] for name in self.slices}
        self.norms = {name: self._wide(target.weight()).norm(dim=0) for name, target in self.targets.items()}
        embeddings = layout.model.get_output_embeddings()
        if answers is not None and embeddings is None:
            raise PLNDError("effective scores (eq. 10) need a language-model head, and this model has none")
        self.embeddings = None if answers is None else dequantised(embeddings)
        shape = (languages, len(ROLES), len(self.slices))
        self.examples = 0
        self.neurons = np.zeros(shape, dtype=np.int64)
        self.contribution, self.top = np.zeros(shape), np.zeros(shape)
        scores = (*shape, len(ANSWER_TOKENS))
        self.most, self.least = np.full(scores, -np.inf), np.full(scores, np.inf)
        self.sum, self.squares = np.zeros(scores), np.zeros(scores)

    @staticmethod
    def _wide(tensor: Tensor) -> Tensor:
        return tensor.detach().cpu().to(torch.promote_types(tensor.dtype, torch.float32))

    def add(self, chunk: Chunk, codes: np.ndarray) -> None:
        """Adds some examples; `codes` are those of their roles, uint8 [examples, neurons of all blocks]."""
        weights = chunk.coefficients if self.coefficients else chunk.activations
        assert weights is not None
        self.examples += len(weights)
        answers = None if self.answers is None else self._answer_embeddings(chunk.start, len(weights))
        for block, (name, place) in enumerate(self.slices.items()):
            a = weights[..., place]
            members = [torch.from_numpy(codes[:, place] == code)[:, None] for code in range(len(ROLES))]
            score = contribution_scores(a, self.norms[name])
            top = is_top(score, TOP)
            effective = []
            if answers is not None:
                values = self._wide(self.targets[name].weight())
                effective = [a * (embedding @ values) for embedding in answers]
            for role, member in enumerate(members):
                at = (slice(None), role, block)
                self.neurons[at] += int(member.sum())
                self.contribution[at] += _by_language(score * member)
                self.top[at] += _by_language((top & member).double()) / int(top[0, 0].sum())
                for token, scores in enumerate(effective):
                    kept = scores * member
                    self.sum[(*at, token)] += _by_language(kept)
                    self.squares[(*at, token)] += _by_language(kept.double().square())
                    for held, limit, reduce in ((self.most, -np.inf, np.maximum), (self.least, np.inf, np.minimum)):
                        masked = scores.masked_fill(~member, limit)
                        extreme = masked.amax((0, 2)) if limit < 0 else masked.amin((0, 2))
                        held[(*at, token)] = reduce(held[(*at, token)], extreme.double().numpy())

    def _answer_embeddings(self, start: int, examples: int) -> list[Tensor]:
        """E_r of the first token and the mean over all: two of [examples, languages, hidden]."""
        assert self.answers is not None and self.embeddings is not None
        rows = self.answers[start : start + examples]
        of = [[self._wide(self.embeddings[ids]) for ids in row] for row in rows]
        return [
            torch.stack([torch.stack([tokens[0] for tokens in row]) for row in of]),
            torch.stack([torch.stack([tokens.mean(0) for tokens in row]) for row in of]),
        ]

    def rows(self, languages: Sequence[str]) -> list[tuple[Any, ...]]:
        """A row of `COLUMNS` for every language, role and block.

        `neurons` counts those of all examples. `contribution_total` is the sum over a block's neurons of the role, mean
        over examples; `contribution_mean` is per neuron. `top_share` is the role's percentage of the block's 5 % of
        neurons with the highest contribution, mean over examples. Maximum, minimum, mean and variance of effective
        scores are over all neurons of all examples. What does not exist is None.
        """
        table = []
        for (p, r, b), neurons in np.ndenumerate(self.neurons):
            scores: list[float | None] = []
            for token in range(len(ANSWER_TOKENS)):
                if self.answers is None or not neurons:
                    scores += [None] * 4
                    continue
                mean = self.sum[p, r, b, token] / neurons
                variance = max(self.squares[p, r, b, token] / neurons - mean**2, 0.0)
                scores += map(float, (self.most[p, r, b, token], self.least[p, r, b, token], mean, variance))
            total = float(self.contribution[p, r, b])
            table.append(
                (
                    languages[p],
                    ROLES[r],
                    list(self.slices)[b],
                    int(neurons),
                    total / self.examples,
                    total / int(neurons) if neurons else None,
                    100 * float(self.top[p, r, b]) / self.examples,
                    *scores,
                )
            )
        return table


def contribution_scores(weights: Tensor, norms: Tensor) -> Tensor:
    """Eq. 9: each neuron's share of the block's Σ|A|·‖v‖.

    Args:
        weights: A, [..., width].
        norms: ‖v‖, [width].
    Returns:
        [..., width], sums of 1; zeros where all of A is zero.
    """
    product = weights.abs() * norms
    return torch.nan_to_num(product / product.sum(-1, keepdim=True))


def is_top(scores: Tensor, share: float) -> Tensor:
    """Which neurons are among the highest-scoring share of their block, at least one: bool [..., width]."""
    chosen = scores.topk(max(1, round(share * scores.shape[-1])), dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, chosen, True)


def _by_language(values: Tensor) -> np.ndarray:
    """Sum of [examples, languages, width] over examples and neurons, in float64: [languages]."""
    return values.sum((0, 2), dtype=torch.float64).numpy()
