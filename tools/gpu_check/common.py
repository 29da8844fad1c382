"""What all stages use: records on disk, models of random weights, batches, commands in forked children."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lit_align.types import PairBatch

DEVICE = os.environ.get("GPU_CHECK_DEVICE", "cuda")
TINY = DEVICE == "cpu"
WORK = Path(os.environ.get("TMPDIR", ".gpu"))
PARTS = WORK / "gpu_check_parts"
SMALL: dict[str, int] = dict(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
)
ONE_B = SMALL | dict(
    vocab_size=128_256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
)
EIGHT_B = ONE_B | dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32)
if TINY:
    SMALL = ONE_B = EIGHT_B = SMALL | dict(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )


class Record:
    """Cases of a stage, on disk after each of them."""

    def __init__(self, stage: str) -> None:
        self.path = PARTS / f"{stage}.json"
        self.rows: list[dict[str, Any]] = []

    def add(self, **row: Any) -> None:
        """Write a case."""
        self.rows.append(row)
        write_json(self.path, self.rows)
        print(json.dumps(row)[:400], flush=True)

    def attempt(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Run a case that may fail; what it raises is a result too."""
        try:
            self.add(case=name, **work())
        except Exception as error:  # noqa: BLE001
            told = f"{type(error).__name__}: {str(error)[:300]}"
            self.add(case=name, error=told, where=traceback.format_exc()[-600:])
        gc.collect()
        if torch.cuda.is_initialized():  # a stage that only starts commands must not open the device: they are forked
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def write_json(path: Path, value: Any) -> None:
    """Replace a file at once, so that whoever ends this process leaves a whole one."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1))
    part.replace(path)


def sync() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak_gib() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0.0


def llama(dtype: torch.dtype = torch.float32, attention: str = "sdpa", **shape: int) -> LlamaForCausalLM:
    """Build random weights where they will be used: seconds instead of minutes."""
    config = LlamaConfig(
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **shape,
    )
    config._attn_implementation = attention
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(DEVICE):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def batch_of(pairs: int, prompt: int, response: int, vocabulary: int, seed: int = 0) -> PairBatch:
    """Build pairs whose lengths lie within half of the given ones."""
    generator = torch.Generator().manual_seed(seed)

    def ids_of(size: int) -> torch.Tensor:
        length = max(2, int(size * (0.5 + torch.rand((), generator=generator))))
        return torch.randint(3, vocabulary, (length,), generator=generator)

    rows = [(ids_of(prompt), ids_of(response), ids_of(response)) for _ in range(pairs)]
    width = max(len(prompt) + max(len(side) for side in sides) for prompt, *sides in rows)
    ids = torch.zeros(pairs, 2, width, dtype=torch.long)
    attention, mask = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt_ids, *sides) in enumerate(rows):
        for side, response_ids in enumerate(sides):
            end = len(prompt_ids) + len(response_ids)
            ids[row, side, :end] = torch.cat([prompt_ids, response_ids])
            attention[row, side, :end] = True
            mask[row, side, len(prompt_ids) : end] = True
    return PairBatch(ids, attention, mask, mask.new_zeros(pairs, 2), torch.ones(pairs), torch.arange(pairs))


def command(*words: str) -> str:
    """Run ``python -m lit_align *words`` in a forked child, which has nothing left to import.

    Where this process has opened the device, a forked child could not use it: the command is a process of its own.
    """
    out = PARTS / f"command-{os.getpid()}.txt"
    if torch.cuda.is_initialized():
        with out.open("w") as file:
            code = subprocess.call([sys.executable, "-m", "lit_align", *words], stdout=file, stderr=file)
    else:
        child = os.fork()
        if not child:
            _run_and_exit(words, out)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = out.read_text(errors="replace")
    if code:
        raise RuntimeError(f"exit code {code}: {text[-400:]}")
    return text


def _run_and_exit(words: tuple[str, ...], out: Path) -> None:
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)

    def work() -> None:
        from lit_align.cli import main as run

        sys.argv = ["lit_align", *words]
        run()

    streams = [os.fdopen(number, "w", buffering=1) for number in (1, 2)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):  # the others are kept: dropped, they close these
        exit_after(work)


def exit_after(work: Callable[[], object]) -> NoReturn:
    """Call a function and end the process, a forked child that must not return into its parent's code."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
