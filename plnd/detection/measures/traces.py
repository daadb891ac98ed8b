"""Puts together what entered a block's attention, document by document, and hands each such trace to a measure.

Queries and keys come from the outputs of their projections and from an attention function registered with transformers'
own `AttentionInterface`, which calls PyTorch's SDPA and so leaves the pass as it is; in families whose attention does
not go through that interface, from the arguments of the attention module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plnd.detection.measures.proof import AttentionProof
from plnd.detection.observer import Handle, ObservedBlock
from plnd.errors import FamilyError
from plnd.importance.attention import Attention, HeadNorm, Rotary, rotated
from plnd.models.families import Norm, Rotation
from plnd.models.layout import missing

Pair = tuple[Tensor, Tensor]


class AttentionTraces:
    """Measures a block's queries and keys in every pass, and emits the sites `query` and, where it has `k_proj`, `key`.

    The first document's attention is held to what the model computed.

    Args:
        block: the block.
        measure: from one document's trace to the importance of its rows of `q_proj` and of `k_proj`, each [width].

    Raises:
        FamilyError: if the row was probed, and queries and keys were not exact.
    """

    def __init__(self, block: ObservedBlock, measure: Callable[[Attention], Pair]) -> None:
        self.block, self.stack, self.measure = block, block.stack, measure
        _check_exact(block)
        self.proof = AttentionProof(block)
        self.measured = [name for name in ("q_proj", "k_proj") if block.has(name)]
        path = self.stack.factors.key
        self.key_factor = None if path is None else float(block.at(path))
        self.rows: dict[str, Tensor] = {}  # of q_proj and k_proj in the pass at hand, [batch, seq, width]
        self.latent = _LatentKeys(block) if self.stack.latent else None
        self.temperature: Tensor | None = None  # of the pass at hand, [batch or 1, seq]
        self.rotary: Pair | None = None  # cos and sin of the pass at hand, [batch or 1, seq, rotated channels]

    def hooks(self) -> Iterator[Handle]:
        """Puts them in place."""
        for name in self.measured:
            yield self.block.after(name, self._keeper(name))
        if self.latent is not None:
            yield self.latent.hook()
        yield from self.proof.hooks()
        yield self.block.attention.register_forward_pre_hook(self._keep_rotary, with_kwargs=True)
        if self.block.observer.layout.interface:
            yield self.block.watch_attention(self._entered)
        else:
            yield self.block.attention.register_forward_hook(self._entered_by_arguments, with_kwargs=True)

    def _keeper(self, name: str) -> Callable[[Tensor, Tensor], None]:
        target = self.block.target(name)

        def keep(_: Tensor, output: Tensor) -> None:
            self.rows[name] = self.block.by_document(target.select(output))

        return keep

    def _keep_rotary(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        rotation = self.stack.rotation
        self.rotary = None
        rotates = rotation is not None and self._rotates(rotation)
        self.temperature = self._temperature(rotates, args, kwargs)
        if rotation is None or not rotates:
            return
        if rotation.table is None:
            factors = self._argument(kwargs, "position_embeddings")
            if factors is not None:  # Granite's configuration says whether there are positions
                self.rotary = _of_channels(factors, rotation)
            return
        if "position_embeddings" in kwargs:
            lines = kwargs["position_embeddings"]
        else:
            table = self.block.at(rotation.table)
            lines = table[self._argument(kwargs, "position_ids").to(table.device)].chunk(2, dim=-1)
        sin, cos = (x.repeat_interleave(2, dim=-1) for x in lines)
        self.rotary = (cos, sin)

    def _temperature(self, rotates: bool, args: tuple, kwargs: dict) -> Tensor | None:
        """What queries are multiplied by, [batch or 1, seq]; None: nothing."""
        temperature = self.stack.temperature
        if temperature is None or (temperature.unrotated and rotates):
            return None
        if temperature.when is not None and not self.block.at(temperature.when):
            return None
        factor, length = (float(self.block.at(path)) for path in (temperature.factor, temperature.length))
        if temperature.first:
            hidden = args[0] if args else self._argument(kwargs, "hidden_states")
            positions = torch.arange(hidden.shape[1], device=hidden.device)[None] + temperature.first
        else:
            positions = self._argument(kwargs, "position_ids")
        return 1 + factor * torch.log(1 + torch.floor(positions / length))

    def _rotates(self, rotation: Rotation) -> bool:
        if rotation.when is None or (rotation.window and self.block.at(rotation.window) is None):
            return True
        return bool(self.block.at(rotation.when))

    def _argument(self, kwargs: dict, name: str) -> Any:
        """What the attention module receives by keyword."""
        if name not in kwargs:
            raise missing(self.block.family, f"block {self.block.name}: the call of {self.stack.attention}", name)
        return kwargs[name]

    # attention outside the interface

    def _entered_by_arguments(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        """Its queries, keys and mask, put together from its arguments."""
        if self.stack.relative_bias:
            self._entered(None, None, None, self._relative_bias(kwargs, output), 1.0, None)
            return
        mask = self._argument(kwargs, "attention_mask")
        if self.stack.alibi:
            bias = self._argument(kwargs, "alibi").unflatten(0, (len(self.block.spans), -1))
            mask = bias if mask is None else bias + mask
        self._entered(None, None, None, mask, self.block.head_dim**-0.5, None)

    def _relative_bias(self, kwargs: dict, output: Any) -> Tensor:
        """T5's bias of relative positions and mask, [batch or 1, heads or 1, queries, keys]."""
        if "mask" in kwargs:  # T5 makes them in one block, and every attention module hands them on
            return output[1]
        attention: Any = self.block.attention
        queries, keys = (self.rows[name].shape[1] for name in ("q_proj", "k_proj"))
        if attention.has_relative_attention_bias:
            bias = attention.compute_bias(queries, keys)
        else:
            bias = self.rows["q_proj"].new_zeros(1, 1, queries, keys)
        mask = self._argument(kwargs, "attention_mask")
        return bias if mask is None else bias + mask

    # traces

    def _entered(
        self,
        query: Tensor | None,
        key: Tensor | None,
        value: Tensor | None,
        mask: Tensor | None,
        scaling: float,
        softcap: float | None,
        sinks: Tensor | None = None,
    ) -> None:
        """Measures the queries and keys of a pass.

        Args:
            query, key: as they enter the scalar product, [batch, heads, seq, head_dim]; None: computed from the
                projections' outputs.
            value: as they enter attention, [batch, groups, seq, head_dim]; None outside the interface.
            mask: boolean (may be seen) or additive, [batch or 1, heads or 1, seq, seq]; None: causal, or of attention
                that is not, all may be seen.
            scaling: factor of the scalar product.
            softcap: soft-cap of the logits.
            sinks: logit of each head's sink, [heads].
        """
        if self.stack.scaled_queries and query is not None:
            scaling = self.block.head_dim**-0.5
            query = query / scaling
        if mask is None and getattr(self.block.attention, "is_causal", True) is False:
            length = self.rows["q_proj"].shape[1]
            mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=self.rows["q_proj"].device)
        visible = None if mask is None else self.block.observer.visible(mask)
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf)
        query_norm, key_norm = (self._head_norm(norm) for norm in (self.stack.query_norm, self.stack.key_norm))
        importance = []
        for index, (start, stop) in enumerate(self.block.spans):
            span = slice(start, stop)
            q, k = self._heads(index, span)
            rotary = self._rotary(index, span)
            temperature = None if self.temperature is None else self.temperature[index % len(self.temperature), span]
            if key is not None:
                key_rotated = key[index, :, span]
            else:
                assert k is not None, "outside the interface keys are made of rows"
                key_rotated = rotated(k, key_norm, rotary)
            trace = Attention(
                query=q,
                key=k,
                query_rotated=rotated(q, query_norm, rotary, temperature) if query is None else query[index, :, span],
                key_rotated=key_rotated,
                scaling=scaling,
                rotary=rotary,
                query_norm=query_norm,
                key_norm=key_norm,
                mask=None if mask is None else mask[index % len(mask), :, span, span],
                softcap=softcap,
                visible=None if visible is None else visible[index],
                sinks=sinks,
                temperature=temperature,
            )
            if index == 0:
                self.proof.add(trace, None if value is None else value[index, :, span])
            measured = self.measure(trace)
            importance.append(measured if self.latent is None else self.latent.rows(*measured))
        self.rotary = None
        self.rows.clear()
        if "k_proj" in self.measured:
            self.block.emit_both(("query", "key"), importance)
        else:
            self.block.emit("query", [query for query, _ in importance])

    def _heads(self, index: int, span: slice) -> tuple[Tensor, Tensor | None]:
        """A document's queries and, where rows make them, keys, [heads, seq, head_dim]."""
        if self.latent is not None:
            return self.latent.heads(self.rows["q_proj"][index, span], self.rows["k_proj"][index, span], index, span)
        rows = (self.rows[name][index, span] for name in self.measured)
        q, *keys = (x.unflatten(-1, (-1, self.block.head_dim)).transpose(0, 1) for x in rows)
        k = keys[0] if keys else None
        return q, k if k is None or self.key_factor is None else k * self.key_factor

    def _rotary(self, index: int, span: slice) -> Rotary | None:
        if self.rotary is None or self.stack.rotation is None:
            return None
        cos, sin = (x[index % len(x), span] for x in self.rotary)
        if self.latent is not None:
            return Rotary.of(cos, sin, self.latent.query_dim, self.latent.pairs, last=True)
        return Rotary.of(cos, sin, self.block.head_dim, self.stack.rotation.pairs)

    def _head_norm(self, norm: Norm | None) -> HeadNorm | None:
        if norm is None:
            return None
        return HeadNorm(self.block.gain(norm), self.block.at(f"{norm.module}.{norm.eps}"), norm.whole, norm.turned)


