"""Roles by eq. 3 to 8, against sets written out as the paper writes them."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handmade import rechecked
from plnd.any_artifact import load
from plnd.errors import ArtifactError, FamilyError, PLNDError
from plnd.io.files import file_digest
from plnd.models.layout import Layout
from plnd.roles.codes import role_counts
from plnd.roles.parallel import Parallel, prompt_digest
from plnd.roles.roles import ROLES, Roles, active_patterns, artifact_bytes, find_roles, pack, role_table, unpack
from plnd.roles.roles_file import packed_width
from tiny import dense, marked, tiny_model

LANGUAGES = ["en", "de", "zh"]
DENSE = marked(dense())


def make(name: str, examples: int = 5, languages: int = 3):
    """A tiny model and inputs of different lengths."""
    model = tiny_model(name, torch.float32 if name == "xglm" else torch.float64)
    generator = torch.Generator().manual_seed(3)
    inputs = [
        [torch.randint(3, 97, (int(torch.randint(2, 8, (), generator=generator)),), generator=generator).tolist()
         for _ in range(languages)]
        for _ in range(examples)
    ]  # fmt: skip
    parallel = Parallel(LANGUAGES[:languages], [[f"{n} {p}" for p in range(languages)] for n in range(examples)])
    return model, parallel, inputs


def activations(model, ids: list[int]) -> dict[str, torch.Tensor]:
    """All activations of one input alone, [seq, width] by block: the non-linearity of the projection before it."""
    layout, seen, handles = Layout(model), {}, []
    for block in layout.blocks:
        if block.stack.activation is None:
            continue
        act = block.activation
        target = layout.targets.get(f"{block.name}.gate_proj") or layout.targets[f"{block.name}.up_proj"]

        def hook(module, args, output, name=block.name, act=act, target=target):
            rows = target.select(output)
            seen[name] = act(rows.reshape(-1, rows.shape[-1]))

        handles.append(target.module.register_forward_hook(hook))
    tokens = torch.tensor([ids])
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = torch.tensor([[model.config.decoder_start_token_id]])
            model(input_ids=tokens, decoder_input_ids=start)
        else:
            model(input_ids=tokens)
    for handle in handles:
        handle.remove()
    return seen


def by_sets(active: list[set[int]], width: int) -> dict[str, set[int]]:
    """Eq. 3 to 6, with the sets of neurons that are active in each language."""
    every = set(range(width))
    shared = set.intersection(*active)
    none = set.intersection(*(every - own for own in active))
    specific = set()
    for p, own in enumerate(active):
        specific |= own.intersection(*(every - other for q, other in enumerate(active) if q != p))
    return {
        "all_shared": shared,
        "partial_shared": every - shared - none - specific,
        "specific": specific,
        "non_activated": none,
    }


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("tokens", ["last", "all"])
def test_roles_and_ratios_of_every_family(name, tokens):
    """In batches and with padding, roles and ratios are those of sets formed from each input alone."""
    model, parallel, inputs = make(name)
    roles = find_roles(model, parallel, inputs, tokens=tokens, thresholds=(0.0, 0.1), batch_size=4)
    for threshold in (0.0, 0.1):
        ratios = np.zeros((len(roles.widths), 4))
        for example, row in enumerate(inputs):
            seen = [activations(model, ids) for ids in row]
            for block, (address, width) in enumerate(roles.widths.items()):
                values = [own[address][-1] if tokens == "last" else own[address].amax(0) for own in seen]
                active = [set((v > threshold).nonzero().flatten().tolist()) for v in values]
                found = by_sets(active, width)
                assert sum(map(len, found.values())) == width
                ratios[block] += [100 * len(found[role]) / width / len(inputs) for role in ROLES]
                if threshold == 0.0:
                    codes = roles.of(example)[address]
                    assert {role: set(np.flatnonzero(codes == c)) for c, role in enumerate(ROLES)} == found
        np.testing.assert_allclose(roles.ratios(threshold=threshold), ratios, rtol=1e-12, atol=1e-12)


def test_fewer_languages_without_a_second_pass():
    """Ratios among two of three languages are those of a pass over these two."""
    model, parallel, inputs = make("llama")
    roles = find_roles(model, parallel, inputs)
    pair = find_roles(model, parallel.of(["en", "zh"]), [[row[0], row[2]] for row in inputs])
    np.testing.assert_array_equal(roles.ratios(["en", "zh"]), pair.ratios())
    assert (pair.ratios()[:, ROLES.index("partial_shared")] == 0).all()
    assert not np.array_equal(roles.ratios(["en", "zh"]), roles.ratios(["en", "de"]))


def test_across_examples_and_languages():
    """Kept roles, shares of languages in partial-shared and specific neurons: counted neuron by neuron."""
    model, parallel, inputs = make("gemma3_text", examples=3)
    roles = find_roles(model, parallel, inputs)
    active = {}
    for example, row in enumerate(inputs):
        for p, ids in enumerate(row):
            for address, values in activations(model, ids).items():
                active[example, p, address] = (values[-1] > 0).numpy()
    for block, (address, width) in enumerate(roles.widths.items()):
        counts = [[sum(active[e, p, address][k] for p in range(3)) for k in range(width)] for e in range(3)]
        for code, wanted in enumerate([(3,), (2,), (1,), (0,)]):
            kept = sum(all(counts[e][k] in wanted for e in range(3)) for k in range(width))
            assert roles.kept()[block, code] == pytest.approx(100 * kept / width)
        cells = [(e, k) for e in range(3) for k in range(width)]
        partial = [(e, k) for e, k in cells if counts[e][k] == 2]
        specific = [(e, k) for e, k in cells if counts[e][k] == 1]
        for p in range(3):
            both = sum(active[e, 1, address][k] and active[e, p, address][k] for e, k in partial)
            assert roles.shared_with("de")[block, p] == pytest.approx(100 * both / len(partial))
            own = sum(active[e, p, address][k] for e, k in specific)
            assert roles.specific_to()[block, p] == pytest.approx(100 * own / len(specific))
            on = sum(active[e, p, address][k] for e, k in cells)
            assert roles.active()[block, p] == pytest.approx(100 * on / len(cells))
    assert sum(roles.shares().values()) == pytest.approx(100)


@given(st.integers(2, 6), st.integers(1, 3), st.integers(1, 13), st.randoms(use_true_random=False))
def test_the_four_roles_partition_the_neurons(languages, examples, neurons, random):
    """Whatever is active, each neuron has one role, and packing keeps it."""
    bits = [[[random.random() < 0.5 for _ in range(neurons)] for _ in range(languages)] for _ in range(examples)]
    active = np.array(bits)
    codes = role_table(languages)[active_patterns(active)]
    count = active.sum(1)
    masks = [count == languages, (count > 1) & (count < languages), count == 1, count == 0]
    assert (sum(mask.astype(int) for mask in masks) == 1).all()
    for code, mask in enumerate(masks):
        np.testing.assert_array_equal(codes == code, mask)
    packed = pack(codes)
    assert packed.shape == (examples, -(-neurons // 4))
    np.testing.assert_array_equal(unpack(packed, neurons), codes)


def test_batches_do_not_matter():
    """Any batch size and any order give the same roles."""
    model, parallel, inputs = make("qwen2", examples=7)
    one = find_roles(model, parallel, inputs, batch_size=1)
    for size in (2, 3, 64):
        other = find_roles(model, parallel, inputs, batch_size=size)
        np.testing.assert_array_equal(other.packed, one.packed)
        np.testing.assert_array_equal(other.patterns, one.patterns)


def test_experts_are_refused():
    """A mixture of experts has no roles, and the error says why."""
    model, parallel, inputs = make("mixtral", examples=1)
    with pytest.raises(FamilyError, match="'mixtral' is a mixture of experts"):
        find_roles(model, parallel, inputs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"thresholds": ()}, "thresholds: expected at least one"),
        ({"thresholds": (0.0, 0.0)}, "each once"),
        ({"tokens": "first"}, "unknown tokens 'first'"),
        ({"batch_size": 0}, "batch size 0"),
    ],
)
def test_refusals(options, words):
    """Arguments that make no sense are one-line errors."""
    with pytest.raises(PLNDError, match=words):
        find_roles(*make("llama", examples=1), **options)


def test_long_inputs_and_overflow_are_refused():
    """An input longer than the model takes, and activations that are not finite, are errors."""
    model, parallel, inputs = make("gpt2", examples=1)
    with pytest.raises(PLNDError, match="has 1025 tokens, and the model takes 1024"):
        find_roles(model, parallel, [[[5] * 1025, *inputs[0][1:]]])
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight.fill_(torch.inf)
    with pytest.raises(PLNDError, match="not finite"):
        find_roles(model, parallel, inputs)


class FailsAfter:
    """A listener that takes in some chunks of a pass and then fails."""

    coefficients = False

    def __init__(self, chunks: int) -> None:
        self.left = chunks

    def add(self, chunk, codes) -> None:
        """Takes in one."""
        if not self.left:
            raise KeyError
        self.left -= 1


def test_the_model_is_left_as_it_was():
    """After a pass, also a failed one, no hook remains."""
    model, parallel, inputs = make("llama", examples=1)
    for listener in (None, FailsAfter(0)):
        try:
            find_roles(model, parallel, inputs, listener=listener)
        except KeyError:
            assert listener
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# the artifact


def test_artifact_round_trip(tmp_path):
    """What is written while the pass runs is what the pass finds; the bytes are the same every time."""
    model, parallel, inputs = make("t5")
    memory = find_roles(model, parallel, inputs, batch_size=2, thresholds=(0.0, 0.2))
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for path in (first, second):
        found = find_roles(model, parallel, inputs, batch_size=2, thresholds=(0.0, 0.2), output=path)
        for name in ("packed", "patterns", "prompts"):
            np.testing.assert_array_equal(getattr(found, name), getattr(memory, name))
        assert found.metadata == memory.metadata
    assert first.read_bytes() == second.read_bytes()
    assert isinstance(load(first), Roles) and list(load(first).widths) == [
        "encoder.0",
        "encoder.1",
        "decoder.0",
        "decoder.1",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_an_interrupted_pass_leaves_nothing(tmp_path):
    """A pass that fails half-way leaves neither a file nor a part of one."""
    model, parallel, inputs = make("llama")
    with pytest.raises(KeyError):
        find_roles(model, parallel, inputs, batch_size=1, output=tmp_path / "x.safetensors", listener=FailsAfter(2))
    assert not list(tmp_path.iterdir())


def damaged(data: bytes, old: str, new: str) -> bytes:
    """The file with one piece of its header replaced by another of the same length."""
    assert len(old) == len(new) and data.count(old.encode()) == 1
    return rechecked(data.replace(old.encode(), new.encode()))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('\\"format\\":\\"plnd.roles\\"', '\\"format\\":\\"plnd.rules\\"', "expected roles|holds 'plnd.rules'"),
        ('\\"version\\":2', '\\"version\\":9', "format version 9"),
        ('\\"documents\\":2,', '\\"documents\\":9,', "names 2 examples, and counts 9"),
        ('[\\"en\\",\\"de\\",\\"zh\\"]', '[\\"en\\",\\"de\\",\\"en\\"]', "names 3 languages"),
        ('[\\"en\\",\\"de\\",\\"zh\\"]', '[\\"en\\",\\"de_zh\\"]    ', "names 2 languages"),
        ('\\"documents\\":[[0,0,0]', '\\"documents\\":[[0,0  ]', "other numbers of documents"),
        ('\\"thresholds\\":[0.0]', '\\"thresholds\\":[   ]', "no threshold"),
        ('\\"down', '\\"drwn', "names"),
    ],
)
def test_damaged_artifacts_are_refused(tmp_path, old, new, words):
    """Every field is checked; each problem is one line that names the file."""
    model, parallel, inputs = make("llama", examples=2)
    path = tmp_path / "x.safetensors"
    find_roles(model, parallel, inputs, output=path)
    data = path.read_bytes()
    if old == '\\"down':
        data = rechecked(data.replace(b'0.down_proj\\":', b'0.drwn_proj\\":', 1))
    else:
        data = damaged(data, old, new)
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=words):
        Roles.load(path)


def test_counts_that_do_not_add_up_are_refused(tmp_path):
    """Patterns must count every neuron of every example once; a cut file is not whole."""
    model, parallel, inputs = make("llama", examples=2)
    path = tmp_path / "x.safetensors"
    find_roles(model, parallel, inputs, output=path)
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    many = np.frombuffer(data[start : start + 32], "<i8") + 2**62  # four, whose sum is what it was, in int64
    for place, change in ((start, bytes([data[start] ^ 1])), (start, many.tobytes())):
        path.write_bytes(rechecked(bytes(data[:place] + change + data[place + len(change) :])))
        with pytest.raises(ArtifactError, match="patterns do not count"):
            Roles.load(path)
    path.write_bytes(rechecked(bytes(data[:-1] + bytes([data[-1] ^ 1]))))
    with pytest.raises(ArtifactError, match="block 1 has other roles than its patterns say"):
        Roles.load(path)
    path.write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match="not a whole safetensors file"):
        Roles.load(path)


def test_any_flipped_bit_of_roles_is_refused(tmp_path):
    """The checksum holds for an artifact that is written row by row, too."""
    model, parallel, inputs = make("llama", examples=1)
    path = tmp_path / "x.safetensors"
    assert find_roles(model, parallel, inputs, output=path).digest == file_digest(path)
    data = path.read_bytes()
    for bit in range(0, 8 * len(data), 97):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(ArtifactError):
            load(path)


def test_roles_whose_file_becomes_shorter(tmp_path):
    """An example that is wanted later is one line, where a mapped file would end the process; another file is none."""
    model, parallel, inputs = make("llama", examples=3)
    path = tmp_path / "x.safetensors"
    roles = find_roles(model, parallel, inputs, output=path)
    before = roles.codes([2, 0])
    find_roles(model, parallel, inputs, output=path)
    np.testing.assert_array_equal(roles.codes([2, 0]), before)
    roles = Roles.load(path)
    time.sleep(0.02)  # beyond the grain of the file system's clock
    os.truncate(path, 500)
    with pytest.raises(ArtifactError, match="was written to while it was read"):
        roles.codes([0])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 3), st.randoms(use_true_random=False))
def test_roles_are_counted_block_by_block(widths, examples, random):
    """Of packed roles as of codes, wherever in a byte a block begins and ends."""
    codes = np.array([[random.randrange(4) for _ in range(sum(widths))] for _ in range(examples)], dtype=np.uint8)
    blocks = np.split(codes, np.cumsum(widths)[:-1], axis=1)
    expected = [[(block == code).sum() for code in range(4)] for block in blocks]
    np.testing.assert_array_equal(role_counts(pack(codes), np.array(widths)), expected)


def test_size_of_an_artifact(tmp_path):
    """Five thousand examples of a 7B model in ten languages are under 1 GB; the formula is the file's own."""
    seven = {f"{block}.down_proj": 11008 for block in range(32)}
    assert packed_width(seven) == 88064
    assert artifact_bytes(seven, 5000, 10) == 32 * 1024 * 8 + 5000 * (80 + 88064) < 0.45e9
    model, parallel, inputs = make("llama")
    path = tmp_path / "x.safetensors"
    roles = find_roles(model, parallel, inputs, output=path)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    assert len(data) - header == artifact_bytes(roles.model["widths"], 5, 3)


