"""A memory of what was dropped: each query may also attend to the m dropped tokens with the largest q . k.

    python examples/studies/beyond/recall.py --text valid.txt.xz --windows 32

This is no way to save memory: it is what perfect retrieval by keys would do that fetches m dropped tokens for a query,
from a disk or by an index. Each head chooses its own. Nothing is trained, and fetched tokens stay dropped.
Watch for: whether the columns come closer to "all", which is attention to everything, or go away from it.
"""

import argparse
import math

import numpy as np

from dcp_ref import forward, load, policies
from dcp_ref.analysis import calibration
from dcp_ref.analysis.texts import read_tokens
from dcp_ref.layers import softmax
from dcp_ref.native import training as native
from dcp_ref.training import data
from dcp_ref.training.step import share_kept

PASSAGE = """The old man looked at the sea for a long time, and said nothing. His daughter had gone to the village with
the boat, and the wind was rising. "She will be back before dark," said Mr. Harris at last. "She knows these waters
better than you or I." But the old man shook his head; he had seen that sky before, and he did not like it."""
KERNELS = native.kernels(threads=1)


def with_recall(m: int):
    """An attention for `forward`, where each head of a query also sees the m dropped tokens with the largest logits."""
    def attention(q, k, v, log_i, scale):  # [B, H, T, D] x 3, [B, T, T] -> [B, H, T, D]
        past = np.tri(q.shape[-2], dtype=bool)
        seen = np.broadcast_to((past & (log_i > -np.inf))[:, None], (*q.shape[:-1], q.shape[-2]))
        a = q @ k.swapaxes(-1, -2) * scale  # [B, H, T, T]
        if m:
            lost = np.where(past & ~seen, a, -np.inf)
            n = min(m, a.shape[-1])
            least = np.partition(lost, -n, -1)[..., -n, None]  # the m-th largest; -inf where fewer were dropped
            seen = seen | ((lost >= least) & (lost > -np.inf))
        p, _ = softmax(np.where(seen, a, -np.inf).astype(q.dtype))
        return p @ v, None

    return attention


def measured(model, ids, targets, attention, **rule):  # [B, T] x 2
    """The mean loss in nats of each window [B], and the share kept."""
    losses, shares = [], []
    for row, wanted in zip(ids, targets, strict=True):
        found = forward(model.params, row[None], model.config, kernels=KERNELS._replace(attention=attention), **rule)
        losses.append(float(KERNELS.cross_entropy(found.logits, wanted[None])[0]))
        shares.append(share_kept(found, model.config))
    return np.array(losses), float(np.mean(shares))


def rules(T, shares, thresholds):
    """For each line of the table: its name, and forward's arguments."""
    for share in shares:
        size = min(range(2, T + 1), key=lambda n: abs(calibration.share_of(policies.window(n), np.ones(T)) - share))
        sinks = min(4, size // 2)
        policy = policies.sinks(sinks, size - sinks)
        yield str(policy), {"policy": policy}
    for threshold in thresholds:
        yield f"learned at {threshold:g}", {"threshold": threshold}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="tiny")
    p.add_argument("--text", nargs="+", help="text files (default: a passage of three sentences)")
    p.add_argument("--windows", type=int, default=8, help="windows of n_positions tokens, drawn at random")
    p.add_argument("--seed", type=int, default=0, help="seed of the windows")
    p.add_argument("--shares", type=float, nargs="*", default=[0.5, 0.2, 0.1, 0.05], help="kept by sinks and a window")
    p.add_argument("--thresholds", type=float, nargs="*", help="of the learned rule (default: 0, if there is one)")
    p.add_argument("--fetched", type=int, nargs="+", default=[1, 4, 16], help="m, dropped tokens for each query")
    args = p.parse_args()
    model = load(args.model)
    tokens = read_tokens(model, args.text) if args.text else np.array(model.tokenizer.encode(PASSAGE))
    T = min(model.config.n_positions, len(tokens) - 1)
    if T < 8:
        p.error(f"--text {' '.join(args.text)}: {len(tokens)} tokens are too few, give a longer text")
    starts = np.random.default_rng(args.seed).integers(0, len(tokens) - T, args.windows if args.text else 1)
    ids, targets = data.windows(tokens, starts, T)
    learned = model.config.int_n_embd is not None
    thresholds = [0.0] * learned if args.thresholds is None else args.thresholds
    fetched = [0, *args.fetched, T]
    print(f"{args.model}, {len(ids)} windows of {T} tokens, seed {args.seed}: perplexity\n")
    print("| rule | kept | none | " + " | ".join(f"m = {m}" for m in args.fetched) + " | all | share regained |")
    print("| --- | ---: |" + " ---: |" * len(fetched) + " --- |")
    for name, rule in rules(T, args.shares, thresholds):
        found = [measured(model, ids, targets, with_recall(m), **rule) for m in fetched]
        nats = [float(loss.mean()) for loss, _ in found]
        lost = nats[0] - nats[-1]  # by dropping; below 0 if the model is better without what it dropped
        regained = ", ".join(f"{(nats[0] - n) / lost:.0%}" for n in nats[1:-1]) if lost > 0 else "nothing was lost"
        cells = " | ".join(f"{math.exp(n):.2f}" for n in nats)
        print(f"| {name} | {found[0][1]:.1%} | {cells} | {regained} |")


if __name__ == "__main__":
    main()
