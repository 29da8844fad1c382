"""The testbed's policy: its tokenizer, the tiny Llama before training, and a measurement of how well it summarizes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from lit_align.testbed.preferences import Row
from lit_align.testbed.truth import count_facts
from lit_align.testbed.world import COMPLETE, FILLERS

VOCABULARY = 1024
PAD, BOS, EOS, TURN = "<|pad|>", "<|bos|>", "<|eos|>", "<|turn|>"
SPECIAL = (PAD, BOS, EOS, TURN)
"""Special tokens in the order of their ids."""
CONTEXT = 512

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|turn|>' + message['role'] + '\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}"
)
"""ChatML with the end-of-sequence token at the end of each turn."""


def train_tokenizer(rows: Iterable[Row]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer in which every word is one token; it adds the beginning-of-sequence token."""
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
    """Return an untrained Llama of half a million parameters, without changing the global random state.

    Its initial weights have a larger deviation than Llama's 0.02, so that it learns to copy in a few hundred steps.
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
    """Write the untrained policy and its tokenizer as a folder that ``from_pretrained`` loads."""
    blank_policy(seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Skill:
    """Statistics of a set of responses.

    Args:
        precision: share of correct facts among the distinct facts of the responses.
        coverage: share of the posts' facts that the responses state.
        repeated: repetitions per response.
        filler: filler sentences per response.
        words: words per response.
        score: mean true score.
    """

    precision: float
    coverage: float
    repeated: float
    filler: float
    words: float
    score: float


def measure_skill(prompts: Sequence[str], responses: Sequence[str]) -> Skill:
    """Compare responses with their posts.

    >>> measure_skill(["She plays piano. She keeps bees."], [" She keeps bees."])
    Skill(precision=1.0, coverage=0.5, repeated=0.0, filler=0.0, words=3.0, score=0.85)
    """
    counts = [count_facts(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
    correct = sum(each.correct for each in counts)
    return Skill(
        precision=correct / max(1, correct + sum(each.wrong for each in counts)),
        coverage=correct / max(1, sum(each.stated for each in counts)),
        repeated=sum(each.repeated for each in counts) / len(counts),
        filler=sum(response.count(sentence) for response in responses for sentence in FILLERS) / len(counts),
        words=sum(each.words for each in counts) / len(counts),
        score=sum(each.score for each in counts) / len(counts),
    )


@torch.no_grad()
def respond(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], seed: int = 0
) -> list[str]:
    """Sample a response of at most 128 tokens to each prompt, at temperature 1."""
    encoded = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    longest = max(len(ids) for ids in encoded)
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(row)) + row for row in encoded])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in encoded])
    device = policy.device
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        out = policy.generate(  # type: ignore[operator]
            ids.to(device),
            attention_mask=mask.to(device),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=128,
            pad_token_id=tokenizer.pad_token_id,
        )
    return list(tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True))
