"""TRL's side: a DPOTrainer on the work, as its users run it, in a process that may lack lit_align."""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer


def mark() -> dict[str, float]:
    """Return wall time and CPU time as of now."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"wall": time.time(), "user": used.ru_utime, "system": used.ru_stime}


class Timed(DPOTrainer):
    """A trainer that records its losses and the time of its parts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.phases = {"precompute": 0.0, "data": 0.0, "forward": 0.0, "backward": 0.0}
        self.losses: list[float] = []
        super().__init__(*args, **kwargs)

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        log_probs = super()._precompute_ref_logps(*args, **kwargs)
        self.phases["precompute"] += time.perf_counter() - began
        return log_probs

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Measure the loading of a step's pairs."""
        began = time.perf_counter()
        samples = super().get_batch_samples(*args, **kwargs)
        self.phases["data"] += time.perf_counter() - began
        return samples

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Measure the forward passes, and record the loss."""
        began = time.perf_counter()
        output = super().compute_loss(*args, **kwargs)
        self.phases["forward"] += time.perf_counter() - began
        self.losses.append(float(output.detach() if isinstance(output, torch.Tensor) else output[0].detach()))
        return output

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Measure a micro-batch without its forward passes: the backward pass."""
        began, forward = time.perf_counter(), self.phases["forward"]
        loss = super().training_step(*args, **kwargs)
        self.phases["backward"] += time.perf_counter() - began - (self.phases["forward"] - forward)
        return loss


class Clock(TrainerCallback):
    """Record the time of the start and of every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Record the start, when everything is loaded."""
        self.steps.append(mark())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Record the end of a step."""
        self.steps.append(mark())


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "pairs", "out", "loss", "folder", "device"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--beta", type=float, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--accumulate", type=int, required=True)
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--lora", type=int, default=0)
    parser.add_argument("--cached", action="store_true")
    parser.add_argument("--bfloat16", action="store_true")
    arguments = parser.parse_args()
    cuda = arguments.device == "cuda"
    settings = DPOConfig(
        output_dir=arguments.folder,
        per_device_train_batch_size=arguments.batch,
        gradient_accumulation_steps=arguments.accumulate,
        num_train_epochs=1,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        beta=arguments.beta,
        loss_type=[arguments.loss],
        max_length=arguments.max_length,
        precompute_ref_log_probs=arguments.cached,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        bf16=arguments.bfloat16,
        use_cpu=not cuda,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    clock = Clock()
    adapter = None
    if arguments.lora:
        adapter = LoraConfig(
            r=arguments.lora, lora_alpha=arguments.lora, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    trainer = Timed(
        model=AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32),
        args=settings,
        train_dataset=load_dataset("json", data_files=arguments.pairs, split="train"),
        processing_class=AutoTokenizer.from_pretrained(arguments.model),
        callbacks=[clock],
        peft_config=adapter,
    )
    trainer.train()
    phases = trainer.phases
    whole = clock.steps[-1]["wall"] - clock.steps[0]["wall"]
    phases["optimizer, loop"] = whole - sum(phases[name] for name in ("data", "forward", "backward"))
    part = arguments.accumulate
    losses = [sum(trainer.losses[i : i + part]) / part for i in range(0, len(trainer.losses), part)]
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else None
    measured = {"steps": clock.steps, "phases": phases, "losses": losses, "device_peak": peak}
    Path(arguments.out).write_text(json.dumps(measured), "utf-8")


if __name__ == "__main__":
    main()
