"""`plnd probe` and `--family`: what is printed, what is written, and what is refused in one line."""

from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from plnd.commands.main import main
from plnd.models import accepted

SMALL = dict(vocab_size=97, hidden_size=24, num_hidden_layers=2, num_attention_heads=4)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    """Each test in a folder of its own; rows that it accepts are forgotten."""
    monkeypatch.chdir(tmp_path)
    yield
    accepted.forget()


def save(model_type: str, **values) -> None:
    """The configuration alone, as a folder of the type's name."""
    CONFIG_MAPPING[model_type](**SMALL | values).save_pretrained(model_type)


@pytest.mark.slow
def test_a_model_outside_the_table_from_probe_to_verify(capsys):
    """Probe writes a row, without which the model is refused and with which its description can be asked for."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING["biogpt"](**SMALL, intermediate_size=40)
    AutoModelForCausalLM.from_config(config).save_pretrained("model")
    assert main(["probe", "model", "--output", "row.json"]) == 0
    out = capsys.readouterr().out
    assert "  v_proj     exact (largest error " in out
    assert '    replace(like_llama("biogpt", ' in out
    assert out.endswith("row.json: the row of biogpt, for --family\n")
    (lens := "lens --model model --corpus text --language xx --identifier script".split())
    assert main(lens) == 2
    assert "model family 'biogpt' is not in the families table" in capsys.readouterr().err
    assert main([*lens, "--family", "row.json"]) == 2
    assert "families table" not in capsys.readouterr().err  # past the family, to the corpus that is not there


@pytest.mark.slow
def test_a_row_that_does_not_pass_is_not_written(capsys):
    """CodeGen's values are not where a row can say: probe says so, and --output writes nothing."""
    save("codegen", n_embd=24, n_layer=2, n_head=4, rotary_dim=4)
    assert main(["probe", "codegen/config.json", "--output", "row.json"]) == 2
    captured = capsys.readouterr()
    assert "  v_proj     not exact (largest error " in captured.out
    assert "row.json: not written, since the row cannot be used" in captured.err
    with pytest.raises(FileNotFoundError):
        open("row.json")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("probe nowhere", "nowhere: cannot be loaded ("),
        ("verify x --model nowhere --family row.json", "row.json: cannot be read (No such file or directory)"),
        ("export --mask x --output out --family row.json", "--family: it is held to the twin of a model"),
    ],
)
def test_refusals_are_one_line(capsys, line, words):
    """No model, no file, and no model to hold the row to."""
    assert main(line.split()) == 2
    assert words in capsys.readouterr().err
