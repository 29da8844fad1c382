"""The policy before any training: a tokenizer in which every word of the world is one token, and a tiny Llama."""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_align.testbed.preferences import Row
from lit_align.testbed.world import COMPLETE

VOCABULARY = 1024
PAD, BOS, EOS, TURN = "<|pad|>", "<|bos|>", "<|eos|>", "<|turn|>"
SPECIAL = (PAD, BOS, EOS, TURN)
"""Special tokens; their ids are their places here."""
CONTEXT = 512

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|turn|>' + message['role'] + '\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}"
)
"""ChatML with the end-of-sequence token at the end of each turn."""


def train_tokenizer(rows: Iterable[Row]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the rows' texts; it begins a prompt with the beginning-of-sequence token."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        show_progress=False,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    texts = (f"{COMPLETE} {row['prompt']}{row[side]}" for row in rows for side in ("chosen", "rejected"))
    inner.train_from_iterator(texts, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, SPECIAL.index(BOS))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def blank_policy(seed: int = 0) -> LlamaForCausalLM:
    """An untrained Llama of half a million parameters, leaving the global random state as it was.

    The spread of the initial weights, wider than Llama's 0.02, is what lets copying form within a few hundred steps.
    """
    pad, bos, eos = (SPECIAL.index(token) for token in (PAD, BOS, EOS))
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.07,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def write_blank_policy(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> None:
    """Writes the untrained policy with its tokenizer, as a folder that ``from_pretrained`` loads."""
    blank_policy(seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
