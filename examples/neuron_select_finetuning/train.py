"""Trains one language's neurons with TRL's SFTTrainer and saves the adapter, also as LoRA (see README.md)."""

from __future__ import annotations

import argparse

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from peft_plnd import NeuronSelectConfig, save_as_lora


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--mask", help="neurons artifact; without it a random 0.1 %% of the neurons")
    parser.add_argument("--corpus", required=True, help="JSON lines with a field `text`")
    parser.add_argument("--output", required=True)
    parser.add_argument("--max-steps", type=int, default=100)
    args = parser.parse_args()
    neurons = {"mask": args.mask} if args.mask else {"fraction": 0.001, "seed": 0}
    documents = load_dataset("json", data_files=args.corpus, split="train").select_columns(["text"])
    accelerated = torch.accelerator.is_available()
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(args.model, dtype="bfloat16"),
        args=SFTConfig(
            output_dir=args.output,
            max_steps=args.max_steps,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            weight_decay=0.0,
            max_length=512,
            bf16=accelerated,  # TRL's default, which a CPU does not have
            use_cpu=not accelerated,
            report_to=[],
        ),
        train_dataset=documents,
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=NeuronSelectConfig(task_type="CAUSAL_LM", **neurons),
    )
    trainer.train()
    trainer.save_model(args.output)
    trainer.model.print_trainable_parameters()
    save_as_lora(f"{args.output}-lora", trainer.model)


if __name__ == "__main__":
    main()
