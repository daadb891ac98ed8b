"""Language models inside those that also see or hear: measured alone, and one mask for them and for text-only twins."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, __version__

from detecting import CONFIG, some_documents
from plnd.commands.main import main
from plnd.deactivation import deactivated
from plnd.demo_data import demo_model
from plnd.detection.run import detect
from plnd.errors import ModelMismatchError
from plnd.exchange.export import export
from plnd.logit_lens.lens import decode_tokens
from plnd.model_description import TEXT_TWINS, check_model
from plnd.models.layout import Layout, text_body
from plnd.models.loading import load_model, load_tokenizer, model_class
from plnd.neurons.neuron_set import NeuronSet
from plnd.probing.float64 import float64
from plnd.roles.parallel import Parallel
from plnd.roles.roles import find_roles
from tiny import EXPERTS, GEMMA, GEMMA4, GLM_EXPERTS, GROUPED, LINEAR, SHAPE, random_weights

DOCUMENTS = some_documents((9, 4))
TEXT: dict[str, Any] = {**SHAPE, **GROUPED, "hidden_size": 48}
EYES = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
)
QWEN_EYES = dict(depth=1, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=48, patch_size=14)
EARS = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_mel_bins=8,
    max_source_positions=16,
)  # fmt: skip


def turning(*sections: int, **more: Any) -> dict:
    """Rotary positions of text, height and width."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections), **more}}


WITH_EYES: dict[str, dict] = {
    "qwen3_vl": dict(
        text_config=TEXT | turning(2, 1, 1),
        vision_config=QWEN_EYES | dict(deepstack_visual_indexes=[0], num_position_embeddings=4),
    ),
    "qwen2_5_vl": dict(text_config=TEXT | turning(2, 1, 1), vision_config=QWEN_EYES | dict(fullatt_block_indexes=[0])),
    "mistral3": dict(text_config=TEXT | dict(model_type="mistral"), vision_config=EYES | dict(model_type="pixtral")),
    "smolvlm": dict(text_config=TEXT | dict(model_type="llama"), vision_config=EYES),
    "gemma3": dict(text_config=GEMMA, vision_config=EYES, mm_tokens_per_image=4),
    "gemma4": dict(
        text_config=GEMMA4, vision_config={**EYES, "num_key_value_heads": 2, "head_dim": 8}, audio_config=None
    ),
    "qwen3_5": dict(text_config=TEXT | LINEAR, vision_config=QWEN_EYES | dict(num_position_embeddings=4)),
    "voxtral": dict(text_config=TEXT | dict(model_type="llama"), audio_config=EARS),
}
"""Type to a configuration of a tiny model that also sees or hears."""
LEFT_ALONE = {
    **{"qwen3_vl": ["model.visual"], "qwen2_5_vl": ["model.visual"], "qwen3_5": []},  # transformers leaves its eyes out
    **{name: ["model.vision_tower", "model.multi_modal_projector"] for name in ("mistral3", "gemma3")},
    "gemma4": ["model.vision_tower", "model.embed_vision"],
    "smolvlm": ["model.vision_model", "model.connector"],
    "voxtral": ["model.audio_tower", "model.multi_modal_projector"],
}
TOWERS = {
    "glm4v_moe_text": GLM_EXPERTS | turning(1, 1, 0, partial_rotary_factor=0.5),
    **{name: turning(1, 1, 0, partial_rotary_factor=0.5) for name in ("glm4v_text", "glm_ocr_text")},
    **{name: {} for name in ("granite4_vision_text", "granite_docling_text")},
    "hunyuan_vl_text": turning(1, 1, 1, 1),
    **{name: EXPERTS | turning(2, 1, 1) for name in ("qwen3_vl_moe_text", "qwen3_omni_moe_text")},
}
"""What a tiny configuration of a text tower has beside `TEXT`; the others turn as Qwen's do."""
OWNERS = {"qwen2_5_omni_text": "qwen2_5_omni_thinker", "qwen3_omni_moe_text": "qwen3_omni_moe_thinker"}


