"""Old neuron files: what they mean is kept, head by head; whatever is wrong with one is said in one line."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from plnd import NeuronSet, PLNDError, convert, deactivated
from plnd.commands.main import main
from plnd.exchange.convert import LAPE_LANGUAGES, MAX_BYTES, kv_rows
from plnd.models.layout import Layout
from tiny import tiny_model

LINES = [
    {0: {3, 1}, 1: set()},  # up, of 40
    {0: {39}, 1: {0}},  # down
    {0: set(), 1: {47, 5}},  # query, of 48: six heads of 8
    {0: {0, 8, 16}, 1: {24}},  # key, in query space; each key-value head serves three heads
    {0: {47}, 1: {23, 24}},  # value
]
OFFICIAL = "".join(f"{line}\n" for line in LINES)
GROUPS = ("fwd_up", "fwd_down", "attn_q", "attn_k", "attn_v")
ABSTRACT = {name: {str(b): sorted(v) for b, v in line.items()} for name, line in zip(GROUPS, LINES, strict=True)}
ABSTRACT["attn_o"] = {"0": [2, 47], "1": []}
EXPECTED = {
    "0.up_proj": [1, 3],
    "0.down_proj": [39],
    "1.down_proj": [0],
    "1.q_proj": [5, 47],
    "0.k_proj": [0],  # rows 0, 8 and 16 of the queries are channel 0 of heads 0, 1 and 2, which share key head 0
    "1.k_proj": [8],  # row 24 is channel 0 of head 3, which has key head 1
    "0.v_proj": [15],
    "1.v_proj": [7, 8],
}
LAPE = [[torch.tensor([n, n + 7]), torch.tensor([], dtype=torch.int64)] for n in range(7)]


@pytest.fixture(scope="module")
def llama():
    """Two blocks, six heads of eight channels on two key-value heads, 40 feed-forward neurons."""
    return tiny_model("llama")


@pytest.fixture(scope="module")
def folder(llama, tmp_path_factory) -> Path:
    """The same model's configuration."""
    folder = tmp_path_factory.mktemp("model")
    llama.config.save_pretrained(folder)
    return folder


def written(tmp_path: Path, content) -> Path:
    """An old file: text, an object as JSON, or whatever else torch saves."""
    path = tmp_path / "old"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, dict):
        path.write_text(json.dumps(content, indent=2))
    else:
        torch.save(content, path)
    return path


def read(tmp_path: Path, content, model, **options) -> dict[str, list[int]]:
    """The neurons of an old file, by address; warnings are tested where they matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: v.tolist() for name, v in convert(written(tmp_path, content), model, **options).items()}


def refusal(tmp_path: Path, content, model, **options) -> str:
    """What is said of a bad file, after its name."""
    with pytest.raises(PLNDError) as caught:
        read(tmp_path, content, model, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.startswith(f"{tmp_path / 'old'}: ")
    return message.removeprefix(f"{tmp_path / 'old'}: ")


# what the files mean


def test_lines(tmp_path, llama):
    """Up, down, query, key, value; keys and values go to the rows of their own heads."""
    assert read(tmp_path, OFFICIAL, llama) == EXPECTED


def test_lines_written_by_numpy_2(tmp_path, llama):
    """The code puts numpy's integers into its sets, which newer versions print with their type."""
    text = re.sub(r"(?<=[{ ])([0-9]+)(?=[,}])", r"np.int64(\1)", OFFICIAL)
    assert text.startswith("{0: {np.int64(1), np.int64(3)}, 1: set()}\n")
    assert read(tmp_path, text, llama) == EXPECTED


def test_json(tmp_path, llama):
    """Abstract_Thought's groups, which have the output projection too, with indices in no order."""
    content = {name: {b: v[::-1] for b, v in blocks.items()} for name, blocks in ABSTRACT.items()}
    assert read(tmp_path, content, llama) == {**EXPECTED, "0.o_proj": [2, 47]}


