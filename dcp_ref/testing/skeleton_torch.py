"""A pruned cache to begin with, in torch: all tokens stay where they are, and a boolean mask says which are live.

    dcp-ref conformance mine:MyCache

A step of several rows is one call for all of them: scores [n, S], the mask as a cumulative "and", masked attention.
"""

import torch


class MyCache:
    """For each sequence and layer, tensors with room for n_positions tokens, and the mask of the live ones."""

    supports = frozenset({"decode", "prompts", "ragged", "fork", "release", "threshold", "int_delay",
                          "propagate_in_depth"})
    expected_failures: dict[str, str] = {}  # noqa: RUF012 - a check that is known to fail, and why
    page_slots = None
    dtype = "float32"

    @classmethod
    def make(cls, config, policy, threshold=0.0):
        """A new cache for models of this shape."""
        cache = cls()
        cache.config, cache.threshold, cache.sequences = config, threshold, []
        return cache

    def new(self):
        """A handle of a new sequence."""
        config = self.config
        widths = {"k": config.n_embd, "v": config.n_embd, "k_int": config.int_n_embd}
        self.sequences.append([
            {name: torch.zeros(config.n_positions, n) for name, n in widths.items()}
            | {"live": torch.zeros(config.n_positions, dtype=torch.bool), "seen": 0} for _ in range(config.n_layer)])
        return len(self.sequences) - 1

    def fork(self, handle):
        """A sequence of its own with the same tokens."""
        self.sequences.append([{name: x.clone() if torch.is_tensor(x) else x for name, x in layer.items()}
                               for layer in self.sequences[handle]])
        return len(self.sequences) - 1

    def release(self, handle):
        """The handle is not used again."""
        self.sequences[handle] = None

    def live(self, handle, layer):
        """Positions of the live tokens: slots are positions here."""
        return self.sequences[handle][layer]["live"].nonzero()[:, 0]

    def step(self, layer, batch, q, k, v, q_int, k_int, beta, inherited):
        """One layer of a step: out [N, C], and the (row, position) of each token that left this layer."""
        q, k, v, q_int, k_int, inherited = map(torch.from_numpy, (q, k, v, q_int, k_int, inherited.copy()))
        outs, dropped, first = [], [], 0
        for handle, count in batch:
            rows = slice(first, first + count)
            mine = inherited[(inherited[:, 0] >= first) & (inherited[:, 0] < first + count)] - torch.tensor([first, 0])
            out, gone = self.rows(self.sequences[handle][layer], layer, q[rows], k[rows], v[rows], q_int[rows],
                                  k_int[rows], beta, mine)
            outs.append(out)
            dropped.append(gone + torch.tensor([first, 0]))
            first += count
        return torch.cat(outs), torch.cat(dropped)

    def rows(self, tokens, layer, q, k, v, q_int, k_int, beta, inherited):
        """Your kernel: the next n tokens of one sequence. Returns out [n, C] and the pairs (row, position)."""
        n, seen = len(q), tokens["seen"]
        tokens["seen"] = S = seen + n
        for name, x in (("k", k), ("v", v), ("k_int", k_int)):
            tokens[name][seen:S] = x
        i, j = torch.arange(seen, S)[:, None], torch.arange(S)
        s = q_int @ tokens["k_int"][:S].T / q_int.shape[1] ** 0.5 + beta  # [n, S]
        keep = (s > self.threshold) | (i - j <= self.config.int_delay)  # a NaN is not > threshold
        keep[tuple(inherited.T.long())] = False
        before = torch.cat([tokens["live"][:seen], torch.ones(n, dtype=torch.bool)])
        live = torch.cat([before[None], (keep | (i <= j)).cummin(0).values & before])  # [1 + n, S]
        gone = (live[:-1] & ~live[1:]).nonzero()
        tokens["live"][:S] = live[-1]
        visible = live[1:] & (j <= i)
        heads = (x.view(len(x), self.config.n_head, -1).transpose(0, 1) for x in (q, tokens["k"][:S], tokens["v"][:S]))
        q, k, v = heads
        a = (q @ k.transpose(1, 2) * self.config.attention_scale(layer)).masked_fill(~visible, -torch.inf)
        return (a.softmax(-1) @ v).transpose(0, 1).reshape(n, -1), gone