def with_eyes(model_type: str, seed: int = 0) -> Any:
    """A tiny random model that also sees or hears, of the class that `plnd` loads it as."""
    config = CONFIG_MAPPING[model_type](**deepcopy(WITH_EYES[model_type]))
    torch.manual_seed(seed)
    return random_weights(model_type, model_class(config).from_config(config)).double()


def tower(model_type: str) -> Any:
    """The language model alone, tiny and random, by its class in transformers."""
    owner = OWNERS.get(model_type, model_type.rpartition("_")[0])
    if owner not in CONFIG_MAPPING:
        pytest.skip(f"transformers {__version__} has no {owner}")
    kind = type(CONFIG_MAPPING[owner]().get_text_config())
    config = kind(**deepcopy(TEXT | TOWERS.get(model_type, turning(2, 1, 1))))
    code = import_module(kind.__module__.replace("configuration_", "modeling_"))
    found = [one for name, one in vars(code).items() if name.endswith("TextModel") and one.config_class is kind]
    torch.manual_seed(0)
    return random_weights(model_type, found[0]._from_config(config, attn_implementation="sdpa"))


def twin_of(model: Any) -> Any:
    """The text-only model of the same weights, which have to be all that it has."""
    config = model.config.get_text_config()
    aside = ("model_type", "architectures", "dtype", "layer_types", "transformers_version")
    fields = {name: value for name, value in config.to_dict().items() if name not in aside}
    if config.model_type == "glm_ocr_text":
        fields["attention_bias"] = False  # what GLM-OCR has no switch for
    twin = AutoModelForCausalLM.from_config(CONFIG_MAPPING[TEXT_TWINS[config.model_type]](**fields)).eval()
    text_body(twin).load_state_dict(text_body(model).state_dict())
    return twin


@pytest.mark.parametrize(
    "name", [n if n == "qwen3_vl_text" else pytest.param(n, marks=pytest.mark.slow) for n in sorted(TEXT_TWINS)]
)
def test_towers_compute_as_their_twins(name):
    """A language model inside a larger one and its twin have the same parameters and give the same hidden states."""
    model = tower(name).double()
    twin = twin_of(model).double()
    for one in (model, twin):
        if "moe" in name:
            one.set_experts_implementation("eager")  # the default one has no float64
    with torch.no_grad(), float64():
        found, expected = (
            text_body(one)(input_ids=torch.arange(5, 20)[None], use_cache=False).last_hidden_state
            for one in (model, twin)
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [n if n == "qwen3_vl" else pytest.param(n, marks=pytest.mark.slow) for n in WITH_EYES])
def test_the_language_model_alone_is_measured(name):
    """Detection on a model that also sees or hears measures its text blocks, and says what it leaves alone."""
    model = with_eyes(name)
    layout = Layout(model)
    assert layout.left_alone == LEFT_ALONE[name]
    assert [block.name for block in layout.blocks] == (["0", "1", "2"] if name == "gemma4" else ["0", "1"])
    scores = detect(model, DOCUMENTS, CONFIG)
    neurons = scores.select(fraction=0.2)
    before = {path: value.clone() for path, value in model.named_parameters()}
    with deactivated(model, neurons):
        changed = {path for path, value in model.named_parameters() if not torch.equal(value, before[path])}
    assert changed and not any(path.startswith(other) for path in changed for other in layout.left_alone)


def test_one_mask_for_a_tower_and_its_twin():
    """What is found in a language model that sees is what is found in its text-only twin, and fits both."""
    model = with_eyes("qwen3_vl")
    twin = twin_of(model).double()
    found, expected = (detect(one, DOCUMENTS, CONFIG).select(fraction=0.2) for one in (model, twin))
    assert found == expected
    assert (found.model.model_type, expected.model.model_type) == ("qwen3_vl_text", "qwen3")
    ids = torch.arange(5, 20)[None]
    with torch.no_grad(), deactivated(model, expected), deactivated(twin, found):
        torch.testing.assert_close(
            text_body(model)(input_ids=ids).last_hidden_state, text_body(twin)(input_ids=ids).last_hidden_state
        )
    other = {**found.model, "model_type": "qwen2_5_vl_text"}
    with pytest.raises(ModelMismatchError, match="made for qwen2_5_vl_text with 2 blocks"):
        check_model(other, Layout(model).description(), "a mask")


