"""Measuring models: what they predict, and how much context they keep for it.

perplexity.evaluate measures a text, sweep.measure many rules on it, zero_shot.answer a task's questions; lm_eval is the
engine as a model of lm-evaluation-harness.
"""
