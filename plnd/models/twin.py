"""A tiny random twin of a model: its configuration with small sizes, and a model of it with random weights.

Sizes are replaced by name (what is a width, a number of heads, a rank, a window), everything else is kept: switches,
activations, factors, positions, kinds of blocks. What belongs together stays together: equal sizes stay equal, heads
are still shared by as many groups as there can be, rotary sections still fill a head, lists of layers keep one entry
for each block.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from plnd.errors import FamilyError

VOCABULARY = 97
_HIDDEN = re.compile(r"^(hidden_size|d_model|n_embd|emb_dim|embedding_dim|dim|dim_model|model_dim|dim_model_base)$")
_WIDTH = re.compile(r"(intermediate_size\w*|ffn_dim|ffn_hidden_size|d_?ff|dim_ff|n_inner|d_inner|feed_forward_size)$")
_HEADS = re.compile(r"^(swa_|decoder_|encoder_)?(num_)?(n_|attention_)?(heads|head|query_groups)(_per_layer)?$")
_KEY_HEADS = re.compile(r"(num_key_value_heads|kv_n_heads|n_kv_heads|num_kv_heads|multi_query_group_num)$")
_HEAD_DIM = re.compile(r"^((swa_|global_|attention_)?head_dim|dim_head|d_head|kv_channels)$")
_WINDOW = re.compile(r"^(sliding_window(_size)?|attention_window_size|window_size|attention_chunk_size|keep_window_size"
                     r"|local_attention|index_topk|local_attention_window_len|local_window_size)$")  # fmt: skip
_EXPERTS = re.compile(r"^(num_(local_)?experts|n_routed_experts|moe_num_experts|zero_expert_num)$")
_ROUTED = re.compile(r"^(num_experts_per_tok(en)?|moe_topk|moe_k|moe_top_k|top_k_experts)$")
_POSITIONS = re.compile(r"^(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_target_positions|model_max_length"
                        r"|context_length)$")  # fmt: skip
_LAYERS = re.compile(r"^(num_hidden_layers|n_layers?|num_layers|decoder_layers|num_decoder_layers)$")
_LAYER_LIST = re.compile(r"layer|idxs|indices|block")
_FIXED = {
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "o_lora_rank": 8,
    "o_groups": 2,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "mamba_d_state": 8,
    "state_size": 8,
    "ssm_state_size": 8,
    "mamba_dt_rank": 4,
    "time_step_rank": 4,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "rotary_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_heads": 2,
    "linear_head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "block_multiple_of": 4,
    "router_hidden_size": 8,
    "adapter_rank": 4,
    "gated_norm_rank": 4,
    "hc_lowrank": 8,
    "d_rel": 4,
}
"""Sizes that hang on no other."""
_IRRELEVANT = frozenset(
    "_name_or_path architectures auto_map dtype torch_dtype transformers_version quantization_config id2label label2id"
    " _commit_hash _attn_implementation use_cache return_dict problem_type tokenizer_class initializer_range".split()
)
"""Fields that say nothing of what a block computes."""


def twin_config(config: Any, blocks: int | None = None, *, square: bool = False) -> Any:
    """The text model's configuration with small sizes, float64; the given one stays as it is.

    Args:
        config: of transformers; of a model that also sees or hears, its language model's is taken.
        blocks: how many of the first blocks to keep; all by default.
        square: whether the heads together must be as wide as the hidden states: some classes take it for granted.

    Raises:
        FamilyError: if transformers refuses the result.
    """
    config = text_config(config)
    fields = _Sizes(config.to_dict(), square).small()
    count = depth(fields)
    if blocks is not None and count is not None:
        fields = _truncated(fields, count, blocks)
    fields.pop("quantization_config", None)
    fields.pop("torch_dtype", None)
    fields["dtype"] = "float64"
    try:
        small = type(config).from_dict(fields)
    except Exception as error:  # validators raise their own
        raise no_twin(config, error) from None
    small.name_or_path = config.name_or_path  # where code that comes with a model is looked for
    return small


def text_config(config: Any) -> Any:
    """The configuration of the language model.

    Raises:
        FamilyError: if there are several.
    """
    try:
        return config.get_text_config()
    except ValueError as error:
        raise no_twin(config, error) from None


def fingerprint(config: Any) -> str:
    """A digest of everything that a configuration says of its blocks, apart from sizes and the number of blocks' names.

    Two models of one fingerprint have the same twin.

    Raises:
        FamilyError: if no twin's configuration can be made.
    """
    fields = {name: value for name, value in twin_config(config).to_dict().items() if name not in _IRRELEVANT}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()


def no_twin(config: Any, reason: object) -> FamilyError:
    """The error of a configuration of which no tiny model can be made."""
    first = next((line.strip() for line in str(reason).splitlines() if line.strip()), type(reason).__name__)
    return FamilyError(
        f"model family {getattr(config, 'model_type', config)!r}: no tiny twin can be built of its configuration"
        f" ({first:.200}), so nothing can be proven of it; write its row by hand (docs/families.md)"
    )


def depth(fields: Mapping[str, Any]) -> int | None:
    """The number of blocks that a configuration's fields give."""
    return next((value for name, value in fields.items() if _LAYERS.match(name) and isinstance(value, int)), None)


