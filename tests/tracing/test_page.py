"""The page of a trace, driven in headless Chromium as a person would."""

import base64
import re

import numpy as np
import pytest
from browser_tools import PAGE_TESTS, chromium, colour_scheme, eventually, press
from page_tools import TEXTS, random_trace, written

pytestmark = PAGE_TESTS
T, L = 60, 3


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("downloads")) as driver:
        yield driver


@pytest.fixture(scope="module")
def trace():
    return random_trace(T, L, seed=0)


@pytest.fixture(scope="module")
def address(trace, tmp_path_factory):
    return written(tmp_path_factory.mktemp("one") / "page.html", trace)


@pytest.fixture(scope="module")
def address_of_two(trace, tmp_path_factory):
    other = random_trace(T, L, seed=1, ids=trace["ids"], texts=trace["texts"], kinds=trace["kinds"], threshold=1.5)
    return written(tmp_path_factory.mktemp("two") / "page.html", trace, other), other


@pytest.fixture(autouse=True)
def nothing_in_the_console(driver):
    driver.get_log("browser")
    yield
    assert driver.get_log("browser") == []


def show(driver, address, fragment=""):
    driver.get("about:blank")  # a new fragment alone would not load the page again
    driver.get(address + fragment)


def find(driver, selector):
    return driver.find_element("css selector", selector)


def count(driver, selector):
    return len(driver.find_elements("css selector", selector))


def text(driver, selector):
    return find(driver, selector).text


def step(driver):
    return int(find(driver, "#step").get_attribute("value"))


def click(driver, selector):
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element := find(driver, selector))
    element.click()


def fragment(driver):
    return driver.execute_script("return location.hash")


def drop_of(trace, n=0):
    """The layer, token and dropper of a drop."""
    return tuple(trace["drops"][name][n] for name in ("layer", "position", "dropped_by"))


def drops_of(trace, j):
    all_drops = (drop_of(trace, n) for n in range(len(trace["drops"]["layer"])))
    return {(layer, by) for layer, position, by in all_drops if position == j}


def arrows(driver, selector=".arrow:not(.out)"):
    return {tuple(int(each.get_attribute(f"data-{name}")) for name in ("layer", "from", "to"))
            for each in driver.find_elements("css selector", f"#texts .text-column:first-child {selector}")}


def test_keys_step_through_the_text(driver, address):
    show(driver, address)
    assert step(driver) == T - 1
    press(driver, "\ue011")  # Home
    assert step(driver) == 0
    press(driver, "\ue014", "\ue014", "\ue012")  # right, right, left
    assert step(driver) == 1
    assert count(driver, ".token.later") == T - 2
    press(driver, "\ue010")  # End
    assert step(driver) == T - 1
    press(driver, "1")
    assert find(driver, "#layer-choice [data-value='1']").get_attribute("aria-checked") == "true"
    press(driver, "a")
    assert find(driver, "#layer-choice [data-value='null']").get_attribute("aria-checked") == "true"
    press(driver, "?")
    assert find(driver, "#keys").get_attribute("open") is not None


def test_space_plays_and_pauses(driver, address):
    show(driver, address, "#step=3")
    press(driver, " ")
    eventually(lambda: step(driver) > 3, True)
    press(driver, " ")
    assert find(driver, "#play").get_attribute("aria-pressed") == "false"


def test_a_chip_shows_which_layers_hold_its_token(driver, address, trace):
    for i in (0, 17, T - 1):
        show(driver, address, f"#step={i}")
        held = [sum(i - j < row[j] for row in trace["lifetime"]) for j in range(i + 1)]
        chips = driver.find_elements("css selector", ".token")
        gone = {n for n, chip in enumerate(chips) if "gone" in chip.get_attribute("class").split()}
        assert gone == {j for j, n in enumerate(held) if not n}
        bars = driver.execute_script("return [...document.querySelectorAll('.token')].map((c) => "
                                     "getComputedStyle(c).getPropertyValue('--bands').split('rgb(').length - 1)")
        assert bars == held + [0] * (T - 1 - i)


