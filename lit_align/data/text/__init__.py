"""From text to token ids: tokenizer, chat template, rendering, truncation."""
