"""From texts to token ids: tokenizer, chat template, truncation."""
