"""A pruned cache to begin with: a list of live tokens, which is compacted at every drop.

    dcp-ref conformance mine:MyCache

Replace the two marked parts with your kernel; docs/testing.md goes through it.
"""

import numpy as np


class MyCache:
    """One list of live tokens for each sequence and layer."""

    # What of the specification this cache can do; take out what it cannot. docs/testing.md has more names.
    supports = frozenset({"decode", "prompts", "ragged", "fork", "release", "threshold", "int_delay",
                          "propagate_in_depth"})
    expected_failures: dict[str, str] = {}  # noqa: RUF012 - a check that is known to fail, and why
    page_slots = None  # tokens in a page, where there are pages: then histories are long enough to cross them
    dtype = "float32"  # of your arithmetic

    @classmethod
    def make(cls, config, policy, threshold=0.0):
        """A new cache: config.n_layer, n_head, n_embd, int_n_embd (r), int_delay, propagate_in_depth, n_positions."""
        cache = cls()
        cache.config, cache.threshold, cache.sequences = config, threshold, []
        return cache

    def new(self):
        """A handle, of any type, of a new sequence."""
        config, r = self.config, self.config.int_n_embd
        widths = {"k": config.n_embd, "v": config.n_embd, "k_int": r}
        empty = {name: np.zeros((0, n), np.float32) for name, n in widths.items()}
        empty |= {"position": np.zeros(0, int), "seen": 0}
        self.sequences.append([dict(empty) for _ in range(config.n_layer)])
        return len(self.sequences) - 1

    def fork(self, handle):
        """A sequence of its own with the same tokens."""
        self.sequences.append([dict(layer) for layer in self.sequences[handle]])
        return len(self.sequences) - 1

    def release(self, handle):
        """The handle is not used again."""
        self.sequences[handle] = None

    def live(self, handle, layer):
        """Positions of the live tokens, ascending."""
        return self.sequences[handle][layer]["position"]

    def step(self, layer, batch, q, k, v, q_int, k_int, beta, inherited):
        """One layer of a step. batch: (handle, number of rows) of each sequence; the rows of the first come first.

        q, k, v [N, C], q_int, k_int [N, r]; inherited [n, 2]: (row, position) of what the layer before dropped.
        Returns out [N, C], and the (row, position) of each token that left this layer.
        """
        out, dropped, row = np.zeros_like(q), [], 0
        for handle, count in batch:
            tokens = self.sequences[handle][layer]
            for _ in range(count):
                gone = np.isin(tokens["position"], inherited[inherited[:, 0] == row, 1])
                gone |= self.drops(tokens, q_int[row], beta)
                dropped += [(row, position) for position in tokens["position"][gone]]
                new = {"k": k[row], "v": v[row], "k_int": k_int[row], "position": tokens["seen"]}
                for name, x in new.items():
                    tokens[name] = np.append(tokens[name][~gone], [x], axis=0)
                tokens["seen"] += 1
                out[row] = self.attend(tokens, q[row], layer)
                row += 1
        return out, np.array(dropped, int).reshape(-1, 2)

    def drops(self, tokens, q_int, beta):
        """Your kernel: which live tokens leave. A tie or a NaN drops; int_delay steps are safe."""
        s = tokens["k_int"] @ q_int / np.sqrt(np.float32(len(q_int))) + np.float32(beta)
        safe = tokens["seen"] - tokens["position"] <= self.config.int_delay
        return ~(s > self.threshold) & ~safe

    def attend(self, tokens, q, layer):
        """Your kernel: softmax(q k^T / sqrt(D)) v over the live tokens, head by head."""
        heads = (x.reshape(len(x), self.config.n_head, -1).swapaxes(0, 1) for x in (q[None], tokens["k"], tokens["v"]))
        q, k, v = heads
        a = q @ k.swapaxes(1, 2) * np.float32(self.config.attention_scale(layer))
        weights = np.exp(a - a.max(-1, keepdims=True))
        return (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(0, 1).ravel()