def test_hovering_draws_an_arrow_from_each_dropper(driver, address, trace):
    from selenium.webdriver.common.action_chains import ActionChains

    show(driver, address)
    j = drop_of(trace, 5)[1]
    ActionChains(driver).move_to_element(find(driver, f"#token-{j}")).perform()
    assert arrows(driver) == {(layer, by, j) for layer, by in drops_of(trace, j)}
    assert not arrows(driver, ".arrow.out")
    assert "Click the token to lock it" in text(driver, "#why-body")
    ActionChains(driver).move_to_element(find(driver, "h1")).perform()
    assert not arrows(driver)  # at the last step no arrows bury the text


def test_dashed_arrows_are_drawn_where_asked_for(driver, address, trace):
    j = trace["drops"]["dropped_by"][5]
    show(driver, address, f"#step=3&lock={j}")
    click(driver, "#own")
    own = {drop_of(trace, n) for n, by in enumerate(trace["drops"]["dropped_by"]) if by == j}
    assert arrows(driver, ".arrow.out") == {(layer, by, position) for layer, position, by in own}
    eventually(lambda: "own=1" in fragment(driver), True)


def test_a_chosen_layer_shows_and_names_what_the_last_token_drops(driver, address, trace):
    layer, j, by = drop_of(trace, 8)
    show(driver, address, f"#step={by}&layer={layer}")
    own = {drop_of(trace, n) for n, other in enumerate(trace["drops"]["dropped_by"]) if other == by}
    assert arrows(driver) == {(at, by, position) for at, position, by in own if at == layer}
    assert set(re.findall(r"layer (\d)", text(driver, "#pointed"))) == {str(layer)}
    assert text(driver, "#guide .legend").endswith("later not read yet")
    assert f"from layer {layer}" in text(driver, "#guide .legend")
    click(driver, f"#token-{j}")
    assert set(re.findall(r"layer (\d)", text(driver, "#pointed"))) == {str(layer)}


def test_a_click_locks_and_escape_unlocks(driver, address, trace):
    show(driver, address)
    layer, j, by = drop_of(trace)
    click(driver, f"#token-{j}")
    press(driver, str(layer))
    click(driver, "h1")
    assert find(driver, f"#token-{j}").get_attribute("aria-selected") == "true"
    assert f"In layer {layer}," in text(driver, ".headline") and f"(token {by}) dropped" in text(driver, ".headline")
    assert "is not above the threshold 0" in text(driver, ".headline")
    eventually(lambda: fragment(driver), f"#step={T - 1}&layer={layer}&lock={j}")
    press(driver, "\ue00c")  # Escape
    assert count(driver, ".token.locked") == 0
    eventually(lambda: fragment(driver), f"#step={T - 1}&layer={layer}")


def test_up_down_and_enter_lock_without_a_pointer(driver, address):
    show(driver, address, "#step=20")
    driver.execute_script("document.querySelector('.tokens').focus()")
    press(driver, "\ue013", "\ue013")  # up: the token read last, and the one before
    assert find(driver, ".token.point").get_attribute("id") == "token-19"
    press(driver, "\ue015", "\ue007")  # down, Enter
    assert find(driver, ".token.locked").get_attribute("id") == "token-20"
    driver.execute_script("document.querySelector('#rows').focus()")
    press(driver, "\ue015", "\ue007")
    assert find(driver, ".token.locked").get_attribute("id") == "token-21"


def test_the_bars_add_up_to_the_score(driver, address, trace):
    """The sums are of what the page shows, three digits each."""
    for n in (0, 7, len(trace["drops"]["layer"]) - 1):
        layer, j, _ = drop_of(trace, n)
        show(driver, address, f"#layer={layer}&lock={j}&step=1")
        charts = [dict(re.findall(r"([^:,]+) (−?[\d.e-]+)(?:,|$)", each.get_attribute("aria-label").split(": ", 1)[1]))
                  for each in driver.find_elements("css selector", "#why-body .bars")]
        sums = [[float(value.replace("−", "-")) for name, value in chart.items() if "sum" not in name]
                for chart in charts]
        score, beta = trace["drops"]["score"][n], trace["interaction"]["beta"][layer]
        np.testing.assert_allclose([sum(each) for each in sums], [score, score - beta, score - beta], atol=0.01)


