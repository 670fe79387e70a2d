"""Many documents: rows in, rows out, in the same bits whatever the batch, shard, order, number of workers, or restart.

`Scorer` and `Continuer` are functions of a batch of rows: they run in a loop, in datasets' `map`, in Ray Data's
`map_batches`. Read mapper.py, scoring.py and continuing.py. The job that `dcp-ref score` runs is reading.py (rows in,
cut into parts; unpacking.py reads packed files), part_files.py (parts out), manifest.py (what the parts of a directory
were made with), job.py, and on_ray.py (the same job on a cluster).
"""

from dcp_ref.corpus.continuing import Continuer
from dcp_ref.corpus.scoring import Scorer

__all__ = ["Continuer", "Scorer"]