# documents


def test_finding_the_example_of_a_request():
    """The prompt tells; documents with one prompt are told apart by their number; everything else is an error."""
    model, _, inputs = make("llama", examples=3)
    prompts = [["a", "b", "same"], ["c", "d", "same"], ["e", "f", "g"]]
    parallel = Parallel(LANGUAGES, prompts, tasks=["x_en", "x_de", "x_zh"], documents=[[0, 0, 4], [1, 1, 5], [2, 2, 6]])
    roles = find_roles(model, parallel, inputs)
    assert roles.example_of("x_en", 1, prompt_digest("c")) == 1
    assert roles.example_of("x_en", 0, prompt_digest("e")) == 2  # renumbered, as lm-eval does under --samples
    assert [roles.example_of("x_zh", n, prompt_digest("same")) for n in (4, 5)] == [0, 1]
    with pytest.raises(PLNDError, match="task other: the artifact has no roles for its documents, but those of x_en"):
        roles.example_of("other", 0, prompt_digest("a"))
    with pytest.raises(PLNDError, match="task x_en, document 7: no roles for it among the artifact's 3 examples"):
        roles.example_of("x_en", 7, prompt_digest("new"))
    with pytest.raises(PLNDError, match="task x_en, document 1: asked with another prompt"):
        roles.example_of("x_en", 1, prompt_digest("new"))
    with pytest.raises(PLNDError, match="no lm-eval task's"):
        find_roles(*make("llama", examples=1)).example_of("x_en", 0, 0)
