"""Where each model family keeps its projections: one table, which the algorithms loop over.

A row says where things are, never how to compute with them. To add a family, add a `Family` to `FAMILIES` and a tiny
model of it to `tests/support/tiny.py`: the test suite parametrises over the table and holds the new row to the
brute-force oracle (docs/families.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from plnd.addresses import ATTENTION_PROJECTIONS, COLUMN_PROJECTIONS, PROJECTIONS

if TYPE_CHECKING:
    pass


Fused = Literal["stacked", "by_group", "halves"]
"""How a module's rows hold several projections: `stacked`, all of q, then all of k, then all of v; `by_group`, for each
key-value head its query heads, then k, then v; `halves`, gate_proj then up_proj."""


@dataclass(frozen=True)
class Projection:
    """One logical matrix of a block whose rows (or columns) are neurons.

    Attributes:
        name: as Hugging Face Llama names it.
        module: path of the module that holds it, relative to the block.
        fused: how the module's rows are shared out, where it holds more than this projection.
        parameter: name of the module's weight; that of fused experts is [experts, out, in].
    """

    name: str
    module: str
    fused: Fused | None = None
    parameter: str = "weight"

    @property
    def axis(self) -> Literal["row", "column"]:
        """`row`: a neuron is an output row (weights and bias); `column`: an input column."""
        return "column" if self.name in COLUMN_PROJECTIONS else "row"


@dataclass(frozen=True)
class Norm:
    """An RMS norm.

    Attributes:
        module: its path, relative to the block.
        eps: its attribute that holds epsilon.
        offset: what is added to its weight for the gain.
        whole: of queries and keys, whether the mean square is taken over all heads together, not over each.
    """

    module: str
    eps: str = "variance_epsilon"
    offset: float = 0.0
    whole: bool = False


@dataclass(frozen=True)
class Rotation:
    """Rotary positions.

    Attributes:
        pairs: which channels turn together: c with c + half of the rotated ones, or 2c with 2c + 1. Where fewer are
            rotated than a head has, they are the first.
        table: path of the block's table of sines and cosines, [positions, rotated channels], the sines
            of the pairs, then their cosines; newer releases of transformers hand the attention module its lines,
            `position_embeddings=(sin, cos)`. None where it receives `position_embeddings=(cos, sin)` of every channel.
        when: path of an attribute of the block that is false where the block does not rotate.
    """

    pairs: Literal["halves", "neighbours"] = "halves"
    table: str | None = None
    when: str | None = None


@dataclass(frozen=True)
class Stack:
    """Blocks of one kind; every path is relative to a block unless it says otherwise.

    Attributes:
        blocks: the list of blocks, relative to the model's body.
        attention: the attention module.
        feed_forward: the module whose output is what the feed-forward sub-layer adds; None for cross-attention.
        projections: where each logical projection lives; an ungated feed-forward has no `gate_proj`.
        head_dim: where the width of one head can be read.
        activation: the feed-forward non-linearity; it must map 0 to 0.
        name: address of block {n}.
        rotation: rotary positions, if any.
        query_norm, key_norm: norms of queries and keys between projection and rotation.
        attention_norm, feed_forward_norm: norms of a sub-layer's output before it joins the residual stream.
        factor: path of what both sub-layers' outputs are multiplied by before they join the residual stream.
        own_attention: in some release of transformers attention does not go through its `AttentionInterface`, but is
            softmax(q·k/√head_dim + bias + mask), with `attention_mask` and, where `alibi`, `alibi` among the attention
            module's keyword arguments; where `relative_bias`, softmax(q·k + bias + mask).
        alibi: see `own_attention`.
        relative_bias: see `own_attention`; T5's bias of relative positions.
        softcap: logits are capped, which SDPA cannot do: the row knows of it, and no other reason not to use SDPA.
        scaled_queries: queries are divided by √head_dim before they enter the interface.
        experts: path of the fused experts, where the feed-forward is a mixture. Neuron e·width + k of a projection is
            neuron k of expert e.
    """

    blocks: str
    attention: str
    feed_forward: str | None
    projections: tuple[Projection, ...]
    head_dim: str
    activation: str | None
    name: str = "{n}"
    rotation: Rotation | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    attention_norm: Norm | None = None
    feed_forward_norm: Norm | None = None
    factor: str | None = None
    own_attention: bool = False
    alibi: bool = False
    relative_bias: bool = False
    softcap: bool = False
    scaled_queries: bool = False
    experts: str | None = None


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        name: of the row; two rows may describe one `model_type`, the one whose modules are there applies.
        model_types: `config.model_type` of the models this row describes.
        stacks: the kinds of blocks.
        requires: values that these fields of the configuration must have for the row to be exact, where they exist.
        final: what the last block's output goes through before the unembedding, in order, relative to the model's body;
            a module may be None.
        exact: of a row that was probed (`plnd.accept_family`), the projections that were held to brute force on the
            twin of the model at hand; None for rows of the table, which the test suite holds to it.
    """

    name: str
    model_types: tuple[str, ...]
    stacks: tuple[Stack, ...]
    requires: Mapping[str, Any] = field(default_factory=dict)
    final: tuple[str, ...] = ("norm",)
    exact: tuple[str, ...] | None = None

    def as_json(self) -> str:
        """All fields but `exact`, which no file can claim."""
        fields = asdict(self)
        del fields["exact"]
        return json.dumps(fields, indent=1)

    def record(self) -> dict[str, Any]:
        """What an artifact says of a row that was probed: its name, its digest, and what of it was exact."""
        digest = hashlib.sha256(self.as_json().encode()).hexdigest()
        return {"probed": self.name, "sha256": digest, "exact": list(self.exact or ())}

    def description(self) -> Iterator[str]:
        """What sets the row apart, in words."""
        stack = self.stacks[0]
        if len(self.stacks) > 1:
            yield "encoder, decoder and cross-attention"
        fused = {p.module: p.fused for s in self.stacks for p in s.projections if p.fused and not s.experts}
        for module, how in fused.items():
            yield f"{module.rpartition('.')[2]} fused ({how.replace('_', ' ')})"
        if stack.experts:
            yield "mixture of experts"
        elif not any(p.name == "gate_proj" for p in stack.projections):
            yield "ungated"
        if stack.rotation:
            yield f"rotary ({stack.rotation.pairs})"
        if stack.alibi:
            yield "ALiBi"
        if stack.query_norm:
            yield f"QK-norm ({'whole width' if stack.query_norm.whole else 'per head'})"
        if stack.attention_norm:
            yield "post-norms"
        if stack.factor:
            yield stack.factor.replace("_", " ")
        if stack.softcap:
            yield "soft-cap"
        for name, value in self.requires.items():
            yield f"{name}={value} only"