def _check_exact(block: ObservedBlock) -> None:
    """Refuses queries and keys of a probed row whose twin did not have them exact."""
    exact = block.observer.layout.family.exact
    if exact is not None and not {"q_proj", "k_proj"} <= set(exact):
        raise FamilyError(
            f"block {block.name}: the probed row of {block.family} was exact on the twin for {', '.join(exact)} only:"
            " detect with --qk off"
        )


class _LatentKeys:
    """Queries and keys of latent attention, in the order in which their channels enter the scalar product.

    A head has channels without position, then those that turn; the latter's keys are one for all heads, and no rows of
    `k_proj`.
    """

    def __init__(self, block: ObservedBlock) -> None:
        latent, rotation = block.stack.latent, block.stack.rotation
        assert latent is not None and rotation is not None
        self.block, self.position = block, latent.position
        self.query_dim, self.key_dim = (int(block.at(path)) for path in (latent.query_dim, latent.key_dim))
        self.pairs: Literal["halves", "neighbours"] = "halves" if rotation.apart else rotation.pairs
        channels = torch.arange(self.query_dim)
        turning = channels[self.key_dim :]
        first = turning.view(-1, 2).T.flatten() if rotation.apart else turning
        self.order = torch.cat((channels[: self.key_dim], first))
        self.keys: Tensor | None = None  # of positions in the pass at hand, [batch, seq, turning channels]

    def hook(self) -> Handle:
        """Keeps the keys of positions."""
        return self.block.at(self.position).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.keys = output[..., self.key_dim - self.query_dim :]

    def heads(self, queries: Tensor, keys: Tensor, index: int, span: slice) -> Pair:
        """A document's queries and keys, both [heads, seq, query_dim], from rows of `q_proj` and `k_proj`."""
        assert self.keys is not None
        q = queries.unflatten(-1, (-1, self.query_dim)).transpose(0, 1)
        k = keys.unflatten(-1, (-1, self.key_dim)).transpose(0, 1)
        k = torch.cat((k, self.keys[index, span].expand(len(k), -1, -1)), dim=-1)
        self.order = self.order.to(q.device)  # once: a copy waits for the device
        return q[..., self.order], k[..., self.order]

    def rows(self, queries: Tensor, keys: Tensor) -> Pair:
        """Importance of the rows, from that of all channels, both [heads·query_dim]."""
        back = self.order.argsort().to(queries.device)
        q, k = (x.unflatten(0, (-1, self.query_dim)) for x in (queries, keys))
        return q[:, back].flatten(), k[:, : self.key_dim].flatten()


def _of_channels(factors: Pair, rotation: Rotation) -> Pair:
    """Cosines and sines of every rotated channel, [batch or 1, seq, rotated channels], from what the model hands on."""
    if rotation.given == "channels":
        return factors
    if rotation.given == "complex":
        turns: Any = factors
        factors = (turns.real, turns.imag)
    pairs = factors if rotation.given in ("once", "complex") else [x.chunk(2, dim=-1)[0] for x in factors]
    if rotation.pairs == "halves" or rotation.apart:
        cos, sin = (torch.cat((x, x), dim=-1) for x in pairs)
    else:
        cos, sin = (x.repeat_interleave(2, dim=-1) for x in pairs)
    return cos, sin
