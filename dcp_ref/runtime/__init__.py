"""Tokens in, logits and text out.

Read generation.py and row.py (text), engine.py (logits), decoder.py (the layers), then cache.py and live_tokens.py (the
pruned cache). The native room has twins of decoder, cache and kernels; engine.py chooses between them.
"""