# rows


def _projections(q: str, k: str, v: str, o: str, *ffn: str, qkv: Fused | None = None) -> tuple[Projection, ...]:
    """Module paths in the usual order; two of the feed-forward (up, down) or three (gate, up, down)."""
    attention = [Projection(n, m, qkv) for n, m in zip(PROJECTIONS, (q, k, v), strict=False)]
    rest = [Projection(n, m) for n, m in zip(PROJECTIONS[-len(ffn) :] if ffn else (), ffn, strict=True)]
    return (*attention, Projection("o_proj", o), *rest)


_LLAMA = Stack(
    blocks="layers",
    attention="self_attn",
    feed_forward="mlp",
    projections=_projections(
        *(f"self_attn.{name}" for name in ATTENTION_PROJECTIONS), *(f"mlp.{name}" for name in PROJECTIONS[4:])
    ),
    head_dim="self_attn.head_dim",
    activation="mlp.act_fn",
    rotation=Rotation(),
)
_FUSED_BY_HEAD = Stack(  # BLOOM's names, which Falcon shares
    blocks="h",
    attention="self_attention",
    feed_forward="mlp",
    projections=_projections(
        *["self_attention.query_key_value"] * 3,
        "self_attention.dense",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
        qkv="by_group",
    ),
    head_dim="self_attention.head_dim",
    activation="mlp.gelu_impl",
    own_attention=True,
)
_FAIRSEQ = Stack(  # OPT's names, which XGLM shares
    blocks="decoder.layers",
    attention="self_attn",
    feed_forward="fc2",
    projections=_projections(
        *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")), "fc1", "fc2"
    ),
    head_dim="self_attn.head_dim",
    activation="activation_fn",
)
_HEAD_NORMS: dict[str, Any] = {"query_norm": Norm("self_attn.q_norm"), "key_norm": Norm("self_attn.k_norm")}
_GEMMA_POST_NORMS: dict[str, Any] = {
    "attention_norm": Norm("post_attention_layernorm", eps="eps", offset=1.0),
    "feed_forward_norm": Norm("post_feedforward_layernorm", eps="eps", offset=1.0),
}
_EXPERTS = replace(
    _LLAMA,
    projections=(
        *_LLAMA.projections[:4],
        Projection("gate_proj", "mlp.experts", "halves", "gate_up_proj"),
        Projection("up_proj", "mlp.experts", "halves", "gate_up_proj"),
        Projection("down_proj", "mlp.experts", None, "down_proj"),
    ),
    activation="mlp.experts.act_fn",
    experts="mlp.experts",
)


def like_llama(model_type: str, **differences: Any) -> Family:
    """A row for models whose modules are named as Hugging Face Llama names them."""
    return Family(model_type, (model_type,), (replace(_LLAMA, **differences),))


