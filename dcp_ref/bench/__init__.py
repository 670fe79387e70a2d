"""How long decoding takes: what `dcp-ref bench` and benchmarks/ share.

Read timing.py (contenders side by side), decoding.py (models that drop a given share), comparison.py (where pruning
pays, and the plot), then parts.py (attention and matrix products alone).
"""