def _truncated(fields: dict[str, Any], count: int, blocks: int) -> dict[str, Any]:
    """The fields of a configuration with the first `blocks` of its `count` blocks."""

    def cut(name: str, value: Any) -> Any:
        if _LAYERS.match(name) and value == count:
            return blocks
        if isinstance(value, (list, str)) and len(value) == count:
            return value[:blocks]
        if isinstance(value, list) and _LAYER_LIST.search(name) and all(type(x) is int for x in value):
            return [x for x in value if x < blocks]
        if isinstance(value, dict) and value and all(str(key).isdigit() for key in value):
            return {key: inner for key, inner in value.items() if int(key) < blocks}
        return value

    return {name: cut(name, value) for name, value in fields.items()}


class _Sizes:
    """Small sizes for the fields of one configuration.

    Args:
        fields: as its `to_dict` gives them.
        square: whether the heads together are as wide as the hidden states, where a configuration leaves both free.
    """

    def __init__(self, fields: dict[str, Any], square: bool = False) -> None:
        self.fields = {name: value for name, value in fields.items() if name not in ("id2label", "label2id")}
        self.head_dims = self._ranked(_HEAD_DIM, start=8, step=8)
        self.widths = self._ranked(_WIDTH, start=20, step=8)
        self.queries = self._ranked(_HEADS, start=4, step=2)
        self.hidden = 24 if self.head_dims and not square else 32
        if "qk_rope_head_dim" in fields and isinstance(fields.get("head_dim"), int):
            parts = {fields["qk_rope_head_dim"]: 4}
            if isinstance(fields.get("qk_nope_head_dim"), int):
                parts[fields["qk_nope_head_dim"] + fields["qk_rope_head_dim"]] = 12
            self.head_dims.update(parts)

    def small(self) -> dict[str, Any]:
        """The fields with small sizes."""
        return self._of(self.fields)

    def _of(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._value(name, value, fields) for name, value in fields.items()}

    def _ranked(self, pattern: re.Pattern, start: int, step: int) -> dict[int, int]:
        """Every size of one kind to a small one, in the same order: start, start + step, …"""
        found = sorted(
            {n for name, value in _leaves(self.fields) if pattern.search(str(name)) for n in _numbers(value)}
        )
        return {size: start + step * rank for rank, size in enumerate(found)}

    def _value(self, name: str, value: Any, fields: Mapping[str, Any]) -> Any:
        if name in ("rope_parameters", "rope_scaling"):
            return self._positions(value)
        if isinstance(value, Mapping) and name not in _IRRELEVANT:
            return self._of(value)
        if isinstance(value, list) and (_HEADS.match(name) or _KEY_HEADS.search(name) or _WIDTH.search(name)):
            return [self._value(name, one, fields) for one in value]
        if name.endswith("token_id"):
            return _token(name, value)
        if value is None and name == "head_dim" and self.hidden == 32:
            return 8  # what a class that reads it expects there
        if type(value) is not int:
            return value
        return self._number(name, value, fields)

    def _number(self, name: str, value: int, fields: Mapping[str, Any]) -> int:
        if name in _FIXED:
            return min(_FIXED[name], value)
        if "vocab" in name:
            return min(VOCABULARY, value)
        if _KEY_HEADS.search(name):
            return self._key_heads(name, value)
        for pattern, sizes in ((_HEADS, self.queries), (_HEAD_DIM, self.head_dims), (_WIDTH, self.widths)):
            if pattern.search(name) and value in sizes:
                return sizes[value]
        for pattern, most in ((_WINDOW, 4), (_EXPERTS, 4), (_ROUTED, 2), (_POSITIONS, 4096)):
            if pattern.match(name):
                return min(value, most)
        return self._derived(name, value, fields)

    def _key_heads(self, name: str, value: int) -> int:
        """As many as there are query heads, or one, or something between."""
        own = next((n for key, v in _leaves(self.fields) if key == name.replace("key_value", "attention")
                    for n in _numbers(v)), None)  # fmt: skip
        heads = own or next(iter(self.queries), value)
        if value in (0, 1):
            return value
        return self.queries.get(heads, 4) if value == heads else 2

    def _derived(self, name: str, value: int, fields: Mapping[str, Any]) -> int:
        """Sizes that are made of others."""
        inner = int(fields.get("mamba_expand", fields.get("expand", 2)) * self.hidden)
        groups = fields.get("n_group") or fields.get("num_expert_group") or 1
        ratio = value // max(1, fields.get("linear_num_key_heads") or value or 1)
        sizes = {
            "qk_head_dim": 12,
            "linear_num_value_heads": 2 * min(2, max(1, ratio)),
            "mamba_d_head": 8,
            "mamba_head_dim": 8,
            "mamba_headdim": 8,
            "mamba_n_heads": inner // 8,
            "mamba_num_heads": inner // 8,
            "n_mamba_heads": min(value, 2) if "mamba_headdim" not in fields else inner // 8,
            "mamba_d_ssm": inner,
            "n_group": min(value, 2),
            "num_expert_group": min(value, 2),
            "topk_group": 1 if groups > 1 else min(value, 1),
            "n_groups": min(value, 2),
            "mamba_n_groups": min(value, 2),
            "mamba_ngroups": min(value, 2),
            "lru_width": self.hidden,
            "attention_hidden_size": self.hidden * (2 if "mamba_expand" in fields else 1),
        }
        if _HIDDEN.match(name):
            return self.hidden
        if name in sizes:
            return sizes[name]
        hidden = next((v for key, v in self.fields.items() if _HIDDEN.match(key)), None)
        return self.hidden if value == hidden and value > 64 else value

    def _positions(self, value: Any) -> Any:
        """Rotary parameters, or those of each kind of block."""
        if not isinstance(value, Mapping):
            return value
        if any(isinstance(inner, Mapping) for inner in value.values()):
            return {name: self._positions(inner) for name, inner in value.items()}
        share = value.get("partial_rotary_factor") or self.fields.get("partial_rotary_factor") or 1.0
        width = 4 if "qk_rope_head_dim" in self.fields else next(iter(self.head_dims.values()), 8)
        half = int(width * share) // 2
        changed = dict(value)
        for name in ("short_factor", "long_factor"):
            if isinstance(value.get(name), list):
                changed[name] = value[name][:half]
        if sections := value.get("mrope_section"):
            each = half // len(sections)
            changed["mrope_section"] = [half - each * (len(sections) - 1), *[each] * (len(sections) - 1)]
        return changed


def _leaves(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every field, those of inner configurations too."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield name, value


def _numbers(value: Any) -> Iterable[int]:
    return [n for n in (value if isinstance(value, list) else [value]) if type(n) is int and n > 0]


def _token(name: str, value: Any) -> Any:
    """A token's number in the small vocabulary."""
    if isinstance(value, list):
        return [_token(name, one) for one in value]
    known = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return known.get(name, 3) if isinstance(value, int) and value >= VOCABULARY else value