def test_the_address_brings_back_what_was_shown(driver, address, trace):
    layer, j, by = drop_of(trace, 3)
    show(driver, address, f"#step={by}&layer={layer}&lock={j}")
    assert step(driver) == by
    assert find(driver, f"#layer-choice [data-value='{layer}']").get_attribute("aria-checked") == "true"
    assert find(driver, ".token.locked").get_attribute("id") == f"token-{j}"
    driver.execute_script("location.hash = '#step=2'")
    eventually(lambda: step(driver), 2)
    assert count(driver, ".token.locked") == 0


@pytest.mark.parametrize("wrong", ["#step=9999&lock=-1&layer=77", "#step=x&lock=1e3", "#%%%",
                                   "#step=1&front=5&show=<b>"])
def test_a_wrong_address_shows_the_page(driver, address, wrong):
    show(driver, address, wrong)
    assert 0 <= step(driver) < T
    assert count(driver, ".token.locked") == 0


def test_find_words_regexes_kinds_and_lifetimes(driver, address, trace):
    show(driver, address)
    press(driver, "/")
    press(driver, *"sea")
    found = {j for j, each in enumerate(trace["texts"]) if "sea" in each}
    assert {int(each.get_attribute("data-j")) for each in driver.find_elements("css selector", ".token.found")} == found
    assert text(driver, "#find-count") == f"{len(found)} of {T} tokens"
    press(driver, "\ue007")
    assert int(find(driver, ".token.locked").get_attribute("data-j")) == min(found)
    click(driver, "#find-back")
    assert int(find(driver, ".token.locked").get_attribute("data-j")) == max(found)
    click(driver, "#find-regex")
    find(driver, "#find-text").clear()
    find(driver, "#find-text").send_keys("(")
    assert "not a regex" in text(driver, "#find-count")
    find(driver, "#find-text").clear()
    find(driver, "#find-text").send_keys(r"\d")
    assert count(driver, ".token.found") == sum(re.search(r"\d", each) is not None for each in trace["texts"])
    find(driver, "#find-text").clear()
    find(driver, "#find-kind").send_keys("digit")
    assert count(driver, ".token.found") == trace["kinds"].count(2)
    find(driver, "#find-most").send_keys("9")
    longest = np.max(trace["lifetime"], 0)
    assert count(driver, ".token.found") == ((np.array(trace["kinds"]) == 2) & (longest <= 9)).sum()


def test_a_word_of_several_tokens_is_found(driver, tmp_path):
    texts = [" un", "happi", "ness", " is", " un", "happy"]
    show(driver, written(tmp_path / "page.html", random_trace(6, 1, seed=2, texts=texts)))
    find(driver, "#find-text").send_keys("UNHAPPINESS")
    assert {each.get_attribute("id") for each in driver.find_elements("css selector", ".token.found")} == \
        {"token-0", "token-1", "token-2"}


def test_two_traces_side_by_side_what_differs_and_swapped(driver, address_of_two, trace):
    address, other = address_of_two
    show(driver, address)
    assert count(driver, ".text-column") == 2
    ends = [np.array(each["lifetime"]) for each in (trace, other)]
    assert text(driver, "#differences-body p").startswith(f"{(ends[0] != ends[1]).sum()} of {T * L} lifetimes differ")
    largest = find(driver, "#differences .tall tbody td:last-child").text
    assert largest.split("+")[1] == str(np.abs(ends[0] - ends[1]).max())
    click(driver, "#compare-choice [data-value='differ']")
    same = (ends[0] == ends[1]).all(0)
    for column in ("first", "last"):
        assert count(driver, f".text-column:{column}-child .token.same") == same.sum()
        assert count(driver, f".text-column:{column}-child .token.differs") == T - same.sum()
    assert "threshold 0" in text(driver, "#facts")
    press(driver, "s")
    assert "threshold 1.50" in text(driver, "#facts") and text(driver, "#layers-title") == "Layers · B"
    assert text(driver, ".text-column:first-child h3").startswith("A ")  # letters stay with their traces
    eventually(lambda: "front=1&show=differ" in fragment(driver), True)
    click(driver, "#compare-choice [data-value='one']")
    assert count(driver, ".text-column") == 1 and text(driver, ".text-column h3").startswith("B ")
    click(driver, "#swap")
    assert "threshold 0" in text(driver, "#facts")


