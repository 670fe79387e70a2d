"""The static picture of a trace: valid SVG that shows each drop once, in light and dark."""

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_tools import TEXTS, random_trace

from dcp_ref.tracing.picture import picture


def parsed(*args, **options):
    root = ElementTree.fromstring(picture(*args, **options))
    for each in root.iter():
        each.tag = each.tag.split("}")[1]
    return root


@given(st.integers(1, 40), st.integers(1, 13), st.integers(0, 9), st.booleans(), st.integers(200, 1200))
def test_an_arrow_a_drop_and_a_strike_where_all_layers_dropped(T, L, seed, dark, width):
    trace = random_trace(T, L, seed, scores=False)
    root = parsed(trace, dark=dark, width=width)
    assert len(root.findall("g[@stroke]")) == len(trace["drops"]["layer"])
    gone = [all(T - 1 - j >= row[j] for row in trace["lifetime"]) for j in range(T)]
    tokens = root.findall("g")[-T:]
    assert [token.find("path") is not None for token in tokens] == gone
    assert [len(token.findall("rect")) for token in tokens] == \
        [sum(T - 1 - j < row[j] for row in trace["lifetime"]) for j in range(T)]
    assert float(root.get("width")) == width


def test_only_the_layers_asked_for_are_shown():
    trace = random_trace(30, 3, 0)
    root = parsed(trace, layers=[1])
    assert len(root.findall("g[@stroke]")) == trace["drops"]["layer"].count(1)
    assert root.find("text").text == "layer 1"


def test_every_text_is_text():
    """Escaped, with signs for what is invisible; no control character, which XML refuses."""
    shown = [each.text for each in parsed(random_trace(len(TEXTS), 1, 0, texts=TEXTS)).iter("text")]
    assert "</script><img src=x onerror=alert(1)>" in shown and "한" in shown and "↵" in shown and "▫" in shown


def test_light_and_dark_differ_in_colours_only():
    trace = random_trace(20, 2, 0)
    light, dark = parsed(trace), parsed(trace, dark=True)
    assert light[1].get("fill") != dark[1].get("fill")
    assert [each.tag for each in light.iter()] == [each.tag for each in dark.iter()]


@pytest.mark.parametrize(("options", "said"), [
    ({"layers": [3]}, "layers must be"), ({"layers": []}, "layers must be"), ({"layers": [-1]}, "layers must be"),
    ({"width": 100}, "width must be")])
def test_a_bad_argument_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        picture(random_trace(5, 3, 0), **options)
