"""The private parts of transformers, and functions of it that are not documented."""

from __future__ import annotations

from datetime import date

import pytest

from lit_align import testbed
from lit_align.compat.transformers import attention_name, template_date
from lit_align.data import load_tokenizer
from lit_align.models import Loading, load_causal_lm
from tests.compat.private_parts import check_private_part

PRIVATE = {
    "transformers:AttentionInterface.register": ("key, value", "lit_align.models.logps.attention"),
    "transformers:AttentionMaskInterface.register": ("key, value", "lit_align.models.logps.attention"),
    "transformers:PreTrainedModel.set_attn_implementation": (None, "lit_align.models.logps.reader"),
    "transformers.masking_utils:sdpa_mask": (None, "lit_align.models.logps.attention"),
    "transformers.integrations.sdpa_attention:sdpa_attention_forward": (None, "lit_align.models.logps.attention"),
}


@pytest.mark.parametrize("path", PRIVATE)
def test_private_parts(path: str) -> None:
    parameters, used_by = PRIVATE[path]
    check_private_part(path, parameters, f"transformers: {used_by}")


def test_a_model_says_which_attention_it_has() -> None:
    model = load_causal_lm(str(testbed.resolve("testbed:policy")), Loading())
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert attention_name(model) == name, "look at lit_align.compat.transformers.attention_name"


def test_a_template_is_told_the_date() -> None:
    tokenizer = load_tokenizer("testbed:policy")

    def written() -> str:
        template = "{{ messages[0].content }} {{ strftime_now('%d %b %Y') }}"
        return str(
            tokenizer.apply_chat_template([{"role": "user", "content": "a"}], chat_template=template, tokenize=False)
        )

    with template_date(date(2024, 7, 26)):
        assert written() == "a 26 Jul 2024", "look at lit_align.compat.transformers.template_date"
    today = date.today()
    assert written() in (f"a {today:%d %b %Y}", f"a {date.today():%d %b %Y}")
    with template_date(None):
        assert "26 Jul 2024" not in written()
