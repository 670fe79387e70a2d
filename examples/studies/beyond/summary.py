"""A summary of what was dropped: each layer keeps one more key and value, the mean of the dropped tokens'.

    python examples/studies/beyond/summary.py --text valid.txt.xz --windows 32

Token i attends to the live tokens and to the summary of those that have been dropped by then. The summary's logit is
q . mean(k) * scale + log(count): if all dropped keys were equal, this would be exactly what attention to all of them
gives. Nothing is trained. A cache would hold it exactly: sums of k and v, and a count, to which each drop adds.
By attention: a dropped token counts by the share of attention that it got from the rows that it was live for.
Watch for: "none, one more": the rule with room for one more token, which is what the summary costs.
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


def with_summary(weighted: bool, counted: bool):
    """An attention for `forward`, with one more key and value for all tokens that were dropped.

    weighted: the mean is by the attention that each token got while it was live; counted: log(count) is the bias.
    """
    def attention(q, k, v, log_i, scale):  # [B, H, T, D] x 3, [B, T, T] -> [B, H, T, D]
        past = np.tri(q.shape[-2], dtype=bool)
        live = past & (log_i > -np.inf)
        dropped = (past & ~live)[:, None].astype(q.dtype)  # [B, 1, T, T]
        a = np.where(live[:, None], q @ k.swapaxes(-1, -2) * scale, -np.inf)  # [B, H, T, T]
        weight = dropped
        if weighted:
            got = softmax(a)[0].cumsum(-2)  # what rows up to i gave to j: of a dropped j, all that it ever got
            weight = dropped * got
        weight = weight / np.maximum(weight.sum(-1, keepdims=True), 1e-30)
        mean_k, mean_v = weight @ k, weight @ v  # of the tokens that are gone when row i attends
        count = np.broadcast_to(dropped.sum(-1), a.shape[:-1])
        with np.errstate(divide="ignore"):
            bias = np.log(count) if counted else np.where(count > 0, 0.0, -np.inf)
        own = (q * mean_k).sum(-1) * scale + bias
        p, _ = softmax(np.concatenate([a, own[..., None]], -1).astype(q.dtype))
        return p[..., :-1] @ v + p[..., -1:] * mean_v, None

    return attention


KINDS = {"none": KERNELS.attention, "mean": with_summary(False, True),
         "mean, no log(count)": with_summary(False, False), "by attention": with_summary(True, True)}


def measured(model, ids, targets, attention, **rule):  # [B, T] x 2
    """The mean loss in nats of each window [B], and the share kept."""
    losses, shares = [], []
    for row, wanted in zip(ids, targets, strict=True):
        found = forward(model.params, row[None], model.config, kernels=KERNELS._replace(attention=attention), **rule)
        losses.append(float(KERNELS.cross_entropy(found.logits, wanted[None])[0]))
        shares.append(share_kept(found, model.config))
    return np.array(losses), float(np.mean(shares))


def rules(model, T, shares, thresholds):
    """For each line of the table: its name, forward's arguments, and those of the same rule with one more token."""
    for share in shares:
        size = min(range(2, T + 1), key=lambda n: abs(calibration.share_of(policies.window(n), np.ones(T)) - share))
        sinks = min(4, size // 2)
        one, more = policies.sinks(sinks, size - sinks), policies.sinks(sinks, size - sinks + 1)
        yield str(one), {"policy": one}, {"policy": more}
    for threshold in thresholds:
        yield f"learned at {threshold:g}", {"threshold": threshold}, None


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="tiny")
    p.add_argument("--text", nargs="+", help="text files (default: a passage of three sentences)")
    p.add_argument("--windows", type=int, default=8, help="windows of n_positions tokens, drawn at random")
    p.add_argument("--seed", type=int, default=0, help="seed of the windows")
    p.add_argument("--shares", type=float, nargs="*", default=[0.5, 0.2, 0.1, 0.05], help="kept by sinks and a window")
    p.add_argument("--thresholds", type=float, nargs="*", help="of the learned rule (default: 0, if there is one)")
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
    dense, _ = measured(model, ids, targets, KERNELS.attention, policy=policies.dense)
    print(f"{args.model}, {len(ids)} windows of {T} tokens, seed {args.seed}: perplexity {math.exp(dense.mean()):.2f} "
          "with nothing dropped\n")
    print("| rule | kept | " + " | ".join(KINDS) + " | none, one more | mean against none |")
    print("| --- | ---: |" + " ---: |" * (len(KINDS) + 2))
    for name, rule, more in rules(model, T, args.shares, thresholds):
        losses = {kind: measured(model, ids, targets, attention, **rule) for kind, attention in KINDS.items()}
        kept = losses["none"][1]
        cells = [f"{math.exp(loss.mean()):.2f}" for loss, _ in losses.values()]
        cells.append("" if more is None else
                     f"{math.exp(measured(model, ids, targets, KERNELS.attention, **more)[0].mean()):.2f}")
        gain = losses["mean"][0] - losses["none"][0]  # window by window
        error = f" ± {100 * gain.std(ddof=1) / math.sqrt(len(gain)):.1f}" if len(gain) > 1 else ""
        print(f"| {name} | {kept:.1%} | {' | '.join(cells)} | {100 * math.expm1(gain.mean()):+.1f}%{error} |")


if __name__ == "__main__":
    main()
