"""On a cluster of local nodes, one of which is killed on the way: the same bytes. It needs the extra `ray`."""

import json
import random
import threading
import time

import numpy as np
import pytest
from corpus_tools import LONG, contents, corpus, ended, killed_after, parts_of, saved_model, write
from test_scoring import same
from text_models import text_model

from dcp_ref.corpus import Continuer, Scorer, job, on_ray
from dcp_ref.corpus.job import Job

ray = pytest.importorskip("ray", reason="needs the extra ray")
pytest.importorskip("ray.data", reason="needs the extra ray")
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.skipif(not LONG, reason="takes minutes: make ray")]
DOCUMENTS = 2000
KILLS = 10


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp("model"), text_model())


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write(tmp_path_factory.mktemp("rows") / "corpus.jsonl", corpus(DOCUMENTS))


@pytest.fixture(scope="module")
def scores(model, rows, tmp_path_factory):
    out = tmp_path_factory.mktemp("scores")
    job.run(Job((rows,), out, "1", part_rows=50), Scorer(model))
    return out


@pytest.fixture
def cluster():
    """A head without processors, and two nodes of one."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    found.added = [found.add_node(num_cpus=1) for _ in range(2)]
    found.wait_for_nodes()
    ray.init(address=found.address, log_to_driver=False, logging_level="ERROR")
    yield found
    ray.shutdown()
    found.shutdown()


def on_cluster(rows, out, mapper, **more):
    return job.run(Job((rows,), out, "1", **{"part_rows": 50, "ray": "auto"} | more), mapper)


def test_two_nodes_make_the_same_bytes(cluster, model, rows, scores, tmp_path):
    totals = on_cluster(rows, tmp_path / "out", Scorer(model))
    assert totals.made == DOCUMENTS // 50 and contents(tmp_path / "out") == contents(scores)
    settings = {"max_new_tokens": 8, "temperature": 0.8}
    on_cluster(rows, tmp_path / "ray", Continuer(model, **settings))
    job.run(Job((rows,), tmp_path / "here", "1", part_rows=50), Continuer(model, **settings))
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")


def test_a_node_that_is_killed_changes_no_byte(cluster, model, rows, scores, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "WAVE", 100)
    killed = threading.Event()

    def kill():
        while len(parts_of(tmp_path)) < 5:
            time.sleep(0.01)
        cluster.remove_node(cluster.added[0], allow_graceful=False)
        killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    totals = on_cluster(rows, tmp_path, Scorer(model))
    assert killed.is_set(), "all was done before the node was killed"
    thread.join()
    assert totals.made == DOCUMENTS // 50 and contents(tmp_path) == contents(scores)


def test_killed_and_begun_again(model, rows, scores, tmp_path):
    """The command itself, with a local cluster of its own."""
    arguments = ["score", "--input", rows, "--model", model, "--part-rows", 50, "--ray", "--out"]
    draw, began = random.Random(0), time.monotonic()
    assert ended(*arguments, tmp_path / "whole")[0] == 3
    took = time.monotonic() - began
    for _ in range(KILLS):
        killed_after(draw.uniform(0, took), *arguments, tmp_path / "killed")
        time.sleep(2)  # its cluster ends by itself
    assert ended(*arguments, tmp_path / "killed")[0] == 3
    parts = {file.name: file.read_bytes() for file in parts_of(scores)}
    for out in ("whole", "killed"):
        assert {file.name: file.read_bytes() for file in parts_of(tmp_path / out)} == parts


@pytest.mark.parametrize("mapper", [Scorer, Continuer])
def test_the_classes_run_in_map_batches(cluster, model, mapper):
    table = {"id": np.arange(40), "text": np.array([f"the sea {n}" for n in range(40)], object)}
    rows = [{"id": int(n), "text": text} for n, text in zip(table["id"], table["text"], strict=True)]
    settings = {"model": model, "threads": 1}
    found = ray.data.from_items(rows).map_batches(
        mapper, fn_constructor_kwargs=settings, batch_size=7, num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=2)).take_all()
    expected = mapper(**settings)(table)
    found.sort(key=lambda row: row["id"])
    assert same({name: [row[name] for row in found] for name in expected}, expected)


@pytest.mark.parametrize("mapper", [Scorer, Continuer])
@pytest.mark.parametrize("processes", [None, 2])
def test_the_classes_run_in_datasets_map(model, mapper, processes, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    table = {"id": list(range(40)), "text": [f"the sea {n}" for n in range(40)]}
    function = mapper(model, threads=1)
    found = datasets.Dataset.from_dict(table).map(function, batched=True, batch_size=7, num_proc=processes,
                                                  keep_in_memory=True, load_from_cache_file=False)
    expected = function(table)
    assert [json.dumps(list(found[name])) if name == "ids" else list(found[name]) for name in expected] == [
        json.dumps(list(column)) if name == "ids" else list(map(np.ndarray.tolist, map(np.asarray, column)))
        for name, column in expected.items()]


def test_a_node_of_another_kind_is_refused(cluster, model, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "arithmetic", lambda backend: {"simd": "another"})
    with pytest.raises(RuntimeError, match="Ray"):
        on_cluster(rows, tmp_path, Scorer(model))
