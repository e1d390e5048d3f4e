"""The Hugging Face face: a fused family as one causal language model."""
