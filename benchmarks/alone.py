"""Rows in which no rival takes part: ours with and without dropping, its parts alone, and its memory.

`pruning`: a step waits for weights and for keys and values; dropping shortens only the second wait. A step of `batch`
rows should take

    t = max(weight bytes / bandwidth, 2 * weights * batch / rate) + bytes of live keys and values / bandwidth

where `rate` is that of the matrix products alone with as many rows; bandwidth and rate are of the same run. The
predicted speed-up is t with nothing dropped / t with 80% dropped.
"""

from bandwidth import readers
from contest import held, kernel_reader
from rivals import THREADS

from dcp_ref.bench import parts
from dcp_ref.bench.decoding import sweep
from dcp_ref.bench.timing import interleaved
from dcp_ref.runtime.precision import MATRICES

CONTEXTS, SHARES = (64, 256, 512, 900), (0.0, 0.5, 0.8, 0.9)


def calls(timings):
    return {name: timing.calls for name, timing in timings.items()}


def pruning(setting, batch):
    """Seconds of a step with 0% and with 80% dropped, seconds of its matrix products alone, and the bytes read."""
    ours = {name: setting.decoding(name, batch, 880) for name in ("0% dropped", "80% dropped")}
    before = {name: decoding.engine.stats().live_tokens for name, decoding in ours.items()}
    linears = parts.Linears(parts.packed(setting.model), batch, THREADS)
    contenders = {name: decoding.step for name, decoding in ours.items()} | {"linear": linears.step}
    timings = interleaved(contenders, setting.rounds, pause=0.01, title=f"batch {batch}")
    facts = {name: held(decoding, before[name]) for name, decoding in ours.items()}
    return {"batch": batch, "calls": calls(timings), "ours": facts, "weight_bytes": setting.weight_bytes()}


def attention(setting):
    """Seconds and bytes of all layers' attention alone, batch 32, and of each memory reader in the same rounds."""
    rounds = 32  # the slots of a page: so the last page is filled to every degree once
    alone = {str(live): parts.Attention(setting.config, 32, live, rounds + 1, threads=THREADS)
             for live in (256, 896)}
    first = {live: one.bytes_read for live, one in alone.items()}
    with readers(THREADS, kernel=kernel_reader()) as reading:
        contenders = {live: one.step for live, one in alone.items()}
        contenders |= {name: call for name, (call, _) in reading.items()}
        timings = calls(interleaved(contenders, rounds, pause=0.01, title="attention"))
    return {"live": {live: {"calls": timings[live], "bytes": (first[live] + one.bytes_read) / 2}
                     for live, one in alone.items()},
            "readers": {name: {"calls": timings[name], "bytes": size} for name, (_, size) in reading.items()}}


def linear(setting):
    """Seconds, bytes and FLOPs of all matrix products alone, ours and NumPy's; a prompt's 880 rows leave out the head.

    The pause lets the threads of one fall asleep before the other begins.
    """
    matrices = parts.packed(setting.model)
    products = {rows: parts.Linears(matrices, rows, THREADS, head=rows < 880) for rows in (1, 8, 32, 64, 880)}
    contenders = {str(rows): product.step for rows, product in products.items()}
    contenders |= {f"numpy {rows}": numpy_products(setting, products[rows], head=rows < 880) for rows in (32, 880)}
    timings = interleaved(contenders, setting.rounds, title="linear")
    return {"calls": calls(timings), "bytes": products[1].bytes_read,
            "flops": {str(rows): product.flops for rows, product in products.items()}}


def numpy_products(setting, linears, head):
    """A call that multiplies the same rows with the same matrices in NumPy."""
    params = setting.model.params
    matrices = [params[f"h.{i}.{name}.weight"] for i in range(setting.config.n_layer) for name in MATRICES]
    matrices += [params["wte.weight"].T] * head

    def run():
        for w in matrices:
            linears.x[len(w)] @ w

    return run


def scoring(setting):
    """Seconds of a step with scores that drop nothing, and of one without scores, batch 32."""
    ours = {name: setting.decoding(name, 32, 880) for name in ("no scores", "0% dropped")}
    contenders = {name: decoding.steps(2) for name, decoding in ours.items()}
    return {"calls": calls(interleaved(contenders, 6 * setting.rounds, pause=0.01, title="scoring"))}


def cache_bytes(setting):
    """Bytes of the pages that the cache owns right after a prompt of 900 tokens, batch 32."""
    ours = {name: setting.decoding(name, 32, 900) for name in ("no scores", "80% dropped")}
    return {"bytes": {name: decoding.cache_bytes for name, decoding in ours.items()},
            "share_dropped": ours["80% dropped"].share_dropped}


def rss(setting):
    """The peak memory of a process that loads the model and decodes one sequence after 64 tokens."""
    return {"rss": parts.peak_rss(setting.model, 64, THREADS),
            "weight_bytes": sum(x.nbytes for x in setting.model.params.values())}


def lengths(setting):
    """What `dcp-ref bench` measures, at batch 32; the plot shows it."""
    points = [point for context in CONTEXTS
              for point in sweep(setting.model, context, SHARES, 32, setting.rounds, threads=THREADS)]
    return {"points": [point._asdict() for point in points]}
