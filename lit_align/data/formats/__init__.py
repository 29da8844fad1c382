"""What the columns of a raw row mean: pairs, conversations, rankings, single responses, prompts."""
