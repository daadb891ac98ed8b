"""A small experiment: settings that run in seconds, and rows of one task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lm_eval_plnd.experiments.settings import parse_settings

TINY = """
model: {pretrained: "plnd:polyglot-9m", dtype: float32, device: cpu, batch_size: 2}
languages: [en, de, zh]
corpus: "plnd:corpus/detect/corpora/{language}.jsonl"
detection: {qk: "off", max_documents: 2, max_length: 32}
rule: {fraction: 0.02, projections: [down_proj, o_proj]}
regions: {under: 2, gen: 1}
tasks:
  reading: {task: "plnd_cued_xquad_{language}", gen_kwargs: {max_gen_toks: 2}, languages: [en, zh], limit: 1}
  text: {task: "plnd_text_{language}", metadata: {data_dir: "plnd:corpus/evaluate", text_documents: all},
         model: {max_length: 64, add_bos_token: false}, limit: 2}
experiments: {table5: [reading]}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two XQuAD questions in each of three languages."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "xquad").mkdir()
    for language in ("en", "de", "zh"):
        asked = [{"id": str(n), "question": f"{n}?", "answers": [{"text": "a b"}]} for n in range(2)]
        text = {"data": [{"paragraphs": [{"context": "a b c", "qas": asked}]}]}
        (folder / "xquad" / f"xquad.{language}.json").write_text(json.dumps(text))
    return folder


@pytest.fixture(scope="module")
def tiny(data):
    """Settings that run in seconds, other values for some fields."""

    def make(**changes):
        return parse_settings({**yaml.safe_load(TINY), "metadata": {"data_dir": str(data)}, **changes})

    return make
