"""The same job on a cluster, by Ray Data (the extra `ray`): parts go to a pool of actors, and their files come back.

Only this process reads the input and writes parts. An actor gets rows and gives the content of a file, so a cluster
needs no shared disk but for the model. When a node is lost, Ray makes its parts again elsewhere; when this process is
lost, the same command goes on.
"""

import pickle
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from typing import Any

import numpy as np

from dcp_ref.corpus.mapper import Mapper, arithmetic
from dcp_ref.corpus.part_files import Made, make
from dcp_ref.corpus.reading import Part

WAVE = 16  # parts for each actor that are given to Ray at once: so much of the input is in the cluster's memory
MISSING = "--ray needs the package ray: pip install 'dcp-ref[ray]'"


class PartMaker:
    """An actor: an engine, and pickled parts in, pickled files out."""

    def __init__(self, factory: Callable[[], Mapper], form: str, computes: dict[str, str]) -> None:
        self.mapper, self.form = factory(), form
        here = arithmetic(self.mapper.engine.backend)
        if here != computes:
            raise RuntimeError(f"this node computes with {here}, but the job began with {computes}: its bits would "
                               "differ; use nodes of one kind, or DCP_SIMD")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        files = [pickle.dumps(make(self.mapper, pickle.loads(part), self.form)) for part in batch["part"]]
        return {"file": np.array(files, object)}


def in_actors(parts: Iterator[Part], mapper: Mapper, form: str, workers: int | None, address: str
              ) -> Generator[Made, None, None]:
    """The parts' files, as they are ready, made by actors of the cluster at `address`; "local" starts one here.

    An actor uses one processor, or the mapper's `threads`; there are `workers`, or as many as the cluster has room for.
    Raises ValueError where Ray is missing, RuntimeError when it fails.
    """
    try:
        import ray
    except ImportError:
        raise ValueError(MISSING) from None
    began = not ray.is_initialized()
    try:
        if began:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        cpus = mapper.settings.get("threads") or 1
        most = workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // cpus)
        arguments = (mapper.maker(), form, arithmetic(mapper.engine.backend))
        while wave := list(islice(parts, WAVE * most)):
            for row in _wave(wave, arguments, min(most, len(wave)), cpus).iter_rows():
                yield pickle.loads(row["file"])
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise RuntimeError(f"Ray: {str(error).strip().splitlines()[-1]}") from error
    finally:
        if began:
            ray.shutdown()


def _wave(parts: list[Part], arguments: tuple[Any, ...], actors: int, cpus: int) -> Any:
    """A dataset of the files of these parts: a block a part, so that a lost node costs the parts it had."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"part": pickle.dumps(part)} for part in parts]
    return ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        PartMaker, batch_size=1, fn_constructor_args=arguments, num_cpus=cpus,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors))
