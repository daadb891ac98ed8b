"""A whole file of every kind that plnd reads, made by the command lines themselves, and those that write."""

from __future__ import annotations

import gzip
import json
import lzma
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from fuzzing.processes import command, forked
from handmade import importance_matrix, make_neurons, make_scores
from lm_eval_plnd.experiments.settings import FOLDER


@dataclass
class Workshop:
    """A folder with a model, corpora, and a whole file of every kind, made by the command lines themselves."""

    folder: Path
    kinds: dict[str, list[Path]] = field(default_factory=dict)

    def arguments(self, argv: str, out: Path) -> list[str]:
        """The words of a command line."""
        neurons = self.folder / "made" / "select" / "zh.neurons"
        return argv.format(w=self.folder, m=self.folder / "model", n=neurons, few=FEW, out=out).split()

    def make(self, argv: str, out: Path) -> None:
        """Runs a command line, or ends the campaign."""
        arguments = self.arguments(argv, out)
        done = forked(lambda: command(*arguments))
        if done.status:
            raise SystemExit(f"plnd {argv}: status {done.status}\n{done.text}")

    def make_artifacts(self) -> None:
        """Scores and neurons by hand, and files that are no artifacts; none needs a model."""
        w = self.folder
        for language, seed in (("zh", 0), ("en", 1)):
            scores = make_scores(importance_matrix(seed=seed), language=language)
            scores.save(w / f"{language}.scores")
        make_scores(importance_matrix(), version=1).save(w / "old.scores")
        make_neurons({"0.up_proj": [1, 2, 5], "1.q_proj": [0, 3], "1.down_proj": [7]}).save(w / "hand.neurons")
        texts = [
            "Ein Satz, der lang genug ist.",
            "两个句子。还有一个，更长一些的句子。",
            "Три слова и ещё несколько слов.",
        ]
        lines = "".join(json.dumps({"id": n, "text": text}, ensure_ascii=False) + "\n" for n, text in enumerate(texts))
        forms = {
            "txt": "\n".join(texts),
            "jsonl": lines,
            "csv": "id,text\n" + "".join(f'{n},"{t}"\n' for n, t in enumerate(texts)),
        }
        forms["json"] = json.dumps([{"text": text} for text in texts])
        for ending, content in forms.items():
            (w / f"corpus.{ending}").write_text(content, encoding="utf-8")
        (w / "corpus.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        (w / "corpus.txt.xz").write_bytes(lzma.compress("\n".join(texts).encode()))
        done = forked(lambda: make_columns(w, texts))
        if done.status:
            raise SystemExit(done.text)
        settings = FOLDER / "demo.yaml"
        shutil.copy(settings, w / "demo.yaml")
        self.make_rows()
        self.kinds = {
            "scores": [w / "zh.scores", w / "old.scores"],
            "neurons": [w / "hand.neurons"],
            "corpora": sorted(w.glob("corpus.*")),
            "settings": [w / "demo.yaml"],
            "rows": [w / "row.json", w / "paths.json"],
        }

    def make_rows(self) -> None:
        """Two rows of the families table, as files that --family names."""
        from plnd.models.families import FAMILIES, like_llama
        from plnd.probing.rows import write_row

        write_row(like_llama("biogpt"), self.folder / "row.json")
        write_row(FAMILIES["qwen3_next"], self.folder / "paths.json")

    def make_runs(self, everything: bool) -> None:
        """A model, scores and neurons of it, and what every other writing command makes."""
        w = self.folder
        done = forked(lambda: make_model(w))
        if done.status:
            raise SystemExit(done.text)
        for name in MADE_FIRST if everything else MADE_FIRST[:3]:
            out = w / "made" / name
            out.mkdir(parents=True)
            self.make(WRITERS[name], out)
        self.make(WRITERS["shard"].replace("1/2", "2/2").replace("1.part", "2.part"), w / "made" / "shard")
        old = {
            "a.txt": "{0: {1, 3}, 1: set()}\n" * 2 + "{0: set(), 1: {5}}\n{0: {0, 8}, 1: {1}}\n{0: {2}, 1: {3}}\n",
            "a.json": json.dumps(
                {f"{name}": {"0": [1, 2]} for name in ("fwd_up", "fwd_down", "attn_q", "attn_k", "attn_v", "attn_o")}
            ),
        }
        for name, text in old.items():
            (w / name).write_text(text)
        off = {"mask": "zh.neurons", "mask_sha256": "0" * 64, "language": "zh", "counts": {"up_proj": 3}}
        off |= {"regions": None, "under": None, "gen": None, "control": None, "seed": 0}
        results = {
            "results": {"task": {"alias": "task", "acc,none": 0.5, "acc_stderr,none": 0.1}},
            "configs": {"task": {"task": "task", "metadata": {"version": 1}}},
            "config": {"model": "plnd", "model_args": {"pretrained": "some/model"}, "plnd": off},
            "n-samples": {"task": {"original": 4, "effective": 4}},
        }
        (w / "results_2025.json").write_text(json.dumps(results))
        if everything:
            self.make(WRITERS["export"], w / "made")
            self.find_kinds()

    def find_kinds(self) -> None:
        """The files of every kind among what was made."""
        w = self.folder
        run = w / "made" / "experiment" / "run"
        samples, ablated = sorted((run / "samples").iterdir()), w / "made" / "ablate" / "ablate"
        reference, adapter = w / "made" / "reference" / "reference", w / "adapter"
        self.kinds |= {
            "scores": [*self.kinds["scores"], w / "made/detect/zh.scores"],
            "neurons": [*self.kinds["neurons"], w / "made/select/zh.neurons"],
            "roles": [w / "made/roles/x.roles"],
            "means": [reference / "means.safetensors"],
            "directions": [reference / "zh.direction.safetensors"],
            "routings": [w / "made/routing/routing"],
            "adapters": [adapter / "adapter_config.json", adapter / "adapter_model.safetensors"],
            "ablations": [ablated / "asked.json", *sorted((ablated / "samples").iterdir())],
            "evaluations": [ablated / "ablation.md"],
            "runs": sorted(path for path in run.rglob("*") if path.is_file() and path.suffix != ".lock"),
            "parts": [w / "made/shard/1.part"],
            "checkpoints": [w / "x.checkpoint"],
            "arena": [w / "made/arena/arena/settings.json", *sorted((w / "made/arena/arena/results").iterdir())],
            "profiles": [w / "made/neuron/n.json"],
            "folders": [path for path in sorted((w / "made/export").iterdir()) if path.name != "tokenizer.json"],
            "old": [w / "a.txt", w / "a.json"],
            "results": [w / "results_2025.json", run / "results.csv", run / "settings.yaml", *samples[:2]],
        }  # fmt: skip


def make_model(w: Path) -> int:
    """A random Llama of two blocks with the demo's tokenizer, and the settings of an experiment on it."""
    import torch
    from transformers import (
        AutoTokenizer,
        BioGptConfig,
        LlamaConfig,
        LlamaForCausalLM,
        MixtralConfig,
        MixtralForCausalLM,
    )

    from plnd.demo_data import demo_corpus, demo_model

    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    tokens = dict(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config = LlamaConfig(**shape, **tokens, num_key_value_heads=2, initializer_range=0.3, max_position_embeddings=512)
    LlamaForCausalLM(config).save_pretrained(w / "model")
    mixture = MixtralConfig(**shape, **tokens, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
    MixtralForCausalLM(mixture).save_pretrained(w / "mixture")
    tokenizer.save_pretrained(w / "mixture")
    sizes = dict(vocab_size=97, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
    BioGptConfig(**sizes).save_pretrained(w / "biogpt")
    tokenizer.save_pretrained(w / "model")
    for language in ("en", "zh"):
        lines = (demo_corpus("detect") / "corpora" / f"{language}.jsonl").read_text(encoding="utf-8").splitlines()[:16]
        (w / f"{language}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    both = [
        [json.loads(line)["text"] for line in (w / f"{x}.jsonl").read_text(encoding="utf-8").splitlines()]
        for x in ("en", "zh")
    ]
    rows = [json.dumps({"en": en[:200], "zh": zh[:100]}, ensure_ascii=False) for en, zh in zip(*both, strict=True)]
    (w / "parallel.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (w / "run.yaml").write_text(SETTINGS.format(w=w))
    make_checkpoint(w / "x.checkpoint")
    make_adapter(w / "model", w / "adapter")
    return 0


def make_adapter(model: Path, folder: Path) -> None:
    """An adapter of a fiftieth of the model's neurons, at random values."""
    from peft import get_peft_model

    from peft_plnd import NeuronSelectConfig
    from plnd.models.loading import load_model

    config = NeuronSelectConfig(fraction=0.02, init_weights=False, bias="none", task_type="CAUSAL_LM")
    get_peft_model(load_model(str(model), device="cpu"), config).save_pretrained(str(folder))


def make_checkpoint(path: Path) -> None:
    """What a run of a minute would leave."""
    import torch

    from plnd.detection.checkpoint import Checkpoint
    from plnd.detection.documents import Skipped
    from plnd.detection.tally import Tally
    from plnd.detection.totals import Totals

    totals = Totals.empty({"0.ffn": 48, "0.query": 32})
    totals.add(torch.rand(5, 80, dtype=torch.float64))
    settings = {"window": 16, "weights": "0" * 64, "model": {"name": "some/model", "revision": None}}
    Checkpoint(settings, 3, Tally(12, 345, {0: Skipped(1, [7])}, totals), "1" * 64).save(path)


def make_columns(w: Path, texts: list[str]) -> int:
    """The same corpus as Parquet and Arrow, compressed and with a dictionary."""
    import pyarrow.feather
    import pyarrow.parquet

    table = pyarrow.table({"id": range(len(texts)), "text": texts})
    pyarrow.parquet.write_table(table, w / "corpus.parquet", use_dictionary=False)
    pyarrow.parquet.write_table(table, w / "corpus.pq", compression="zstd", data_page_version="2.0")
    pyarrow.feather.write_feather(table, str(w / "corpus.feather"), compression="lz4")
    coded = table.set_column(1, "text", table["text"].dictionary_encode())
    with pyarrow.ipc.new_stream(w / "corpus.arrow", coded.schema) as stream:
        stream.write_table(coded)
    return 0


SETTINGS = """
model: {{pretrained: "{w}/model", dtype: float32, device: cpu, batch_size: 2}}
languages: [en, zh]
corpus: "{w}/{{language}}.jsonl"
detection: {{qk: "off", max_documents: 4, max_length: 32}}
rule: {{fraction: 0.1}}
tasks:
  text: {{task: "plnd_text_{{language}}", metadata: {{data_dir: "plnd:corpus/evaluate", text_documents: all}},
         model: {{max_length: 64, add_bos_token: false}}, limit: 2}}
experiments: {{table1: text}}
"""
WRITERS = {
    "detect": "detect --model {m} --corpus {w}/zh.jsonl --language zh --batch-size 2 --resume --output {out}/zh.scores",
    "shard": "detect --model {m} --corpus {w}/zh.jsonl --language zh --batch-size 2 --shard 1/2 --resume"
    " --output {out}/1.part",
    "merge": "merge {w}/made/shard/2.part {w}/made/shard/1.part --output {out}/merged.scores",
    "select": "select {w}/made/detect/zh.scores --fraction 0.2 --output {out}/zh.neurons",
    "combine": "combine {n} --minus {n} --union {n} --output {out}/combined",
    "overlap": "overlap {n} --csv {out}/overlap.csv",
    "export": "export --model {m} --mask {n} --output {out}/export --overwrite",
    "overwrite": "export --model {m} --mask {n} --output {out}/export --overwrite",
    "convert": "convert {w}/a.txt --model {m} --output {out}/converted",
    "roles": "roles --model {m} --parallel {w}/parallel.jsonl --batch-size 2 --output {out}/x.roles --csv {out}/x.csv",
    "lens": "lens --model {m} --corpus {w}/zh.jsonl --language zh --identifier script --csv {out}/lens.csv",
    "neuron": "neuron {n} --corpus zh={w}/zh.jsonl en={w}/en.jsonl --json {out}/n.json --html {out}/n.html",
    "explore": "explore {w}/made/detect/zh.scores {n} {w}/made/neuron/n.json --output {out}/x.html",
    "arena": "arena --model {m} --corpora {w} --languages en,zh {few} --output {out}/arena",
    "experiment": "experiment {w}/run.yaml --output {out}/run",
    "reference": "reference --model {m} --corpus zh={w}/zh.jsonl en={w}/en.jsonl --max-documents 4 --max-length 64"
    " --output {out}/reference",
    "routing": "routing --model {w}/mixture --corpus zh={w}/zh.jsonl en={w}/en.jsonl --max-documents 4 --max-length 64"
    " --output {out}/routing --csv {out}/routing.csv",
    "steered": "steered {w}/made/reference/reference/zh.direction.safetensors --output {out}/zh.pt",
    "layers": "layers {n} --csv {out}/layers.csv",
    "probe": "probe {w}/model --output {out}/row.json",
    "ablate": "ablate {n} --model {m} --text zh={w}/zh.jsonl --draws 1 --limit 2 --model_args max_length=64"
    " --output {out}/ablate",
    "report": "report {w}/made/experiment/run --output {out}/report.html",
    "card": "card {w}/results_2025.json --output {out}/README.md",
}
"""Command lines that write, into a folder `out` of their own."""
FEW = "--documents 3 --held-out 3 --samples 1 --max-length 32 --detectors plnd-rank,lape --ablations zero"
NOT_KILLED = {
    "show": "prints",
    "verify": "prints",
    "families": "prints",
    "tasks": "prints",
    "push": "a commit of the hub, which takes all of it or nothing",
    "demo": "minutes of the commands that are here",
    "suppress": "minutes of evaluation; writes through what ablate and export write through",
}
"""Commands that are not killed, and why."""
LIGHT = {"detect", "shard", "merge", "select", "combine", "overlap", "layers", "export", "overwrite", "convert"}
"""Commands that need no others than themselves."""
MADE_FIRST = ("detect", "select", "shard", "roles", "neuron", "reference", "routing", "ablate", "experiment", "arena")
"""Whose files others read, in this order; the first three by light commands."""
