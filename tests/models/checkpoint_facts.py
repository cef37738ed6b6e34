"""Program for the transformers environment: perplexity, generated text and tokens of a checkpoint.

`checkpoint_facts.py FOLDER TEXT_FILE` reads a JSON list of strings to tokenize from stdin, prints one JSON document.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(folder: str, text_file: str) -> None:
    """Load the checkpoint in fp32 on one thread, and print the facts."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    text = tokenizer(Path(text_file).read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][:, :1024]
    with torch.no_grad():
        loss = model(text, labels=text).loss.item()
        generated = model.generate(**prompt, max_new_tokens=4, do_sample=False)[0]
    strings = [(string, tokenizer(string)["input_ids"]) for string in json.load(sys.stdin)]
    facts = {
        "perplexity": math.exp(loss),
        "generated": tokenizer.decode(generated),
        "stop_ids": [model.generation_config.eos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "tokens": {string: tokenizer.convert_ids_to_tokens(ids) for string, ids in strings},
        "decoded": {string: tokenizer.decode(ids) for string, ids in strings},
        "chat": tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
        ),
    }
    json.dump(facts, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
