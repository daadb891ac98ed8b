"""The causal types of transformers that have no row in the families table, and why: every one is here or there, and so
is every language model inside a type that also sees or hears.

A test holds this to the installed release (tests/plnd/models/test_unlisted.py), so that a new type announces itself. A
type that gets a row needs no entry here any more; one that stays counts for nothing, since the table comes first.
"""

from __future__ import annotations

from collections.abc import Iterator

from plnd.models.accepted import listed

LIKE_LLAMA = ("cwm", "internlm3", "iquestcoder")
"""Types whose blocks have Llama's modules and compute like them: bound as Llama, with a warning."""

LANGUAGE_MODELS = {
    "dots3_note": "dots3_note_text",
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
    "fuyu": "persimmon",
    "got_ocr2": "qwen2",
    "gpt-sw3": "gpt2",
    "llama4": "llama4_text",
    "moss_transcribe_diarize": "qwen3",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen4_exp": "qwen4_exp_text",
}
"""Types that hold a language model of another type, which is what counts."""

_BY_REASON = {
    "a probe finds all of it exact: no row yet": "biogpt exaone",
    "a probe finds all but queries and keys exact: no row yet": "gpt_neo granite_swa",
    "positions turn the other way than a row can say: all but queries and keys is exact by a probe": "nanochat",
    "queries and keys go through a LayerNorm of each head, of which rows know none: all but these is exact by a"
    " probe": "persimmon",
    "each block has one mixer, so that some have no neurons, and its experts have no gates: no row yet": "nemotron_h",
    "the decoder of a model with an encoder: no row for its cross-attention alone": (
        "bart bigbird_pegasus blenderbot blenderbot-small marian mbart musicgen musicgen_melody mvp pegasus "
        "plbart prophetnet trocr whisper"
    ),
    "an encoder of BERT's kind with something of its own (adapters, patterns of attention, streams): no row yet": (
        "bert-generation big_bird data2vec-text electra ernie git megatron-bert openai-gpt "
        "rembert roberta-prelayernorm roc_bert roformer xlm xlm-roberta-xl xlnet xmod"
    ),
    "a recurrent state, and no attention": "falcon_mamba mamba mamba2 rwkv xlstm",
    "a recurrent state or a convolution beside attention, or in its place": (
        "bailing_hybrid kimi_linear lara_mini lfm3 minimax "
        "olmo_hybrid qwen4_exp_text recurrent_gemma zamba zamba2 zaya"
    ),
    "latent attention to the tokens that an indexer beside it chooses: no row yet": (
        "axk2 deepseek_v32 dots3_note_text glm_moe_dsa"
    ),
    "several residual streams, which each sub-layer mixes": "deepseek_v4 hy_v4",
    "latent attention, and a factor or a norm before the residual stream: no row yet": "axk1 minicpm3",
    "two attention modules in each block": "longcat_flash",
    "each head's output is multiplied by a gate that comes of a projection of its own": "afmoe beam laguna",
    "sinks and other parts that rows can say, but together: no row yet": "flint granitemoe_swa",
    "values of another width than keys, and multiplied": "mimo_v2_flash",
    "attention to the blocks of tokens that an indexer beside it chooses: no row yet": "minimax_m3_vl_text",
    "of another release of transformers than the one that was read: no row yet": "dory sarvam_mla sarvam_moe",
    "which blocks rotate is said to them from outside": "cohere_compass_text",
    "a mixture whose experts are stored, or whose outputs are normed or weighted, in a way of its own": (
        "aria_text dbrx flex_olmo jetmoe kolibri1"
    ),
    "a norm inside a sub-layer, before its output projection, through which each neuron moves all others": (
        "bitnet diffllama"
    ),
    "attention in the model's own code, not through transformers' interface: no row recomputes it": (
        "codegen cpmant ctrl gpt_neox_japanese mpt reformer"
    ),
    "what a query may see is computed from values": "doge",
    "convolutions of keys and values, and positions that come of a projection of their own": (
        "inkling2_loop_text inkling2_text inkling_text"
    ),
    "all keys and values are those of the model that it drafts for": "gemma4_assistant gemma4_unified_assistant",
    "several residual streams, normed values, and gates that are cut off at a share of them": (
        "gemma3n_text"
    ),
    "more in a block than attention and feed-forward: it runs again": "hrm_text",
    "no single list of blocks of one language model": (
        "blt emu3 mllama moshi phi4_multimodal blip_text_model emu3_text_model evolla idefics kyutai_speech_to_text"
        " mllama_text_model pi0 pix2struct_text_model pp_formulanet_text t5_gemma_module t5gemma2_decoder udop"
    ),
    "a language model inside what sees or hears, of a form of its own: no row yet": (
        "chameleon cosmos3_edge_text deepseek_ocr2_text diffusion_gemma_text ernie4_5_vl_moe_text glm5_next_text"
        " kosmos_2_5_text_model kosmos_2_text_model mistral_large4_text molmo2_text muse_glimmer_text muse_spark_text"
        " step3p5 unlimited_ocr_text voxtral_realtime_text"
    ),
    "an activation that does not map 0 to 0": "apertus1p5_text",
}  # fmt: skip
REASONS = {name: reason for reason, names in _BY_REASON.items() for name in names.split()}
"""Type to why there is no row for it."""


def unlisted() -> Iterator[tuple[str, list[str]]]:
    """Every reason, and the types for which it holds."""
    for reason, names in _BY_REASON.items():
        if lacking := sorted(name for name in names.split() if not listed(name)):
            yield reason, lacking


def said_of(model_type: str) -> list[str]:
    """What the table and the lists here say of a causal type: one thing of each that is known."""
    if listed(model_type):
        return ["row"]
    lists = {"as Llama": LIKE_LLAMA, "by its language model": LANGUAGE_MODELS, "reason": REASONS}
    return [what for what, names in lists.items() if model_type in names]
