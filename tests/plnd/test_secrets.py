"""Tokens and passwords are found by their form, and not written."""

from __future__ import annotations

import pytest
import torch

from plnd.detection.config import DetectConfig
from plnd.detection.run import detect
from plnd.secrets import portable, secret_in, without_secrets
from tiny import tiny_model

TOKEN = "hf_" + "a1B2" * 8


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"https://user:{TOKEN}@huggingface.co/x", "https://***@huggingface.co/x"),
        (f"https://huggingface.co/x?token={TOKEN}&a=b", "https://huggingface.co/x?***&a=b"),
        (f"--model_args pretrained=m,token={TOKEN},dtype=auto", "--model_args pretrained=m,***,dtype=auto"),
        ("lm_eval --model_args 'pretrained=m,token=abc'", "lm_eval --model_args 'pretrained=m,***'"),
        (f"{TOKEN}.jsonl", "***.jsonl"),
        ("zh.jsonl from document 7", "zh.jsonl from document 7"),
        ("me@host:zh/x.jsonl", "me@host:zh/x.jsonl"),
        ("hf_model/prefix_token_id=3,max_tokens=4,tokens=last", "hf_model/prefix_token_id=3,max_tokens=4,tokens=last"),
    ],
)  # fmt: skip
def test_what_is_left_out(text, clean):
    """Secrets become `***`; what merely has to do with tokens stays as it is."""
    assert without_secrets(text) == clean and (secret_in([text]) is None) == (text == clean)


def test_an_artifact_does_not_hold_its_corpus_password():
    """The source of the documents is recorded without what opens it, and without folders of this machine."""
    source = f"https://me:pass@host/zh.jsonl?token={TOKEN}, /home/me/de.jsonl, user/corpus:zh, here/en.jsonl"
    scores = detect(
        tiny_model("llama", torch.float32), [[5, 6, 7]], DetectConfig(min_length=1, max_length=8), source=source
    )
    assert scores.metadata.corpus.source == "https://***@host/zh.jsonl?***, de.jsonl, user/corpus:zh, here/en.jsonl"
    assert b"home" not in scores.to_bytes()
    assert b"pass" not in scores.to_bytes() and TOKEN.encode() not in scores.to_bytes()


@pytest.mark.parametrize("value, shown", [
    ("/home/me/zh.jsonl", "zh.jsonl"), ("~/models/a", "a"), ("user/model", "user/model"), ("here/a", "here/a"),
    (None, None), (3, 3), ("/", "/"),
])  # fmt: skip
def test_places_of_this_machine(value, shown):
    """Files and folders by their last names; hub names, relative names and what is no name stay."""
    assert portable(value) == shown
