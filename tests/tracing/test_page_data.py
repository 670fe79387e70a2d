"""What a page holds, without a browser: sizes, escaping, hashes, and arguments that are refused."""

import base64
import hashlib
import html
import json
import re

import numpy as np
import pytest
from page_tools import TEXTS, random_trace

from dcp_ref.tracing.page import SCRIPTS, SOURCES, page
from dcp_ref.tracing.page_data import HALVED, LEFT_OUT, NO_PARTS, check, compact

ODD = "</script><img src=x onerror=alert(1)>"


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1))


@pytest.mark.parametrize(("T", "L", "r", "most"), [(512, 4, 16, 1_000_000), (1024, 12, 64, 6_000_000)])
def test_a_page_is_small(T, L, r, most):
    text = page([random_trace(T, L, 0, r=r, plain=True)])
    assert len(text.encode()) <= most
    print(f"{T} tokens, {L} layers, rank {r}: {len(text.encode()) / 1e6:.2f} MB")
    assert data_of(text)["traces"][0].get("note") == (None if L == 4 else HALVED)


def test_what_does_not_fit_is_halved_then_left_out():
    trace = random_trace(100, 4, 0, r=16)
    whole = compact(trace)
    size = len(json.dumps(whole, separators=(",", ":")))
    assert whole["interaction"] == trace["interaction"] and "note" not in whole
    half = compact(trace, size - 1)
    assert (half["note"], half["interaction"]["dtype"], half["parts"]["dtype"]) == (HALVED, "float16", "float16")
    q = [np.frombuffer(base64.b64decode(each["interaction"]["q"]), kind)
         for each, kind in [(trace, "<f4"), (half, "<f2")]]
    np.testing.assert_allclose(q[0], q[1], rtol=1e-3, atol=1e-6)
    without = compact(trace, len(json.dumps(half, separators=(",", ":"))) - 1)
    assert (without["note"], without["interaction"]) == (LEFT_OUT, None) and without["parts"]
    least = compact(trace, 1)
    assert (least["note"], least["interaction"], least["parts"]) == (NO_PARTS, None, None)
    assert least["lifetime"] == trace["lifetime"]


def test_what_half_precision_cannot_hold_is_left_out():
    trace = random_trace(5, 1, 0)
    large = base64.b64encode(np.full(20, 1e6, "<f4").tobytes()).decode()
    trace["interaction"] |= {"q": large, "k": large}
    assert compact(trace, 1000)["interaction"] is None


def test_the_data_come_back_as_they_were():
    trace = random_trace(60, 3, 0)
    back = data_of(page([trace]))["traces"][0]
    assert np.array_equal(np.float32(back["drops"]["score"]), np.float32(trace["drops"]["score"]))
    assert {name for name in trace if back[name] != trace[name]} <= {"drops", "counterfactuals", "everything"}


def test_no_text_ends_an_element():
    text = page([random_trace(len(TEXTS), 2, 0, texts=TEXTS, model=ODD, policy=ODD)], title=ODD)
    assert text.count("<script") == text.count("</script>") == 2
    assert ODD not in text and html.escape(ODD) in text
    assert data_of(text)["traces"][0]["texts"] == TEXTS
    text.encode("utf-8")  # no lone surrogate


def test_the_policy_names_the_hashes_of_the_style_and_the_script():
    text = page([random_trace(5, 1, 0)])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1)
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "http" not in policy
    for tag in ("style", "script"):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[-1]
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_the_sources_are_readable_files_all_in_use():
    assert {file.name for file in SOURCES.iterdir()} == {*(f"{name}.js" for name in SCRIPTS), "page.html", "page.css"}
    for file in SOURCES.iterdir():
        lines = file.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 300 and max(map(len, lines)) <= 120, file.name
    scripts = "".join(file.read_text(encoding="utf-8") for file in SOURCES.glob("*.js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", scripts)


@pytest.mark.parametrize("wrong", [None, [], {}, [1, 2, 3], "x"])
def test_traces_are_one_or_two(wrong):
    with pytest.raises(ValueError, match=r"traces must be a list"):
        page(wrong)


@pytest.mark.parametrize(("changed", "said"), [
    ({"format": "other"}, "version 1"), ({"version": 2}, "version 1"), ({"texts": ["a"]}, "texts must have one entry"),
    ({"lifetime": [[1] * 5]}, "lacks a field"), ({"n_layer": "two"}, "lacks a field"), ({"drops": {}}, "lacks a field"),
    ({"live_counts": [[1], [1]]}, r"live_counts\[0\], live_counts\[1\]"), ({"ids": []}, "must have one entry")])
def test_a_wrong_trace_is_named(changed, said):
    with pytest.raises(ValueError, match=rf"traces\[1\].*{said}"):
        page([random_trace(5, 2, 0), random_trace(5, 2, 0) | changed])


def test_drops_of_unequal_lengths_are_named():
    trace = random_trace(20, 2, 0)
    trace["drops"] |= {"score": [0.5]}
    with pytest.raises(ValueError, match=r"drops\.score must have one entry for each drop"):
        check(trace, "trace")
