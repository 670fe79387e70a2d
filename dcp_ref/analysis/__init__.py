"""Measuring pruned models: perplexity against the share of context kept, zero-shot tasks."""
