"""scripts/soak.py: evaluations with changing masks on one model leave it as it was, and their numbers are right."""

from __future__ import annotations

import sys

import pytest
import torch

from programs import run_script, script

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="/proc")]


def test_a_short_soak(capsys):
    """Six evaluations: memory is flat, the weights are the same, the last numbers are those of a fresh process."""
    with pytest.raises(SystemExit) as stop:
        run_script("soak", "--evaluations", 6)
    assert stop.value.code == 0 and "the last numbers a fresh process's: {'bits_per_byte" in capsys.readouterr().out


def test_what_stays_switched_off_is_seen(capsys, monkeypatch):
    """The negative: were the weights not put back, the soak would say so."""
    soak = script("soak")
    evaluate = soak.evaluate

    def careless(model, tokenizer, manager, number):
        with torch.no_grad():
            next(model.parameters())[0] += 1
        return evaluate(model, tokenizer, manager, number)

    monkeypatch.setattr(soak, "evaluate", careless)
    with pytest.raises(SystemExit) as stop:
        run_script("soak", "--evaluations", 2)
    assert stop.value.code == 1 and "the model is not what it was" in capsys.readouterr().out