# from the command line


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Iterator[tuple[Path, Path]]:
    """Folders of a Qwen3-VL and of the Qwen3 inside it, with the tokenizer of the demo."""
    folder = tmp_path_factory.mktemp("towers")
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    config = deepcopy(WITH_EYES["qwen3_vl"])
    config["text_config"] |= dict(vocab_size=len(tokenizer), max_position_embeddings=512)
    torch.manual_seed(0)
    made = CONFIG_MAPPING["qwen3_vl"](**config, image_token_id=7, video_token_id=8)
    model = random_weights("qwen3_vl", model_class(made).from_config(made)).float()
    twin = twin_of(model)
    twin.lm_head.load_state_dict(model.lm_head.state_dict())
    for one, name in ((model, "seeing"), (twin, "reading")):
        one.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    yield folder / "seeing", folder / "reading"


SENTENCE = "Ein kleiner Satz, und noch einer, und dann noch ein dritter, der lang genug ist, um gezählt zu werden. " * 2


@pytest.mark.slow
def test_a_tower_from_the_command_line(pair, tmp_path, monkeypatch, capsys):
    """`detect`, `select`, `export` and `lm_eval --model plnd` take one mask on both; eyes are exported as they were."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from lm_eval_plnd.model import PLNDLM

    monkeypatch.chdir(tmp_path)
    Path("de.txt").write_text(SENTENCE)
    for folder in pair:
        arguments = f"--model {folder} --language de --corpus de.txt --output {folder.name} --dtype float32"
        assert main(f"detect {arguments} --device cpu".split()) == 0
        assert main(f"select {folder.name} --fraction 0.1 --output {folder.name}.safetensors".split()) == 0
    assert "measures the language model of" in (said := capsys.readouterr().err) and "alone: model.visual" in said
    seeing, reading = (NeuronSet.load(f"{folder.name}.safetensors") for folder in pair)
    assert seeing == reading
    export(pair[0], reading, "without")
    export(pair[1], seeing, "twin_without")
    folders = ("without", "twin_without", pair[0])
    one, other, whole = (load_model(str(folder), dtype="float32", device="cpu") for folder in folders)
    for path, value in whole.model.visual.state_dict().items():
        assert torch.equal(value, one.model.visual.state_dict()[path])
    ids = torch.arange(9, 30)[None]
    assert torch.equal(one(input_ids=ids).logits, other(input_ids=ids).logits)
    requests = [Instance(request_type="loglikelihood", doc={}, arguments=("Ein Satz", " und noch einer"), idx=0)]
    lm = PLNDLM(pretrained=str(pair[0]), mask="reading.safetensors", device="cpu", dtype="float32", max_length=64)
    plain = HFLM(whole, tokenizer=load_tokenizer(str(pair[0])), max_length=64)
    assert type(lm.model) is type(whole)
    found, untouched = lm.loglikelihood(requests), plain.loglikelihood(requests)
    with deactivated(whole, seeing):
        assert found == plain.loglikelihood(requests) != untouched


@pytest.mark.slow
def test_lens_and_roles_of_a_tower(pair):
    """The logit lens and roles of neurons read of a model that sees what they read of its twin."""
    seen, read = (load_model(str(folder), dtype="float32", device="cpu") for folder in pair)
    counts = [decode_tokens(one, None, some_documents()).counts for one in (seen, read)]
    assert (counts[0] == counts[1]).all() and counts[0].sum()
    documents, parallel = some_documents((6, 7, 8, 9)), Parallel(("a", "b"), (("x", "y"),) * 2)
    roles = [find_roles(one, parallel, [documents[:2], documents[2:]]) for one in (seen, read)]
    assert (roles[0].codes(slice(None)) == roles[1].codes(slice(None))).all()
