"""Every tolerance of the suite, each with its reason."""

import numpy as np

# KVCache and NativeCache against float64 or each other: float32 sums of at most a few dozen terms of size 1.
CACHE_ATTENTION = {"rtol": 1e-5, "atol": 1e-5}

# Training in float32 against float64 or another order of summing: a few roundings of numbers near 1.
TRAINING_FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}
# Perplexity in float64 against the loss in float64: the same sum in another order.
PERPLEXITY_FLOAT64 = {"rtol": 1e-12, "atol": 0}
GOLDEN = 1e-6  # of the largest entry: the official code's own bisection is good to about 1e-7
HF_FLOAT32 = 1e-5  # of the largest entry: float32 rounding over two layers
PROJECTION = 1e-6  # a central difference in float64 with a step of 1e-6 rounds to about 1e-9 of the loss / step
SIGMOID = {np.float32: 6e-8, np.float64: 2e-16}  # p is rounded once, and 1 - p once more
SIGMOID_SLOPE = 1e-4  # a fourth-order difference close to the edges of the support
SCORE_MARGIN = 1e-4  # scores and logits of these models carry a rounding error of about 1e-6
THEOREM_LOGITS = {"rtol": 1e-3, "atol": 1e-4}  # float32 through three layers with large weights, in another order
TINY_LOGITS = {"rtol": 1e-3, "atol": 5e-4}  # logits of size 10 through four layers in float32, in another order
TINY_MARGIN = 2e-5  # scores of size 10 in float32 through four layers differ by less than 1e-5
# Kernels in C against their twins: sums of n float32 terms of size 1 in another order (n below 1,200), and, for the
# activations, e^x to 2 units in the last place.
KERNEL_SUM = {"rtol": 1e-5, "atol": 2e-5}
KERNEL = {"rtol": 2e-6, "atol": 2e-6}
# Of gelu at -1e30: NumPy's tanh is exactly -1 there, and C divides by e^88 = 1.7e38.
GELU_FAR = 1e-6
# Both backends with the same stored weights, by how keys and values are stored: (how far |s| must be from 0, logits).
# A number next to the middle between two stored ones may go either way: then a key or a value is off by 2^-11 of itself
# in float16, by 1 / 127 of the largest of its head in int8. In 1,500 random models that moved logits by up to 0.04%.
STORED = {
    "float32": (1e-4, {"rtol": 1e-3, "atol": 1e-4}),
    "float16": (3e-3, {"rtol": 5e-3, "atol": 5e-3}),
    "int8": (1e-2, {"rtol": 2e-2, "atol": 2e-2}),
}
# The kernels of training: sums of up to 100 products of size 1, over weights that are exponentials, in another order.
TRAINING_KERNELS = {"rtol": 2e-5, "atol": 2e-5}
# A log mask in float32 lies between those of scores one rounding below and above, but for its own roundings: a share.
LOG_MASK = (1 + 2e-5, 1 - 2e-5)
# Nats through the cache against the dense forward: float32 logits of size 10 in another order.
EVALUATED = {"rtol": 1e-4, "atol": 1e-4}
