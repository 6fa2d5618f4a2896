"""On which tokens: text sources, the tokenizer, canonical streams, packed rows and the loader."""