def test_lape(tmp_path, llama):
    """One language by index, or by its place in the published order; rows of the gate."""
    for number, name in enumerate(LAPE_LANGUAGES):
        assert read(tmp_path, LAPE, llama, index=number) == {"0.gate_proj": [number, number + 7]}
        assert read(tmp_path, LAPE, llama, language=name) == {"0.gate_proj": [number, number + 7]}


def test_lape_without_a_gate(tmp_path):
    """In an ungated feed-forward the activation that LAPE switches off is that of the up-projection."""
    assert read(tmp_path, LAPE, tiny_model("gpt2"), language="zh") == {"0.up_proj": [1, 8]}


def test_lape_neurons_switch_off_the_activation(tmp_path, llama):
    """A gate row of zeros is an activation of zero, as LAPE's own code makes it."""
    neurons = convert(written(tmp_path, LAPE), llama, language="zh")
    seen = []
    handle = llama.model.layers[0].mlp.act_fn.register_forward_hook(lambda *call: seen.append(call[-1]))
    with deactivated(llama, neurons), torch.no_grad():
        llama(torch.arange(3, 12)[None])
    handle.remove()
    assert not seen[0][..., [1, 8]].any() and seen[0].any(dim=(0, 1)).sum() == 38


@given(st.sampled_from([(6, 2, 8), (32, 8, 4), (4, 4, 3), (8, 1, 5)]), st.randoms())
def test_key_rows_are_those_that_meet_the_query_row(shape, random):
    """By brute force: the key row of query row i is the one that repeating the key heads puts in place i."""
    heads, groups, head_dim = shape
    repeated = torch.arange(groups * head_dim).view(groups, 1, head_dim).expand(-1, heads // groups, -1).flatten()
    rows = np.array(random.sample(range(heads * head_dim), 5))
    assert kv_rows(rows, head_dim=head_dim, group_size=heads // groups).tolist() == repeated[rows].tolist()


def test_the_warning_about_key_and_value_rows(tmp_path):
    """At the shape of Llama 3 8B and Mistral 7B, index // 4 is the right row for 32 of 4096 indices, 0.8 %."""
    shape = dict(hidden_size=4096, intermediate_size=40, num_hidden_layers=2, num_attention_heads=32, vocab_size=97)
    for config in (LlamaConfig, MistralConfig):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config(**shape, num_key_value_heads=8, head_dim=128))
        with pytest.warns(UserWarning, match=r"took index // 4, the right row for 32 of 4096 indices \(0\.8%\)"):
            convert(written(tmp_path, OFFICIAL), model)
    assert sum(i // 4 == i // 128 // 4 * 128 + i % 128 for i in range(4096)) == 32


def test_no_warning_without_groups(tmp_path):
    """Where every head has its own keys, old and new numbering are one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tiny_model("qwen2")
        text = "{0: {35}, 1: set()}\n{0: set(), 1: set()}\n" + "{0: {23}, 1: set()}\n" * 3
        neurons = convert(written(tmp_path, text), model)
    assert {name: v.tolist() for name, v in neurons.items()} == {
        "0.up_proj": [35], "0.q_proj": [23], "0.k_proj": [23], "0.v_proj": [23],
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*numbered as query rows")
def test_a_warning_about_the_number_of_blocks(tmp_path, llama):
    """A file of fewer blocks may be of another model."""
    with pytest.warns(UserWarning, match="describes 1 blocks, but the model has 2; is it the right one"):
        convert(written(tmp_path, "{0: {1}}\n" * 5), llama)


# the artifact


@pytest.mark.parametrize(
    "content, options, method, language",
    [
        (OFFICIAL, {"language": "zh"}, "plnd-official", "zh"),
        (OFFICIAL, {}, "plnd-official", None),
        (ABSTRACT, {"language": "sw"}, "abstract-thought", "sw"),
        (LAPE, {"language": "fr"}, "lape", "fr"),
        (LAPE, {"index": 2}, "lape", "fr"),
        (LAPE, {"index": 2, "language": "xx"}, "lape", "xx"),
        (LAPE[:6], {"index": 2}, "lape", None),
    ],
)
def test_the_artifact(tmp_path, llama, folder, content, options, method, language):
    """It can be saved and read, fits the model, and says where it comes from; importance and corpus are empty."""
    path = written(tmp_path, content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        neurons = convert(path, folder, **options)
    neurons.save(tmp_path / "new.safetensors")
    again = NeuronSet.load(tmp_path / "new.safetensors")
    assert again == neurons and again.metadata == neurons.metadata
    again.check_model(Layout(llama).description())
    facts = again.metadata
    assert (facts["method"]["name"], facts["language"]) == (method, language)
    rule = {"name": "converted", "source": "old", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert facts["rule"] == (rule | {"index": 2} if method == "lape" else rule)
    assert facts["corpus"]["documents"] == 0 and facts["model"]["name"] == str(folder)
    assert not any(values.any() for values in again.importance.values())


def test_command_line(tmp_path, folder, capsys):
    """Warnings and errors are one line each; the artifact is announced as elsewhere."""
    path, new = written(tmp_path, OFFICIAL), tmp_path / "new.safetensors"
    command = ["convert", str(path), "--model", str(folder), "--language", "zh", "--output", str(new)]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{new}: 11 of ") and err.startswith(f"warning: {path}: its key and value neurons")
    assert NeuronSet.load(new).metadata["language"] == "zh"
    assert main([*command, "--index", "1"]) == 2
    assert capsys.readouterr().err == f"plnd convert: {path}: holds one language; --index is for LAPE's files\n"
    assert main([*command[:-1], str(tmp_path / "no" / "new")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# what is refused


def changed(number: int, line: str) -> str:
    """The official file with another line, counted from 1."""
    lines = OFFICIAL.splitlines()
    lines[number - 1] = line
    return "\n".join(lines)


BAD_LINES = [
    ("", "has 0 lines, expected 5"),
    (OFFICIAL + "{}\n", "has 6 lines, expected 5"),
    (changed(2, "[]"), "line 2 begins '[]', expected {block: {index"),
    (changed(2, "{0: {1}"), "line 2, column 2: '0: {1}', expected block"),
    (changed(3, "{0: {1, -2}}"), "line 3, column 2: '0: {1, -2}}', expected block"),
    (changed(3, "{0: {1}, 1: [2]}"), "line 3, column 10: '1: [2]}', expected block"),
    (changed(3, "{0: {1} 1: {2}}"), "line 3, column 2: "),
    (changed(3, "{0: {}}"), "line 3, column 2: '0: {}}', expected block"),
    (changed(3, "{0: {1.5}}"), "line 3, column 2: "),
    (changed(3, "{0: {__import__('os').abort()}}"), "line 3, column 2: "),
    (changed(3, "{0: {12345678901}}"), "line 3, column 2: "),
    (changed(4, "{0: {1}, 0: {2}}"), "line 4 has block 0 twice"),
    (changed(4, "{0: {1, 1}}"), "line 4, block 0: holds an index twice"),
    (changed(4, "{0: {48}}"), "0.k_proj has 48, out of range for 48 query rows: is it the right model?"),
    (changed(3, "{0: {48}}"), "0.q_proj has 48, out of range for 48 neurons: is it the right model?"),
    (changed(1, "{2: {1}}"), "has neurons of 2.up_proj, which the model (llama, 2 blocks) does not have"),
    (changed(4, "{2: {1}}"), "has neurons of 2.k_proj, which the model (llama, 2 blocks) does not have"),
    (b"\xff\xfe{0: {1}}", "neither text nor a file that torch saved"),
    (pickle.dumps([1]), "neither text nor a file that torch saved"),
]


@pytest.mark.parametrize("content, message", BAD_LINES, ids=[message for _, message in BAD_LINES])
def test_bad_lines(tmp_path, llama, content, message):
    """Every fault of the text format is named with its place."""
    assert refusal(tmp_path, content, llama).startswith(message)


def test_nothing_is_evaluated(tmp_path, llama):
    """A file that would run code when read by `eval` only draws a message."""
    text = changed(5, f"{{0: {{open({str(tmp_path / 'made')!r}, 'w')}}}}")
    assert "line 5, column 2" in refusal(tmp_path, text, llama)
    assert not (tmp_path / "made").exists()


BAD_JSON = [
    ('{"fwd_up": ', "not whole JSON ("),
    ('{"a": 1, "a": 2}', "not whole JSON (key 'a' is there twice)"),
    ('{"a": [' + "0," * 2**22 + "0]}", "not whole JSON (more than 4194304 values)"),
    ('{"a": ' + "[" * 100_000, "not whole JSON ("),
    ('{"a": ' + "9" * 5000 + "}", "not whole JSON ("),
    ({k: v for k, v in ABSTRACT.items() if k != "attn_o"}, "group 'attn_o' is missing"),
    ({**ABSTRACT, "more": {}}, "group 'more' is not known"),
    ({**ABSTRACT, "attn_q": [1]}, "attn_q is [1], expected an object of blocks"),
    ({**ABSTRACT, "attn_q": {"0": 1}}, "attn_q has '0': 1, expected a block and a list of indices"),
    ({**ABSTRACT, "attn_q": {"0": [1.0]}}, "attn_q has '0': [1.0], expected a block and a list of indices"),
    ({**ABSTRACT, "attn_q": {"0": [True]}}, "attn_q has '0': [True], expected"),
    ({**ABSTRACT, "attn_q": {"0": [-1]}}, "attn_q has '0': [-1], expected"),
    ({**ABSTRACT, "attn_q": {"0": [10**30]}}, "attn_q has '0': [1000"),
    ({**ABSTRACT, "attn_q": {"00": [1]}}, "attn_q has '00': [1], expected"),
    ({**ABSTRACT, "attn_q": {"0": [1, 1]}}, "attn_q, block 0: holds an index twice"),
    ({**ABSTRACT, "attn_o": {"0": [48]}}, "0.o_proj has 48, out of range for 48 neurons"),
    ({**ABSTRACT, "attn_v": {"7": [1]}}, "has neurons of 7.v_proj, which the model"),
]


@pytest.mark.parametrize("content, message", BAD_JSON, ids=[message for _, message in BAD_JSON])
def test_bad_json(tmp_path, llama, content, message):
    """Every fault of the JSON format is named with its group."""
    assert refusal(tmp_path, content, llama).startswith(message)


def archive(**members: bytes) -> bytes:
    """A zip file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return stream.getvalue()


class Code:
    """Pickled, a call of a function."""

    def __reduce__(self):  # noqa: D105
        return (eval, ("1",))


BAD_LAPE = [
    (b"PK\x03\x04damaged", "torch cannot load it as plain data (File is not a zip file)"),
    (archive(a=b"b"), "torch cannot load it as plain data ("),
    (archive(a=bytes(MAX_BYTES + 1)), f"holds {MAX_BYTES + 1:,} bytes unpacked, expected at most"),
    ([Code()], "torch cannot load it as plain data ("),
    ([], "expected a list of languages, each a list of blocks"),
    ([1], "expected a list of languages, each a list of blocks"),
    ([[1]], "language 0, block 0: an object of type int, expected a vector of integers"),
    ([[torch.zeros(2)]], "language 0, block 0: a tensor of torch.float32 and 1 dimensions, expected a vector"),
    ([[torch.zeros(2, 2).long()]], "language 0, block 0: a tensor of torch.int64 and 2 dimensions"),
    ([[torch.zeros(1).long().expand(10**12)]], "language 0, block 0: 1,000,000,000,000 indices, more than"),
    ([[torch.tensor([1, 1])]], "language 0, block 0: holds an index twice"),
    ([[torch.tensor([40])]], "0.gate_proj has 40, out of range for 40 neurons"),
    ([[torch.tensor([-1])]], "0.gate_proj has -1, out of range for 40 neurons"),
    ([[torch.tensor([1])] * 3], "holds 1 languages of up to 3 blocks, expected at most 256 languages of the model's 2"),
    ([[]] * 257, "holds 257 languages of up to 0 blocks, expected at most"),
]


@pytest.mark.parametrize("content, message", BAD_LAPE, ids=[message for _, message in BAD_LAPE])
def test_bad_lape(tmp_path, llama, content, message):
    """Every fault of a LAPE file; code in it does not run."""
    assert refusal(tmp_path, content, llama, index=0).startswith(message)


@pytest.mark.parametrize(
    "content, options, message",
    [
        (LAPE, {}, "holds 7 languages and does not name them: give --index 0 to 6, or --language en, zh, fr, es"),
        (LAPE, {"language": "de"}, "holds 7 languages and does not name them: give --index 0 to 6, or --language"),
        (LAPE, {"index": 7}, "holds 7 languages and does not name them, not 7: give --index 0 to 6"),
        (LAPE, {"index": -1}, "holds 7 languages and does not name them, not -1: give"),
        (LAPE[:6], {"language": "en"}, "holds 6 languages and does not name them: give --index 0 to 5"),
        (OFFICIAL, {"index": 0}, "holds one language; --index is for LAPE's files"),
    ],
)
def test_which_language(tmp_path, llama, content, options, message):
    """A file of several languages is not guessed at."""
    assert refusal(tmp_path, content, llama, **options).startswith(message)


def test_models_that_the_formats_do_not_know(tmp_path):
    """Mixtures of experts and encoder-decoder models had no neurons in these files."""
    assert "mixture of experts" in refusal(tmp_path, LAPE, tiny_model("mixtral"), index=0)
    assert "has neurons of 0." in refusal(tmp_path, OFFICIAL, tiny_model("t5"))


def test_files_that_cannot_be_read(tmp_path, llama):
    """No file, a folder, and one that is far too large."""
    with pytest.raises(PLNDError, match="cannot be read .No such file"):
        convert(tmp_path / "none", llama)
    with pytest.raises(PLNDError, match="cannot be read .Is a directory"):
        convert(tmp_path, llama)
    with open(tmp_path / "old", "wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(PLNDError, match="is larger than 16,777,216 bytes"):
        convert(tmp_path / "old", llama)


def lape_bytes() -> bytes:
    """A good LAPE file."""
    stream = io.BytesIO()
    torch.save(LAPE, stream)
    return stream.getvalue()


@pytest.mark.parametrize("content", [OFFICIAL.encode(), json.dumps(ABSTRACT).encode(), lape_bytes()], ids=list("abc"))
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_files(tmp_path, llama, content, data):
    """A file with bytes changed, cut out or put in is read as valid neurons or refused in one line, never otherwise."""
    mutated = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(mutated)))
        stop = start + data.draw(st.integers(0, 4))
        mutated[start:stop] = data.draw(
            st.one_of(st.binary(max_size=4), st.sampled_from([b"9", b",", b"{", b"}", b"-"]))
        )
    try:
        index = 0 if mutated.startswith(b"PK") else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            neurons = convert(written(tmp_path, bytes(mutated)), llama, index=index)
    except PLNDError as error:
        assert len(str(error).splitlines()) == 1
    else:
        neurons.save(tmp_path / "new.safetensors")
        assert NeuronSet.load(tmp_path / "new.safetensors") == neurons


@pytest.mark.slow
def test_a_long_file_takes_little_memory(tmp_path, llama):
    """A few dozen bytes for each number, where a pattern over the whole line took hundreds; then it is refused."""
    numbers = ",".join(map(str, range(200_000)))
    path = tmp_path / "old"
    path.write_text("\n".join(["{0: {%s}}" % numbers] * 5))  # noqa: UP031
    tracemalloc.start()
    try:
        with pytest.raises(PLNDError, match="0.k_proj has 199999, out of range for 48 query rows"):
            convert(path, llama)
        assert tracemalloc.get_traced_memory()[1] < 12 * path.stat().st_size
    finally:
        tracemalloc.stop()