def _t5(name: str, model_types: tuple[str, ...], *ffn: str) -> Family:
    """Encoder, decoder and cross-attention of T5; `ffn` names the feed-forward's modules."""

    def stack(part: str, attention: str, feed_forward: str | None, name: str) -> Stack:
        modules = [f"{feed_forward}.{module}" for module in ffn] if feed_forward else []
        return Stack(
            name=name,
            blocks=f"{part}.block",
            attention=attention,
            feed_forward=feed_forward,
            projections=_projections(*(f"{attention}.{module}" for module in "qkvo"), *modules),
            head_dim=f"{attention}.key_value_proj_dim",
            activation=feed_forward and f"{feed_forward}.act",
            own_attention=True,
            relative_bias=True,
        )

    stacks = (
        stack("encoder", "layer.0.SelfAttention", "layer.1.DenseReluDense", "encoder.{n}"),
        stack("decoder", "layer.0.SelfAttention", "layer.2.DenseReluDense", "decoder.{n}"),
        stack("decoder", "layer.1.EncDecAttention", None, "decoder.{n}.cross"),
    )
    return Family(name, model_types, stacks, final=("decoder.final_layer_norm",))


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        like_llama("llama"),
        like_llama("mistral"),
        like_llama("qwen2"),
        like_llama("qwen3", **_HEAD_NORMS),
        like_llama("gemma2", softcap=True, **_GEMMA_POST_NORMS),
        like_llama(
            "gemma3_text",
            query_norm=Norm("self_attn.q_norm", eps="eps", offset=1.0),
            key_norm=Norm("self_attn.k_norm", eps="eps", offset=1.0),
            **_GEMMA_POST_NORMS,
        ),
        like_llama(
            "olmo2",
            query_norm=Norm("self_attn.q_norm", whole=True),
            key_norm=Norm("self_attn.k_norm", whole=True),
            attention_norm=Norm("post_attention_layernorm"),
            feed_forward_norm=Norm("post_feedforward_layernorm"),
        ),
        like_llama("granite", factor="residual_multiplier"),
        like_llama("smollm3", rotation=Rotation(when="self_attn.use_rope")),
        replace(like_llama("cohere", rotation=Rotation("neighbours")), requires={"use_qk_norm": False}),
        Family(
            "phi3",
            ("phi3",),
            (
                replace(
                    _LLAMA,
                    projections=(
                        *_projections(*["self_attn.qkv_proj"] * 3, "self_attn.o_proj", qkv="stacked"),
                        Projection("gate_proj", "mlp.gate_up_proj", "halves"),
                        Projection("up_proj", "mlp.gate_up_proj", "halves"),
                        Projection("down_proj", "mlp.down_proj"),
                    ),
                    activation="mlp.activation_fn",
                ),
            ),
        ),
        Family("mixtral", ("mixtral",), (_EXPERTS,)),
        Family("qwen3_moe", ("qwen3_moe",), (replace(_EXPERTS, **_HEAD_NORMS),)),
        Family(
            "gpt2",
            ("gpt2",),
            (
                Stack(
                    blocks="h",
                    attention="attn",
                    feed_forward="mlp",
                    projections=_projections(
                        *["attn.c_attn"] * 3, "attn.c_proj", "mlp.c_fc", "mlp.c_proj", qkv="stacked"
                    ),
                    head_dim="attn.head_dim",
                    activation="mlp.act",
                ),
            ),
            requires={"add_cross_attention": False},
            final=("ln_f",),
        ),
        Family(
            "gptj",
            ("gptj",),
            (
                Stack(
                    blocks="h",
                    attention="attn",
                    feed_forward="mlp",
                    projections=_projections(
                        *(f"attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
                        "mlp.fc_in",
                        "mlp.fc_out",
                    ),
                    head_dim="attn.head_dim",
                    activation="mlp.act",
                    rotation=Rotation("neighbours", table="attn.embed_positions"),
                    own_attention=True,
                ),
            ),
            final=("ln_f",),
        ),
        Family(
            "gpt_neox",
            ("gpt_neox",),
            (
                Stack(
                    blocks="layers",
                    attention="attention",
                    feed_forward="mlp",
                    projections=_projections(
                        *["attention.query_key_value"] * 3,
                        "attention.dense",
                        "mlp.dense_h_to_4h",
                        "mlp.dense_4h_to_h",
                        qkv="by_group",
                    ),
                    head_dim="attention.head_size",
                    activation="mlp.act",
                    rotation=Rotation(),
                ),
            ),
            final=("final_layer_norm",),
        ),
        Family(
            "falcon",
            ("falcon",),
            (replace(_FUSED_BY_HEAD, activation="mlp.act", rotation=Rotation()),),
            requires={"alibi": False},
            final=("ln_f",),
        ),
        Family(
            "bloom",
            ("bloom",),
            (replace(_FUSED_BY_HEAD, alibi=True),),
            requires={"slow_but_exact": False},
            final=("ln_f",),
        ),
        Family(
            "xglm",
            ("xglm",),
            (replace(_FAIRSEQ, blocks="layers", own_attention=True),),
            requires={"add_cross_attention": False},
            final=("layer_norm",),
        ),
        Family(
            "opt",
            ("opt",),
            (replace(_FAIRSEQ, scaled_queries=True),),
            requires={"do_layer_norm_before": True},
            final=("decoder.final_layer_norm", "decoder.project_out"),
        ),
        _t5("t5", ("t5", "mt5", "umt5"), "wi", "wo"),
        _t5("t5_gated", ("t5", "mt5", "umt5"), "wi_0", "wi_1", "wo"),
    )
}
