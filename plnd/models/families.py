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
from typing import Any, Literal

from plnd.addresses import ATTENTION_PROJECTIONS, COLUMN_PROJECTIONS, PROJECTIONS

Fused = Literal["stacked", "by_group", "halves", "alternating", "gated", "latent"]
"""How a module's rows hold several projections: `stacked`, all of q, then all of k, then all of v; `by_group`, for each
key-value head its query heads, then k, then v; `halves`, gate_proj then up_proj; `alternating`, gate_proj in even rows
and up_proj in odd ones; `gated`, for each head its query, then the gate of its output, which has no neurons; `latent`,
for each head its key without position, then its value."""


@dataclass(frozen=True)
class Projection:
    """One logical matrix of a block whose rows (or columns) are neurons.

    Attributes:
        name: as Hugging Face Llama names it.
        module: path of the module that holds it, relative to the block.
        fused: how the module's rows are shared out, where it holds more than this projection.
        parameter: name of the module's weight; that of fused experts is [experts, out, in].
        transposed: that of fused experts is [experts, in, out].
    """

    name: str
    module: str
    fused: Fused | None = None
    parameter: str = "weight"
    transposed: bool = False

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
        turned: of queries and keys, whether the norm comes after the rotation.
        weight: whether it has one; else the gain is 1.
    """

    module: str
    eps: str = "variance_epsilon"
    offset: float = 0.0
    whole: bool = False
    turned: bool = False
    weight: bool = True


@dataclass(frozen=True)
class Rotation:
    """Rotary positions.

    Attributes:
        pairs: which channels turn together: c with c + half of the rotated ones, or 2c with 2c + 1. Where fewer are
            rotated than a head has, they are the first; of latent attention the last.
        apart: of neighbours, all first channels enter the scalar product before all second ones.
        table: path of the block's table of sines and cosines, [positions, rotated channels], the sines
            of the pairs, then their cosines; newer releases of transformers hand the attention module its lines,
            `position_embeddings=(sin, cos)`. None where it receives `position_embeddings=(cos, sin)` of every channel.
        given: the factors that `position_embeddings` holds: of every channel, as the channels lie (`channels`), or of
            each pair, `once` or `twice` over, or `complex`.
        when: path of an attribute of the block that is false where the block does not rotate.
        window: path of an attribute of the block; where it is None, `when` does not count, and every block rotates.
    """

    pairs: Literal["halves", "neighbours"] = "halves"
    table: str | None = None
    given: Literal["channels", "once", "twice", "complex"] = "channels"
    apart: bool = False
    when: str | None = None
    window: str | None = None


@dataclass(frozen=True)
class Temperature:
    """What queries are multiplied by after rotation: 1 + a·ln(1 + ⌊position / b⌋).

    Attributes:
        factor: path of a, in a block.
        length: path of b.
        first: the position of the first token. Where it is not 0 attention counts them itself, and does not receive
            `position_ids`.
        when: path of an attribute of the block that is false where queries are not multiplied; None: all are.
        unrotated: only those are that do not rotate.
    """

    factor: str
    length: str
    first: int = 0
    when: str | None = None
    unrotated: bool = False


@dataclass(frozen=True)
class Latent:
    """Keys and values that are made of one vector of each token, and a key of its position that all heads share.

    The latent projections have no neurons; those that make queries, keys without position and values of them have.

    Attributes:
        query_dim: path of the number of a head's channels of queries: those without position, then those with.
        key_dim: path of the number of those without.
        position: module whose last outputs are the key of a position before rotation.
    """

    query_dim: str = "self_attn.qk_head_dim"
    key_dim: str = "self_attn.qk_nope_head_dim"
    position: str = "self_attn.kv_a_proj_with_mqa"


@dataclass(frozen=True)
class Factors:
    """Numbers that a block multiplies by; every one the path of a number.

    Attributes:
        attention, feed_forward, beside: of what attention, `feed_forward` and the modules `beside` add to the residual
            stream.
        key: of keys before rotation.
        gate: of gates before the non-linearity.
        stream: of the residual stream that leaves the block, with all that has joined it.
    """

    attention: str | None = None
    feed_forward: str | None = None
    beside: str | None = None
    key: str | None = None
    gate: str | None = None
    stream: str | None = None


@dataclass(frozen=True)
class Stack:
    """Blocks of one kind; every path is relative to a block unless it says otherwise.

    Of the stacks with one name a block has the kind of the first whose `having` it has.

    Attributes:
        blocks: the list of blocks, relative to the model's body.
        attention: the attention module; None where a block has none.
        attention_output: the module whose output is what attention adds, where that is not `attention`.
        feed_forward: the module whose output is what the feed-forward sub-layer adds; None for cross-attention.
        projections: where each logical projection lives; an ungated feed-forward has no `gate_proj`. One whose rows
            have no closed form is left out (`v_proj`, where values are normed; `k_proj` too, where keys are made of
            the same rows, or are another block's): keys and values are then read where they enter attention.
        head_dim: where the width of one head can be read, of latent attention that of its values.
        activation: the feed-forward non-linearity, or a function of torch that the model calls, by its full name; it
            must map 0 to 0. For `clamped` gating the module that has its numbers.
        gating: what is made of gate and up: act(gate)·up (`product`), or what `plnd.models.gating` has.
        name: address of block {n}; "{n}.shared" of experts that all tokens go through, beside those of block {n}.
        having: modules that a block of this kind has.
        beside: modules whose outputs join the residual stream too and have no neurons: recurrences, convolutions.
        rotation: rotary positions, if any.
        query_norm, key_norm: norms of queries and keys between projection and rotation.
        attention_norm, feed_forward_norm: norms of a sub-layer's output before it joins the residual stream.
        stream_norms: norms of the residual stream itself, one after each sub-layer has joined it, as of BERT.
        factor: path of what both sub-layers' outputs are multiplied by before they join the residual stream.
        factors: further numbers of that kind, each of one place.
        own_attention: in some release of transformers attention does not go through its `AttentionInterface`, but is
            softmax(q·k/√head_dim + bias + mask), with `attention_mask` and, where `alibi`, `alibi` among the attention
            module's keyword arguments; where `relative_bias`, softmax(q·k + bias + mask).
        alibi: see `own_attention`.
        relative_bias: see `own_attention`; T5's bias of relative positions.
        softcap: logits are capped, which SDPA cannot do: the row knows of it, and no other reason not to use SDPA.
        scaled_queries: queries are divided by √head_dim before they enter the interface.
        temperature: a factor of queries, if any.
        latent: of latent attention, where its queries and keys come from.
        sinks: each head has a logit beside those of the keys, which the attention function receives as `s_aux`.
        feed_forward_gate: module whose output's sigmoid, a number for each token, the feed-forward's is multiplied by.
        experts: path of the fused experts, where the feed-forward is a mixture. Neuron e·width + k of a projection is
            neuron k of expert e.
        scaled_inputs: experts receive all tokens times their shares, [experts·tokens, hidden], 0 of tokens that are not
            theirs, and the outputs are added up.
    """

    blocks: str
    attention: str | None
    feed_forward: str | None
    projections: tuple[Projection, ...]
    head_dim: str
    activation: str | None
    gating: Literal["product", "offset", "clamped"] = "product"
    attention_output: str | None = None
    name: str = "{n}"
    having: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    rotation: Rotation | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    attention_norm: Norm | None = None
    feed_forward_norm: Norm | None = None
    stream_norms: tuple[str, ...] = ()
    factor: str | None = None
    factors: Factors = Factors()
    own_attention: bool = False
    alibi: bool = False
    relative_bias: bool = False
    softcap: bool = False
    scaled_queries: bool = False
    temperature: Temperature | None = None
    latent: Latent | None = None
    sinks: bool = False
    feed_forward_gate: str | None = None
    experts: str | None = None
    scaled_inputs: bool = False

    @property
    def head_gates(self) -> bool:
        """Whether each head's output is multiplied by the sigmoid of rows of its own beside its query's."""
        return any(projection.fused == "gated" for projection in self.projections)


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
        masked: it fills in masked tokens: an encoder, whose attention sees both sides.
        exact: of a row that was probed (`plnd.accept_family`), the projections that were held to brute force on the
            twin of the model at hand; None for rows of the table, which the test suite holds to it.
    """

    name: str
    model_types: tuple[str, ...]
    stacks: tuple[Stack, ...]
    requires: Mapping[str, Any] = field(default_factory=dict)
    final: tuple[str, ...] = ("norm",)
    masked: bool = False
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
        stack = next((stack for stack in self.stacks if stack.attention), self.stacks[0])
        if self.masked:
            yield "fills in masked tokens"
        if any(".cross" in stack.name for stack in self.stacks):
            yield "encoder, decoder and cross-attention"
        for module, both in {path: s.attention is not None for s in self.stacks for path in s.beside}.items():
            where = "beside attention" if both else "in the place of attention in some blocks"
            yield f"{module.replace('_', ' ')} {where}"
        if stack.latent:
            yield "latent attention"
        fused = {p.module: p.fused for s in self.stacks for p in s.projections if p.fused and not s.experts}
        for module, how in fused.items():
            if how != "latent":
                yield f"{module.rpartition('.')[2]} fused ({how.replace('_', ' ')})"
        if any(s.experts for s in self.stacks):
            dense = any(s.feed_forward and not s.experts and s.name == stack.name for s in self.stacks)
            yield "mixture of experts" + (" in some blocks" if dense else "")
        elif not any(p.name == "gate_proj" for p in stack.projections):
            yield "ungated"
        if any(s.name.endswith(".shared") for s in self.stacks):
            yield "shared experts"
        if stack.gating != "product":
            yield f"{stack.gating} gating"
        if stack.rotation:
            yield f"rotary ({stack.rotation.pairs})"
        if stack.temperature:
            yield "queries scaled by position"
        if stack.sinks:
            yield "attention sinks"
        if stack.alibi:
            yield "ALiBi"
        if stack.query_norm:
            after = ", after rotation" if stack.query_norm.turned else ""
            yield f"QK-norm ({'whole width' if stack.query_norm.whole else 'per head'}{after})"
        if stack.attention_norm:
            yield "post-norms"
        if stack.stream_norms:
            yield "norms of the residual stream"
        for name in ("k_proj", "v_proj"):
            without = [not any(p.name == name for p in s.projections) for s in self.stacks if s.attention]
            if any(without):
                yield f"{name} not measured" + ("" if all(without) else " in some blocks")
        if stack.factor:
            yield stack.factor.replace("_", " ")
        if stack.factors != Factors():
            yield "multipliers"
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
_WHOLE_NORMS: dict[str, Any] = {
    "query_norm": Norm("self_attn.q_norm", whole=True),
    "key_norm": Norm("self_attn.k_norm", whole=True),
}
_OLMO_NORMS: dict[str, Any] = {
    **_WHOLE_NORMS,
    "attention_norm": Norm("post_attention_layernorm"),
    "feed_forward_norm": Norm("post_feedforward_layernorm"),
}
_TURNED_NORMS: dict[str, Any] = {
    "query_norm": Norm("self_attn.query_layernorm", turned=True),
    "key_norm": Norm("self_attn.key_layernorm", turned=True),
}
_QWEN_SHARED: dict[str, Any] = {"shared": "mlp.shared_expert", "gate": "mlp.shared_expert_gate"}
_NEIGHBOURS = Rotation("neighbours", given="twice")
_WHERE_SLIDING = Rotation(when="self_attn.is_sliding", window="self_attn.sliding_window")
_UNGATED = replace(_LLAMA, projections=(*_LLAMA.projections[:4], *_LLAMA.projections[5:]))
_FUSED_GATE = replace(  # Phi-3's names, which GLM shares
    _LLAMA,
    projections=(
        *_LLAMA.projections[:4],
        Projection("gate_proj", "mlp.gate_up_proj", "halves"),
        Projection("up_proj", "mlp.gate_up_proj", "halves"),
        Projection("down_proj", "mlp.down_proj"),
    ),
    activation="mlp.activation_fn",
)


def _mixed(
    of: Stack, *, mixture: str = "mlp", shared: str | None = "mlp.shared_experts", gate: str | None = None
) -> tuple[Stack, ...]:
    """Mixtures in some blocks, with experts that all tokens go through if any, and dense feed-forwards in others."""
    kinds = (replace(_experts(mixture, of), having=(*of.having, f"{mixture}.experts")), of)
    return kinds if shared is None else (*kinds, _shared(shared, gate, of))


_GATED_QUERIES = replace(
    _LLAMA,
    projections=(Projection("q_proj", "self_attn.q_proj", "gated"), *_LLAMA.projections[1:]),
    query_norm=Norm("self_attn.q_norm", eps="eps", offset=1.0),
    key_norm=Norm("self_attn.k_norm", eps="eps", offset=1.0),
)


_LFM2 = replace(
    _LLAMA,
    feed_forward="feed_forward",
    projections=_projections(
        *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
        *(f"feed_forward.{name}" for name in ("w1", "w3", "w2")),
    ),
    activation="torch.nn.functional.silu",
    query_norm=Norm("self_attn.q_layernorm"),
    key_norm=Norm("self_attn.k_layernorm"),
)
_JAMBA = replace(
    _LLAMA,
    feed_forward="feed_forward",
    projections=_projections(
        *(f"self_attn.{name}" for name in ATTENTION_PROJECTIONS), *(f"feed_forward.{name}" for name in PROJECTIONS[4:])
    ),
    activation="feed_forward.act_fn",
    rotation=None,
)


def _latent(*, queries: str, of: Stack = _LLAMA) -> Stack:
    """DeepSeek's names of latent attention, where a module of this name makes queries."""
    return replace(
        of,
        projections=(
            Projection("q_proj", f"self_attn.{queries}"),
            Projection("k_proj", "self_attn.kv_b_proj", "latent"),
            Projection("v_proj", "self_attn.kv_b_proj", "latent"),
            *of.projections[3:],
        ),
        head_dim="self_attn.v_head_dim",
        having=(f"self_attn.{queries}",),
        latent=Latent(),
    )


def _latent_mixtures(**differences: Any) -> tuple[Stack, ...]:
    """Mixtures and dense feed-forwards behind latent attention, its queries made of a latent vector too or not."""
    both = [replace(_latent(queries=name), **differences) for name in ("q_b_proj", "q_proj")]
    return (*_mixed(both[0]), *_mixed(both[1], shared=None))


_YARN_TEMPERATURE = Temperature(
    "self_attn.config.rope_parameters.llama_4_scaling_beta",
    "self_attn.config.rope_parameters.original_max_position_embeddings",
)


def like_llama(model_type: str, *more: str, of: Stack = _LLAMA, **differences: Any) -> Family:
    """A row for models whose modules are named as Hugging Face Llama names them, but for the differences.

    Args:
        model_type: names the row too.
        more: further model types of which all the same holds.
        of: what Llama's modules are replaced by.
        differences: fields of `Stack`, `requires`, `final` and `masked`.
    """
    about = {name: differences.pop(name) for name in ("requires", "final", "masked") if name in differences}
    return Family(model_type, (model_type, *more), (replace(of, **differences),), **about)


def _shared(path: str = "mlp.shared_experts", gate: str | None = None, of: Stack = _LLAMA) -> Stack:
    """The experts of a mixture that all tokens go through, at a path below each block that has some."""
    names = ("gate_proj", "up_proj", "down_proj")
    return replace(
        of,
        name="{n}.shared",
        attention=None,
        rotation=None,
        query_norm=None,
        key_norm=None,
        latent=None,
        temperature=None,
        projections=tuple(Projection(name, f"{path}.{name}") for name in names),
        activation=f"{path}.act_fn",
        feed_forward_gate=gate,
        having=(path,),
        beside=(),
    )


def _after(kind: str, of: Stack) -> Stack:
    """The same with another module, which has no neurons, in the place of attention."""
    return replace(
        of,
        attention=None,
        rotation=None,
        query_norm=None,
        key_norm=None,
        latent=None,
        temperature=None,
        attention_norm=None,
        projections=tuple(p for p in of.projections if p.name not in ATTENTION_PROJECTIONS),
        having=(kind, *of.having),
        beside=(kind,),
    )


def _hybrid(kind: str, stacks: tuple[Stack, ...]) -> tuple[Stack, ...]:
    """The same, each kind of block also `_after` a module in the place of attention."""
    return (*(_after(kind, stack) for stack in stacks if stack.attention), *stacks)


def _experts(mixture: str = "mlp", of: Stack = _LLAMA) -> Stack:
    """A mixture of experts that transformers fuses, below a module of each block."""
    path = f"{mixture}.experts"
    return replace(
        of,
        feed_forward=mixture,
        projections=(
            *of.projections[:4],
            Projection("gate_proj", path, "halves", "gate_up_proj"),
            Projection("up_proj", path, "halves", "gate_up_proj"),
            Projection("down_proj", path, None, "down_proj"),
        ),
        activation=f"{path}.act_fn",
        experts=path,
    )


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


_GPT2 = Stack(
    blocks="h",
    attention="attn",
    feed_forward="mlp",
    projections=_projections(*["attn.c_attn"] * 3, "attn.c_proj", "mlp.c_fc", "mlp.c_proj", qkv="stacked"),
    head_dim="attn.head_dim",
    activation="mlp.act",
)
_MODERNBERT = Stack(
    blocks="layers",
    attention="attn",
    feed_forward="mlp",
    projections=(
        *_projections(*["attn.Wqkv"] * 3, "attn.Wo", qkv="stacked"),
        Projection("gate_proj", "mlp.Wi", "halves"),
        Projection("up_proj", "mlp.Wi", "halves"),
        Projection("down_proj", "mlp.Wo"),
    ),
    head_dim="attn.head_dim",
    activation="mlp.act",
    rotation=Rotation(),
)
_LLAMA4 = replace(
    _LLAMA,
    feed_forward="feed_forward",
    projections=(
        *_LLAMA.projections[:4],
        *(Projection(name, f"feed_forward.{name}") for name in PROJECTIONS[4:]),
    ),
    activation="feed_forward.activation_fn",
    rotation=Rotation("neighbours", given="complex", when="self_attn.use_rope"),
    temperature=Temperature(
        "self_attn.attn_scale",
        "self_attn.floor_scale",
        first=1,
        when="self_attn.attn_temperature_tuning",
        unrotated=True,
    ),
)
_LLAMA4_EXPERTS = replace(
    _LLAMA4,
    projections=(
        *_LLAMA.projections[:4],
        Projection("gate_proj", "feed_forward.experts", "halves", "gate_up_proj", transposed=True),
        Projection("up_proj", "feed_forward.experts", "halves", "gate_up_proj", transposed=True),
        Projection("down_proj", "feed_forward.experts", None, "down_proj", transposed=True),
    ),
    activation="feed_forward.experts.act_fn",
    experts="feed_forward.experts",
    scaled_inputs=True,
    having=("feed_forward.experts",),
)
_LLAMA4_NORMS: dict[str, Any] = {
    name: Norm("self_attn.qk_norm", eps="eps", turned=True, weight=False) for name in ("query_norm", "key_norm")
}
_BERT = Stack(
    blocks="encoder.layer",
    attention="attention.self",
    attention_output="attention.output.dense",
    feed_forward="output.dense",
    projections=_projections(
        *(f"attention.self.{name}" for name in ("query", "key", "value")),
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ),
    head_dim="attention.self.attention_head_size",
    activation="intermediate.intermediate_act_fn",
    stream_norms=("attention.output.LayerNorm", "output.LayerNorm"),
)
_GRANITE_SHARED: dict[str, Any] = {
    "feed_forward": "shared_mlp",
    "projections": (
        Projection("gate_proj", "shared_mlp.input_linear", "halves"),
        Projection("up_proj", "shared_mlp.input_linear", "halves"),
        Projection("down_proj", "shared_mlp.output_linear"),
    ),
    "activation": "shared_mlp.activation",
    "factor": "residual_multiplier",
}
_GRANITE_MIXTURE = replace(_experts("block_sparse_moe"), factor="residual_multiplier", having=("block_sparse_moe",))
_GRANITE_DENSE = replace(
    _LLAMA, **{**_GRANITE_SHARED, "projections": (*_LLAMA.projections[:4], *_GRANITE_SHARED["projections"])}
)

_GEMMA4_QUERIES = replace(
    _LLAMA,
    projections=tuple(p for p in _LLAMA.projections if p.name not in ("k_proj", "v_proj")),
    query_norm=Norm("self_attn.q_norm", eps="eps"),
    attention_norm=Norm("post_attention_layernorm", eps="eps"),
    feed_forward_norm=Norm("post_feedforward_layernorm", eps="eps"),
    factors=Factors(stream="layer_scalar"),
)


def _gemma4() -> tuple[Stack, ...]:
    """Blocks whose keys are their own, with values or without (one projection is both, or they are another block's).

    Values are normed, so that a row of `v_proj` moves its head's other channels: it has no closed form at this price.
    """
    keys = replace(
        _GEMMA4_QUERIES,
        projections=tuple(p for p in _LLAMA.projections if p.name != "v_proj"),
        key_norm=Norm("self_attn.k_norm", eps="eps"),
        having=("self_attn.k_proj", "self_attn.v_proj"),
    )
    kinds = (keys, _GEMMA4_QUERIES)
    path = "post_per_layer_input_norm"
    return (*(replace(kind, beside=(path,), having=(*kind.having, path)) for kind in kinds), *kinds)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        like_llama("llama", "gemma", "ministral", "seed_oss"),
        like_llama("mistral"),
        like_llama("qwen2"),
        like_llama("qwen3", **_HEAD_NORMS),
        like_llama("gemma2", softcap=True, **_GEMMA_POST_NORMS),
        like_llama("vaultgemma", softcap=True),
        like_llama(
            "gemma3_text",
            query_norm=Norm("self_attn.q_norm", eps="eps", offset=1.0),
            key_norm=Norm("self_attn.k_norm", eps="eps", offset=1.0),
            **_GEMMA_POST_NORMS,
        ),
        Family("gemma4_text", ("gemma4_text", "gemma4_unified_text"), _gemma4(), requires={"enable_moe_block": False}),
        like_llama("olmo", requires={"clip_qkv": None}),
        like_llama("olmo2", "olmo3", **_OLMO_NORMS),
        like_llama("granite", factor="residual_multiplier"),
        like_llama("smollm3", rotation=Rotation(when="self_attn.use_rope")),
        like_llama("cohere", rotation=Rotation("neighbours"), requires={"use_qk_norm": False}),
        like_llama("cohere2", rotation=Rotation("neighbours", when="self_attn.sliding_window")),
        like_llama("ernie4_5", "helium", rotation=_NEIGHBOURS),
        like_llama(
            "exaone4",
            rotation=_WHERE_SLIDING,
            attention_norm=Norm("post_attention_layernorm"),
            feed_forward_norm=Norm("post_feedforward_layernorm"),
            **_HEAD_NORMS,
        ),
        like_llama(
            "hyperclovax",
            attention_norm=Norm("post_norm1"),
            feed_forward_norm=Norm("post_norm2"),
            requires={"use_post_norm": True, "residual_multiplier": 1.0},
        ),
        like_llama("stablelm", requires={"qk_layernorm": False}),
        like_llama("nemotron", "arcee", "jais2", of=_UNGATED),
        like_llama("apertus", of=_UNGATED, gating="offset", **_HEAD_NORMS),
        like_llama(
            "starcoder2",
            projections=(
                *_LLAMA.projections[:4],
                Projection("up_proj", "mlp.c_fc"),
                Projection("down_proj", "mlp.c_proj"),
            ),
            activation="mlp.act",
        ),
        like_llama(
            "phi",
            projections=_projections(
                *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "dense")), "mlp.fc1", "mlp.fc2"
            ),
            activation="mlp.activation_fn",
            requires={"qk_layernorm": False},
            final=("final_layernorm",),
        ),
        like_llama(
            "phi3",
            of=_FUSED_GATE,
            projections=(
                *_projections(*["self_attn.qkv_proj"] * 3, "self_attn.o_proj", qkv="stacked"),
                *_FUSED_GATE.projections[4:],
            ),
        ),
        like_llama("glm", of=_FUSED_GATE, rotation=_NEIGHBOURS),
        like_llama(
            "glm4",
            of=_FUSED_GATE,
            rotation=_NEIGHBOURS,
            attention_norm=Norm("post_self_attn_layernorm"),
            feed_forward_norm=Norm("post_mlp_layernorm"),
        ),
        like_llama("mixtral", "phimoe", of=_experts()),
        like_llama("qwen3_moe", "mellum", of=_experts(), **_HEAD_NORMS),
        like_llama("olmoe", "minimax_m2", of=_experts(), requires={"clip_qkv": None}, **_WHOLE_NORMS),
        like_llama("granitemoe", of=_experts("block_sparse_moe"), factor="residual_multiplier"),
        Family(
            "deepseek_v2",
            ("deepseek_v2",),
            _latent_mixtures(rotation=Rotation("neighbours", given="complex")),
        ),
        Family(
            "deepseek_v3",
            ("deepseek_v3", "glm4_moe_lite", "youtu"),
            _latent_mixtures(rotation=Rotation("neighbours", given="twice", apart=True)),
            requires={"rope_interleave": True},
        ),
        Family(
            "mistral4",
            ("mistral4",),
            _latent_mixtures(rotation=Rotation("neighbours", given="twice", apart=True), temperature=_YARN_TEMPERATURE),
            requires={"rope_interleave": True},
        ),
        like_llama("ministral3", temperature=_YARN_TEMPERATURE),
        like_llama("hunyuan_v1_dense", **_TURNED_NORMS),
        Family(
            "hunyuan_v1_moe",
            ("hunyuan_v1_moe",),
            _mixed(replace(_LLAMA, **_TURNED_NORMS), shared="mlp.shared_mlp"),
        ),
        Family("qwen2_moe", ("qwen2_moe",), _mixed(_LLAMA, **_QWEN_SHARED)),
        Family("ernie4_5_moe", ("ernie4_5_moe",), _mixed(replace(_LLAMA, rotation=_NEIGHBOURS))),
        Family(
            "glm4_moe",
            ("glm4_moe", "dots1", "hy_v3", "solar_open"),
            (*_mixed(replace(_LLAMA, **_HEAD_NORMS, having=("self_attn.q_norm",))), *_mixed(_LLAMA, shared=None)),
        ),
        Family(
            "exaone_moe",
            ("exaone_moe",),
            _mixed(replace(_LLAMA, rotation=_WHERE_SLIDING, **_HEAD_NORMS)),
        ),
        Family(
            "granitemoeshared",
            ("granitemoeshared",),
            (
                replace(_GRANITE_MIXTURE, having=()),
                replace(_shared("shared_mlp"), **_GRANITE_SHARED),
            ),
        ),
        Family(
            "gpt_oss",
            ("gpt_oss",),
            (
                replace(
                    _experts(),
                    projections=(
                        *_LLAMA.projections[:4],
                        Projection("gate_proj", "mlp.experts", "alternating", "gate_up_proj", transposed=True),
                        Projection("up_proj", "mlp.experts", "alternating", "gate_up_proj", transposed=True),
                        Projection("down_proj", "mlp.experts", None, "down_proj", transposed=True),
                    ),
                    rotation=Rotation(given="once"),
                    sinks=True,
                    activation="mlp.experts",
                    gating="clamped",
                ),
            ),
        ),
        Family(
            "llama4_text",
            ("llama4_text",),
            (
                *(
                    replace(kind, **_LLAMA4_NORMS, having=(*kind.having, "self_attn.qk_norm"))
                    for kind in (_LLAMA4_EXPERTS, _LLAMA4)
                ),
                _LLAMA4_EXPERTS,
                _LLAMA4,
                replace(
                    _shared("feed_forward.shared_expert", of=_LLAMA4),
                    activation="feed_forward.shared_expert.activation_fn",
                ),
            ),
        ),
        Family("qwen3_5_text", ("qwen3_5_text",), _hybrid("linear_attn", (_GATED_QUERIES,))),
        Family(
            "qwen3_next",
            ("qwen3_next", "qwen3_5_moe_text"),
            _hybrid("linear_attn", _mixed(_GATED_QUERIES, **_QWEN_SHARED)),
        ),
        Family("lfm2", ("lfm2",), _hybrid("conv", (_LFM2,)), final=("embedding_norm",)),
        Family(
            "lfm2_moe",
            ("lfm2_moe",),
            _hybrid("conv", _mixed(_LFM2, mixture="feed_forward", shared=None)),
            final=("embedding_norm",),
        ),
        Family(
            "bamba",
            ("bamba",),
            _hybrid("mamba", (replace(_JAMBA, rotation=Rotation()),)),
            final=("final_layernorm",),
        ),
        like_llama(
            "falcon_h1",
            of=_JAMBA,
            rotation=Rotation(),
            feed_forward="feed_forward.down_proj",
            beside=("mamba",),
            factors=Factors(
                attention="attn_out_multiplier",
                feed_forward="feed_forward.down_multiplier",
                beside="ssm_out_multiplier",
                key="self_attn.key_multiplier",
                gate="feed_forward.gate_multiplier",
            ),
            final=("final_layernorm",),
        ),
        Family(
            "granitemoehybrid",
            ("granitemoehybrid",),
            (
                *_hybrid("mamba", (_GRANITE_MIXTURE, _GRANITE_DENSE)),
                replace(_shared("shared_mlp"), **{**_GRANITE_SHARED, "having": ("block_sparse_moe",)}),
            ),
        ),
        Family(
            "jamba",
            ("jamba",),
            _hybrid("mamba", _mixed(_JAMBA, mixture="feed_forward", shared=None)),
            final=("final_layernorm",),
        ),
        Family(
            "gpt2",
            ("gpt2",),
            (_GPT2,),
            requires={"add_cross_attention": False},
            final=("ln_f",),
        ),
        Family(
            "gpt_bigcode",
            ("gpt_bigcode",),
            (_GPT2,),
            requires={"multi_query": True, "add_cross_attention": False},
            final=("ln_f",),
        ),
        Family(
            "cohere2_moe",
            ("cohere2_moe",),
            _mixed(replace(_LLAMA, rotation=Rotation("neighbours", when="self_attn.sliding_window"))),
            requires={"shared_expert_combination_strategy": "sum"},
        ),
        like_llama(
            "modernbert-decoder",
            of=_MODERNBERT,
            projections=(
                *_projections(*(f"attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "Wo"))),
                *_MODERNBERT.projections[4:],
            ),
            final=("final_norm",),
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
        like_llama("modernbert", of=_MODERNBERT, masked=True, final=("final_norm",)),
        like_llama("eurobert", masked=True),
        Family(
            "bert",
            ("bert", "roberta", "xlm-roberta", "camembert"),
            (_BERT,),
            requires={"is_decoder": False, "add_cross_attention": False, "chunk_size_feed_forward": 0},
            final=(),
            masked=True,
        ),
        _t5("t5", ("t5", "mt5", "umt5"), "wi", "wo"),
        _t5("t5_gated", ("t5", "mt5", "umt5"), "wi_0", "wi_1", "wo"),
    )
}
