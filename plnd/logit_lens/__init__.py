"""Which language a model's hidden states speak, block by block."""
