"""Measuring a model: what it predicts, and how much context it keeps for that.

Read likelihood.py (nats through the cache), windows.py (texts side by side), perplexity.py (a text), then sweep.py,
which compares rules, with calibration.py (how large each rule must be, or at which threshold, to keep a given share)
and sweep_plot.py. tasks.py and zero_shot.py are the zero-shot tasks; lm_eval.py is a model for
lm-evaluation-harness. texts.py reads what is measured on; table.py prints.
"""