def test_a_token_of_b_is_explained_in_b(driver, address_of_two):
    from selenium.webdriver.common.action_chains import ActionChains

    address, other = address_of_two
    layer, j, by = drop_of(other, 4)
    show(driver, address, f"#step={T - 1}&layer={layer}")
    chip = find(driver, f"#other-{j}")
    ActionChains(driver).move_to_element(chip).perform()
    assert text(driver, "#why-title") == "Why · B" and text(driver, "#layers-title") == "Layers · A"
    chip.click()
    titles = [text(driver, f"#{name}-title") for name in ("layers", "what-if", "lifelines", "masks")]
    assert all(title.endswith(" · B") for title in titles)
    assert f"(token {by}) dropped" in text(driver, ".headline")
    assert text(driver, "#pointed").startswith("B: ") and f"(token {by}) (layer {layer})" in text(driver, "#pointed")
    press(driver, "\ue00c", "s")
    assert text(driver, "#why-title") in ("Why · A", "Why · B")  # the pointer may still be on the token


def test_a_click_on_what_differs_chooses_its_layer(driver, address_of_two):
    show(driver, address_of_two[0])
    click(driver, "#differences .tall tbody tr button")
    assert text(driver, "#differences-body p button").startswith("only layer ")
    layers = {each.text for each in driver.find_elements("css selector", "#differences .tall td:nth-child(2)")}
    assert len(layers) == 1
    click(driver, "#differences-body p button")
    assert count(driver, "#differences-body p button") == 0


def test_traces_of_different_texts_stand_side_by_side(driver, tmp_path):
    address = written(tmp_path / "page.html", random_trace(20, 2, 0), random_trace(9, 4, 1))
    show(driver, address, "#step=15&layer=1&lock=14")
    assert "cannot be paired" in text(driver, "#differences-body")
    assert (count(driver, ".token.locked"), count(driver, "#texts .text-column:last-child .token.locked")) == (1, 0)
    assert count(driver, "#compare-choice [data-value='differ']") == 0
    press(driver, "s")
    assert (step(driver), count(driver, ".token.locked")) == (8, 0)


