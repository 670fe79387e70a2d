"""The paper's claim at small scale: a model that learned what to drop, beside the same one trained as long without.

    python examples/studies/comparison.py --text train.txt --valid valid.txt --out runs      # hours; again to go on

From one dense model: dense and pruned ones with as many further steps each, several seeds, several strengths (gamma, or
the share to keep). All are then measured token by token through the cache, and so are fixed rules on the dense one.
Watch for: the perplexity of pruned and dense models beside what each keeps, and the spread of the seeds.
Without --text it trains for seconds on the README: every step is there, but the numbers mean nothing.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np

from dcp_ref import Engine, generate, load
from dcp_ref.analysis import perplexity, sweep, texts
from dcp_ref.training import TrainSettings, train

BASE = {"batch": 8, "learning_rate": 2e-3, "warmup": 200}
FURTHER = {"batch": 8, "learning_rate": 1.5e-3, "warmup": 50}
PRUNED = {"prune": True, "alpha_share": 0.8}
TOY = {"config": '{"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 48}', "vocab_size": 300}

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--text", nargs="+", help="text files to train on")
p.add_argument("--valid", nargs="+", default=[], help="text files to validate on (default: the last of the text)")
p.add_argument("--out", default="runs", help="directory of the runs")
p.add_argument("--config", help="config.json of the dense model (default: 4 layers of 128, 512 positions)")
p.add_argument("--base-steps", type=int, default=2000, help="of the dense model that all others start from")
p.add_argument("--steps", type=int, default=2500, help="further steps of each")
p.add_argument("--seeds", type=int, default=3, help="how many dense and pruned models")
p.add_argument("--gammas", type=float, nargs="+", default=[0.1, 0.015, 0.2], help="strengths; the first for all seeds")
p.add_argument("--kept", type=float, nargs="*", default=[0.5], help="shares to keep, gamma steered to each")
args = p.parse_args()


def run(name, **settings):
    """Train one model, or go on with it; returns its directory."""
    print(f"training {name}", flush=True)
    out = Path(args.out, name)
    train(TrainSettings(text=args.text, valid=args.valid, out=out, **settings))
    return out


def everything():
    """Train all; print the comparison."""
    base = run("base", steps=args.base_steps, **BASE, **({"config": args.config} if args.config else {}))
    further = {"init": base, "steps": args.steps, **FURTHER}
    tokens, found = np.load(base / "valid.npy"), {}
    for seed in range(1, args.seeds + 1):
        found["dense", seed] = run(f"dense-{seed}", seed=seed, **further)
    for gamma in args.gammas:
        for seed in range(1, args.seeds + 1 if gamma == args.gammas[0] else 2):
            name = f"gamma-{gamma:g}"
            found[name, seed] = run(f"{name}-{seed}", seed=seed, gamma=gamma, **PRUNED, **further)
    for share in args.kept:
        name = f"kept-{share:g}"
        found[name, 1] = run(f"{name}-1", seed=1, target_kept=share, **PRUNED, **further)
    results = {key: perplexity.evaluate(Engine(load(directory)), tokens, progress=f"measuring {directory.name}")
               for key, directory in found.items()}
    print(f"\n{'model':14}{'seeds':>6}{'kept':>8}{'perplexity':>12}   spread")
    for model in dict.fromkeys(model for model, _ in results):
        of_model = [result for (name, _), result in results.items() if name == model]
        values = [result.perplexity for result in of_model]
        spread = f"{min(values):.2f} .. {max(values):.2f}" if len(values) > 1 else ""
        print(f"{model:14}{len(values):6d}{statistics.mean(r.share_kept for r in of_model):8.1%}"
              f"{statistics.mean(values):12.2f}   {spread}")
    dense = load(found["dense", 1])
    fixed = sweep.Sweep(None, [], ("dense", dense))
    print("\nthe dense model of seed 1 with fixed rules:")
    print(sweep.report(sweep.measure(fixed, tokens, texts.count_bytes(dense, tokens), progress=True)))
    for model in ("dense", f"gamma-{args.gammas[0]:g}"):
        [text] = generate(load(found[model, 1]), ["The "], max_new_tokens=30, seed=1)
        print(f"\n{model} writes: The {' '.join(text.text.split())}")


with tempfile.TemporaryDirectory() as directory:
    if args.text is None:
        args.text, args.out = [str(Path(__file__).parents[2] / "README.md")], directory
        args.base_steps, args.steps, args.seeds = 40, 30, 2
        BASE |= TOY
    everything()
