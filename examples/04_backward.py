"""Is the backward pass right? Take a step along any direction u: the loss must change as <gradient, u> says.

The difference quotient (loss(p + h u) - loss(p - h u)) / 2h needs only the forward pass. It is off by about h^2, and
by rounding divided by h. One direction in all parameters checks everything at once, one in a single tensor tells where
a fault is.
Watch for: the error falls a hundredfold with each smaller h, then rounding takes over. With one tensor's gradient
negated it stays where it is, however small h gets.
"""

import math

import numpy as np

from dcp_ref import Config, forward, loss_and_grads
from dcp_ref.checkpoints import weights

config = Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, int_n_embd=4, propagate_in_depth=True)
alpha, gamma = 1.5, 0.1  # at 1.5 the gates have no kinks: the error of the quotient is h^2 everywhere
rng = np.random.default_rng(0)
params = {name: 0.5 * rng.normal(size=shape) for name, shape in weights.shapes(config).items()}  # float64
for name in params:
    params[name] += name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))
ids = rng.integers(0, config.vocab_size, (2, 8))  # [B, T]
targets = np.roll(ids, -1, axis=1)  # [B, T]
targets[:, -1] = -1  # nothing comes after the last token


def loss_at(h, u):
    moved = {name: params[name] + h * u[name] for name in params}
    return loss_and_grads(moved, ids, targets, config, alpha, gamma)[0].total


loss, grads = loss_and_grads(params, ids, targets, config, alpha, gamma)
gates = forward(params, ids, config, alpha).interaction[..., np.tri(8, k=-1) == 1]  # [L, B, pairs]
n_params = sum(g.size for g in grads.values())
print(f"ids {ids.shape}, {n_params} parameters in {len(grads)} tensors, alpha {alpha}")
print(f"loss {loss.total:.4f} = cross-entropy {loss.cross_entropy:.4f} + {gamma} * sparsity {loss.sparsity:.4f}")
print(f"masks: {(gates == 0).mean():.0%} exactly 0, {(gates == 1).mean():.0%} exactly 1, the rest between\n")

u = {name: rng.normal(size=p.shape) / math.sqrt(n_params) for name, p in params.items()}  # length about 1
exact = sum((grads[name] * u[name]).sum() for name in params)  # <gradient, u>
wrong = exact - 2 * (grads["h.0.attn.q_int.weight"] * u["h.0.attn.q_int.weight"]).sum()  # one sign flipped
print(f"One direction in all parameters: <gradient, u> = {exact:.8f}\n")
print("     h   quotient       relative error (log scale)         ... with W_q_int's gradient negated")
for h in 10.0 ** -np.arange(1, 11):
    quotient = (loss_at(h, u) - loss_at(-h, u)) / (2 * h)
    error, error_wrong = abs(quotient / exact - 1), abs(quotient / wrong - 1)
    bar, bar_wrong = ("█" * max(0, round(2 * (math.log10(e + 1e-16) + 12))) for e in (error, error_wrong))
    print(f"{h:.0e}   {quotient:.8f}   {error:.0e} {bar:<24}   {error_wrong:.0e} {bar_wrong}")

print("\nOne direction in one tensor at a time, h = 1e-5, first layer:\n")
print(f"{'tensor':24}{'shape':10}{'<gradient, u>':>13}{'quotient':>13}   relative error")
for name in [name for name in params if name.startswith("h.0.")]:
    only = {other: u[other] * (other == name) for other in params}
    exact, quotient = (grads[name] * u[name]).sum(), (loss_at(1e-5, only) - loss_at(-1e-5, only)) / 2e-5
    print(f"{name:24}{grads[name].shape!s:10}{exact:13.8f}{quotient:13.8f}   {abs(quotient / exact - 1):.0e}")