def test_clicks_on_the_curve_and_the_mask_go_there(driver, address):
    from selenium.webdriver.common.action_chains import ActionChains

    show(driver, address, "#step=3")
    click(driver, "#curve svg")  # its middle
    assert abs(step(driver) - T // 2) <= 4
    click(driver, ".triangle[data-layer='2']")
    canvas = find(driver, "#large-mask canvas")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    ActionChains(driver).move_to_element_with_offset(canvas, 0, int(canvas.size["height"] * 0.25)).click().perform()
    eventually(lambda: f"&layer=2&lock={T // 2}&mask=2" in fragment(driver), True)
    assert abs(step(driver) - 3 * T // 4) <= 1
    click(driver, "#mask-score")
    eventually(lambda: "&scored=1" in fragment(driver), True)
    press(driver, "\ue00c", "\ue00c")
    assert not find(driver, "#large-mask").is_displayed()


def test_lifelines_sort_and_zoom(driver, address):
    show(driver, address)
    find(driver, "#sort").send_keys("lifetime")
    driver.execute_script("document.querySelector('#zoom').value = 60; "
                          "document.querySelector('#zoom').dispatchEvent(new Event('input'))")
    assert driver.execute_script("return document.querySelector('#rows').scrollHeight") == 60 * T
    click(driver, "#rows")
    assert count(driver, ".token.locked") == 1


def test_lifelines_by_kind_have_headings_and_show_only_what_is_found(driver, address, trace):
    def rows():
        return driver.execute_script("return document.querySelector('#rows').scrollHeight") / 60

    show(driver, address, "#step=3&sort=kind")
    driver.execute_script("document.querySelector('#zoom').value = 60; "
                          "document.querySelector('#zoom').dispatchEvent(new Event('input'))")
    assert rows() == T + len(set(trace["kinds"]))
    find(driver, "#find-kind").send_keys("word")
    kind = int(find(driver, "#find-kind").get_attribute("value"))
    assert rows() == trace["kinds"].count(kind) + 1
    assert f"{trace['kinds'].count(kind)} tokens found" in text(driver, "#rows-shown")
    eventually(lambda: f"kind={kind}&sort=kind" in fragment(driver), True)


def test_lifelines_fit_at_once(driver, address):
    show(driver, address)
    widths = driver.execute_script("const rows = document.querySelector('#rows'); "
                                   "return [rows.scrollWidth, rows.clientWidth, rows.firstElementChild.offsetWidth]")
    assert len(set(widths)) == 1


def test_lifelines_scroll_to_the_locked_token(driver, address):
    def top():
        return driver.execute_script("return document.querySelector('#rows').scrollTop")

    show(driver, address, "#step=3&lock=50")
    assert top() > 0
    click(driver, "#token-0")
    assert top() == 0


def test_what_if_is_of_the_locked_token(driver, address, trace):
    held = trace["counterfactuals"][0]
    show(driver, address, f"#lock={held['j']}&layer={held['layer']}&step=1")
    assert f"(token {held['i']}) kept" in text(driver, "#what-if-body h3")
    assert "Had every layer" not in text(driver, "#what-if-body")
    layer, j, by = drop_of(trace, 9)
    show(driver, address, f"#lock={j}&layer={layer}&step=1")
    assert text(driver, "#what-if-body pre") == f"trace.counterfactual({layer}, {by}, {j})"
    click(driver, "#what-if-body button")
    assert text(driver, "#what-if-body output") == "Copied the Python."
    show(driver, address)
    assert "Had every layer kept everything" in text(driver, "#what-if-body")
    assert text(driver, "#what-if-title") == "What if … had been kept"


def test_the_table_of_layers_stays_where_it_is(driver, address, trace):
    show(driver, address, f"#lock={drop_of(trace, 9)[1]}")
    places = set()
    for layer in range(L):
        click(driver, f"#why-body tbody tr:nth-child({layer + 1}) button")
        places.add(driver.execute_script("return document.querySelector('#why-body table').getBoundingClientRect().top"
                                         " - document.querySelector('#why').getBoundingClientRect().top"))
    assert len(places) == 1


def test_a_margin_is_shown_where_it_is_not_the_score(driver, address, address_of_two, trace):
    for at, said in ((address, False), (f"{address_of_two[0]}", True)):
        show(driver, at, f"#lock={drop_of(trace)[1]}&front={int(said)}")
        assert ("margin" in text(driver, "#why-body thead")) == said


def test_keys_of_the_search_field_and_of_the_link(driver, address):
    show(driver, address, "#step=9&lock=3&find=sea")
    assert find(driver, "#find-text").get_attribute("value") == "sea" and count(driver, ".token.found") > 0
    press(driver, "/", "\ue00c")
    assert count(driver, ".token.locked") == 1
    press(driver, "c")
    assert text(driver, "#shared").startswith("Copied the address. It leads to the file on this computer")
    press(driver, "?")
    assert driver.execute_script("return document.querySelector('#keys').getBoundingClientRect().top < innerHeight")


def test_a_search_does_not_move_the_text(driver, address):
    for width in (1600, 390):
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                               {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
        show(driver, address)
        top = find(driver, "#texts").location["y"]
        find(driver, "#find-text").send_keys("sea")
        assert find(driver, "#texts").location["y"] == top
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_shares_that_differ_read_differently(driver, tmp_path, trace):
    show(driver, written(tmp_path / "page.html", trace))
    script = "return [...document.querySelectorAll('#layer-choice small')].map((each) => each.textContent)"
    life = np.array(trace["lifetime"])
    life[1], life[2, 0] = life[0], life[0, 0]
    life[2, 1:] = life[0, 1:]
    life[2, life[2].argmax()] -= 1
    show(driver, written(tmp_path / "close.html", trace | {"lifetime": life.tolist()}))
    shown = driver.execute_script(script)
    assert shown[0] == shown[1] != shown[2]


def test_the_python_runs_what_is_shown(driver, address, trace):
    layer, j, by = drop_of(trace, 2)
    show(driver, address, f"#step=1&layer={layer}&lock={j}")
    click(driver, "#copy-python")
    assert text(driver, "#shared") == "Copied the Python."
    click(driver, "#share summary")
    code = driver.execute_script("return document.querySelector('#python').textContent")
    compile(code, "shown", "exec")
    assert f"trace.why({layer}, {by}, {j})" in code and f"trace.counterfactual({layer}, {by}, {j})" in code
    assert str(trace["ids"]) in code


def test_the_text_is_saved_as_svg(driver, address, tmp_path, trace):
    import xml.etree.ElementTree as ElementTree

    driver.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    show(driver, address, f"#step=30&lock={drop_of(trace)[1]}")
    click(driver, "#save-svg")
    eventually(lambda: [file.name for file in tmp_path.iterdir()], ["trace-step-30.svg"])
    root = ElementTree.fromstring((tmp_path / "trace-step-30.svg").read_text(encoding="utf-8"))
    assert len(root.findall(".//{*}g/{*}text")) == T


def test_texts_are_shown_and_never_run(driver, address, tmp_path):
    """Every odd text is a token, the model's name and the title, too. An alert would make the next command fail."""
    odd = "</script><img src=x onerror=alert(1)>"
    show(driver, written(tmp_path / "page.html", random_trace(len(TEXTS), 2, 3, texts=TEXTS, model=odd, policy=odd)))
    shown = driver.execute_script("return [...document.querySelectorAll('.token')].map((each) => each.textContent)")
    assert shown[TEXTS.index(odd)] == odd and shown[TEXTS.index("\n")] == "↵" and shown[TEXTS.index("한")] == "한"
    assert shown[TEXTS.index(" 🙂")] == "🙂" and shown[TEXTS.index("")] == "▫" and shown[TEXTS.index("  ")] == "␣␣"
    assert count(driver, "img") == 0
    assert odd in text(driver, "#facts")


def test_nothing_is_fetched(driver, address):
    show(driver, address)
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0
    blocked = driver.execute_async_script(
        "const done = arguments[0]; addEventListener('securitypolicyviolation', (e) => done(e.effectiveDirective)); "
        "fetch('https://example.org/').catch(() => {})")
    assert blocked == "connect-src"
    driver.get_log("browser")  # the refusal


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1600])
def test_accessibility(driver, address, address_of_two, trace, scheme, width):
    pytest.importorskip("axe_core_python")
    from axe_core_python.base import AXE_FILE_PATH  # the package's copy of axe-core

    script = AXE_FILE_PATH.read_text(encoding="utf-8")
    colour_scheme(driver, scheme)
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                           {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
    for where, at in [(address, f"#step=40&lock={drop_of(trace)[1]}"), (address_of_two[0], "#step=30&show=differ")]:
        show(driver, where, at)
        driver.execute_script(script)
        report = driver.execute_async_script("axe.run().then(arguments[0])")
        found = [(each["id"], each["nodes"][0]["html"][:200], len(each["nodes"])) for each in report["violations"]]
        assert found == []
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    colour_scheme(driver, "light")


def test_without_javascript_there_is_a_table(driver, address, trace):
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(driver, address)
        assert count(driver, ".static tr") == T + 1
        assert count(driver, ".static img") == 0
        cells = find(driver, ".static tr:nth-child(2)").find_elements("css selector", "td")
        first = {layer: by for layer, by in drops_of(trace, 0)}
        assert [cell.text.split()[0] for cell in cells] == [str(first.get(layer, "held")) for layer in range(L)]
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


STEPS = """
const done = arguments[0], times = [];
const next = (n) => {
  const start = performance.now();
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  document.body.offsetHeight;  // its layout is part of it
  times.push(performance.now() - start);
  if (n) requestAnimationFrame(() => next(n - 1)); else done(times);
};
next(40);
"""


@pytest.mark.parametrize(("size", "r"), [((512, 4), 16), ((1024, 12), 64)], ids=["tiny", "gpt2"])
def test_a_large_trace_works_at_once(driver, tmp_path, size, r, capsys):
    show(driver, written(tmp_path / "page.html", random_trace(*size, seed=0, r=r, plain=True)), "#step=300&lock=7")
    eventually(lambda: step(driver), 300)  # its script has run
    times = driver.execute_async_script(STEPS)
    assert step(driver) == 341
    with capsys.disabled():  # printed, not asserted: it is the machine's, too
        print(f"\na step at {size[0]} tokens, {size[1]} layers: {np.median(times):.1f} ms, at most {max(times):.1f}")


def test_half_precision_is_read_and_said(driver, tmp_path):
    trace = random_trace(30, 2, 5)
    halves = {name: base64.b64encode(np.frombuffer(base64.b64decode(trace["interaction"][name]), "<f4").astype("<f2")
                                     .tobytes()).decode() for name in ("q", "k")}
    half = trace | {"interaction": trace["interaction"] | halves | {"dtype": "float16"}, "note": "half precision"}
    layer, j, _ = drop_of(trace)
    shown = []
    for n, each in enumerate((trace, half)):
        show(driver, written(tmp_path / f"{n}.html", each), f"#layer={layer}&lock={j}&step=1")
        label = find(driver, "#why-body .bars").get_attribute("aria-label")
        shown.append([float(value.replace("−", "-")) for value in re.findall(r" (−?[\d.e-]+)(?:,|$)", label)])
    assert "half precision" in text(driver, "#facts")
    np.testing.assert_allclose(shown[0], shown[1], atol=5e-3)


@pytest.mark.parametrize("policy", ["window:8", "heavy_hitters:2,8"])
def test_a_rule_without_scores_says_its_reason(driver, tmp_path, policy):
    trace = random_trace(30, 2, 5, scores=False, what_if=False, policy=policy)
    D = len(trace["drops"]["layer"])
    trace["drops"] |= {"score": [None] * D, "margin": [None] * D, "reason": [2 + ("heavy" in policy)] * D}
    layer, j, _ = drop_of(trace)
    show(driver, written(tmp_path / "page.html", trace), f"#layer={layer}&lock={j}&step=1")
    assert f"the rule {policy}" in text(driver, ".headline")
    code = driver.execute_script("document.querySelector('#share details').open = true; "
                                 "return new Promise((done) => setTimeout(() => done("
                                 "document.querySelector('#python').textContent), 100))")
    assert f'policies.parse("{policy}")' in code and "why" not in code


def test_a_trace_of_one_token(driver, tmp_path):
    show(driver, written(tmp_path / "page.html", random_trace(1, 1, 0)))
    press(driver, "\ue014", "\ue011", "\ue010")
    click(driver, "#token-0")
    assert "held by layer 0 to the end" in text(driver, ".headline")


def test_pinned_tokens_are_marked(driver, address, trace, tmp_path):
    held = [j for j in range(T) if not drops_of(trace, j)][:2]
    show(driver, written(tmp_path / "page.html", trace | {"pinned": held}))
    marked = driver.find_elements("css selector", "#texts .token.pinned")
    assert [int(chip.get_attribute("data-j")) for chip in marked] == held
    assert find(driver, "#legend-pinned").is_displayed()
    click(driver, f"#token-{held[0]}")
    assert "to the end: it is pinned." in text(driver, "#why-body")
    show(driver, address)
    assert count(driver, "#texts .token.pinned") == 0 and not find(driver, "#legend-pinned").is_displayed()
