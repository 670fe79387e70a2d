"""Training on a text file, as the paper does it: a dense model first, which then learns what it can do without.

The text is lines like "the owl sat, the owl ran." To foretell each next animal the model must remember the line's own;
verbs, commas and earlier lines are of no use.
Watch for: in the second run alpha rises from 1 to 8 and little of the context is kept, but perplexity (measured with
the step, alpha = inf) stays near the dense model's. In the picture, what stays is little more than the line's animal.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from dcp_ref import Config, Model, forward, generate, load, save
from dcp_ref.checkpoints import tokenizer, weights
from dcp_ref.training import TrainSettings, train

rng = np.random.default_rng(0)
text = ""
for _ in range(2000):
    animal = rng.choice(["cat", "dog", "fox", "owl"])
    verbs = rng.choice(["ran", "sat", "hid", "ate"], size=rng.integers(2, 5))
    text += ", ".join(f"the {animal} {verb}" for verb in verbs) + ".\n"

tokenizer = tokenizer.Tokenizer.train([text], vocab_size=300)
config = Config(tokenizer.vocab_size, n_positions=64, n_embd=32, n_layer=1, n_head=2, eos_token_id=tokenizer.eos_id)
params = weights.init_params(config, seed=0)
params["wte.weight"] *= 10  # GPT-2's 0.02 suits wide models; one this narrow starts faster from larger embeddings

with tempfile.TemporaryDirectory() as directory:
    file, start, dense, pruned = (f"{directory}/{name}" for name in ("text.txt", "start", "dense", "pruned"))
    Path(file).write_text(text)
    save(Model(config, params, tokenizer), start)
    common = {"text": [file], "context": 32, "micro_batch": 8, "learning_rate": 5e-3, "warmup": 10, "eval_every": 50}
    train(TrainSettings(init=start, out=dense, steps=200, **common), progress=False)
    train(TrainSettings(init=dense, out=pruned, steps=300, prune=True, gamma=0.04, **common), progress=False)
    metrics = {run: Path(run, "metrics.jsonl").read_text().splitlines() for run in (dense, pruned)}
    model = load(pruned)

print(f"{len(text)} characters, {sum(p.size for p in params.values())} parameters, vocabulary {config.vocab_size}\n")
print("run     step  alpha  perplexity                     context kept")
for run, lines in metrics.items():
    for row in map(json.loads, lines):  # one a step; the measurements are in every 50th
        if "share_kept" in row:
            alpha = f"{row['alpha']:.2f}" if "alpha" in row else "-"
            perplexity, share = row["valid_perplexity"], row["share_kept"]
            bars = f"{'█' * min(20, round(5 * (perplexity - 1))):20}   {share:6.1%} {'█' * round(30 * share)}"
            print(f"{Path(run).name:7}{row['step']:5d}{alpha:>7}{perplexity:8.3f} {bars}")

prompt = "the fox ran, the fox hid.\nthe owl sat, the owl ran, the"
ids = np.array([model.tokenizer.encode(prompt)])  # [1, T]
kept = forward(model.params, ids, model.config).interaction[0, 0]  # [T, T]
print(f"\nI {kept.shape} of a text that ends in a question (■ arrives, █ kept, · dropped):\n")
for i, token in enumerate(ids[0]):
    earlier = "".join("█" if kept[i, j] else "·" for j in range(i))
    print(f"{model.tokenizer.decode([token])!r:>8}  {earlier}■")
[answer] = generate(model, [prompt], max_new_tokens=1, temperature=0, backend="numpy")
print(f"\nThe most likely next word:{answer.text}")
