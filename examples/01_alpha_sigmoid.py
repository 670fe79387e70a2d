"""The gate: alpha_sigmoid turns a score s into p, how much of a token is kept. Training sharpens it by raising alpha.

Watch for: a blank is exactly 0 and a full block exactly 1. The logistic function (alpha = 1) never gets there, so it
never frees a slot. From alpha > 1 on the gate is exactly shut where s <= -1/(alpha-1), and that edge moves in towards
0 until, at alpha = inf, the gate is a step: kept if s > 0, else dropped (a tie too).
"""

import math

import numpy as np

from dcp_ref import alpha_sigmoid
from dcp_ref.sigmoid import log_derivative

alphas = [1, 1.25, 1.5, 2, 3, 4, 8, 64, math.inf]
s = np.linspace(-3, 3, 61)  # [S], float64
print(f"p = alpha_sigmoid(s, alpha), s [{s.size}] from {s[0]:g} to {s[-1]:g}\n")

for alpha in alphas:
    p = alpha_sigmoid(s, alpha)  # [S]
    curve = "".join(" " if x == 0 else "█" if x == 1 else "▁▂▃▄▅▆▇"[int(7 * x)] for x in p)
    print(f"alpha {alpha:<5g}|{curve}|  exactly 0: {(p == 0).mean():4.0%}   exactly 1: {(p == 1).mean():4.0%}")
print(f"{'s = -3':>14}{'0':>28}{'3':>30}\n")

print("The same in numbers; p(s) + p(-s) = 1, but for the step's tie:\n")
few = np.array([-1, -0.4, -0.2, -0.1, 0, 0.1, 0.2, 0.4, 1])  # [9]
print("alpha \\ s" + "".join(f"{x:8.1f}" for x in few) + "     edge 1/(alpha-1)")
for alpha in alphas:
    p = alpha_sigmoid(few, alpha)  # [9]
    edge = math.inf if alpha == 1 else 1 / (alpha - 1)
    print(f"{alpha:<9g}" + "".join(f"{x:8.4f}" for x in p) + f"{edge:12.4f}")

print("\nBetween the edges p solves p^(alpha-1) - (1-p)^(alpha-1) = (alpha-1) s. What is left over with p put in:\n")
for alpha in alphas[1:-1]:
    inside = s[np.abs(s) < 1 / (alpha - 1)]  # [fewer]
    p = alpha_sigmoid(inside, alpha)
    left_over = p ** (alpha - 1) - (1 - p) ** (alpha - 1) - (alpha - 1) * inside
    print(f"alpha {alpha:<5g}  {inside.size:2d} scores inside   largest left-over {np.abs(left_over).max():.1e}")

print("\nThe slope dp/ds that training follows: steep between the edges, exactly 0 beyond them. A shut gate learns")
print("nothing (other pairs, which share its weights, may still open it); at alpha = inf no gate does.\n")
for alpha in [1, 1.5, 2, 4, 8, math.inf]:
    p = alpha_sigmoid(s, alpha)  # [S]
    slope = p * log_derivative(p, alpha)  # [S]
    height = slope / max(slope.max(), 1e-9)
    picture = "".join(" " if x == 0 else "▁▂▃▄▅▆▇█"[min(7, int(8 * x))] for x in height)
    print(f"alpha {alpha:<5g}|{picture}|  highest {slope.max():7.3f}")
