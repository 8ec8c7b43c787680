"""The page of runs in a real browser, from a file: it complains of nothing, every chart is seen, choices and values
under the pointer work, and it is as narrow as a phone."""

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browsing
from history import read_histories
from panels import panels_of
from runs_page import make_page
from showing_runs import CONFIG, make_run, rows_of


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("needs a browser and its driver: apt install chromium chromium-driver")
    with browsing(binary, driver, tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: one with skipped steps and something held out, a mixture, and one whose name is like markup."""
    folder = tmp_path_factory.mktemp("runs")
    held_out = [{"step": step, "loss": 3.0 - step / 100, "targets": 9} for step in (20, 40)]
    load = {"expert_load_max": 1.5, "expert_load": [0.5, 1.5], "some/metric": 1.0}
    runs = [
        make_run(folder / "plain", rows_of(60), held_out=held_out),
        make_run(folder / "mixture", rows_of(50, worse=0.5, more=load), settings=CONFIG | {"model": "tiny-moe"}),
        make_run(folder / "<script>", rows_of(40), settings=CONFIG | {"data": ["a/" + "long" * 60], "steps": 40}),
    ]
    (runs[0] / "skipped.jsonl").write_text('{"step": 7, "loss": "nan"}\n')
    found = read_histories(runs)
    path = folder / "report.html"
    path.write_text(make_page(found, panels_of(found)))
    return path


def open_page(browser: Browser, page: Path, *, width: int = 1280, dark: bool = False, script: bool = True) -> None:
    """Open it anew, in a window that is so wide."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.order("Emulation.setScriptExecutionDisabled", value=not script)
    browser.order("Emulation.setEmulatedMedia", features=[scheme])
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.order("Emulation.setDeviceMetricsOverride", **size)
    browser.open(page)


def each(browser: Browser, where: str, what: str) -> list[Any]:
    """Of each element of a kind, what an expression says of it, which calls it `e`."""
    return browser.run(f"return [...document.querySelectorAll(arguments[0])].map((e) => {what});", where)


def seen(browser: Browser) -> list[tuple[str, list[str]]]:
    """The charts that are seen: their figure, and their classes. Their curves have a size, and lie within them."""
    told: list[Any] = browser.run("""
        return [...document.querySelectorAll("figure > svg")].filter((svg) => svg.getBoundingClientRect().width)
          .map((svg) => {
            const around = svg.getBoundingClientRect();
            const curves = [...svg.querySelectorAll("path.told")].map((path) => {
              const box = path.getBoundingClientRect(), inside = box.left >= around.left && box.right <= around.right
                && box.top >= around.top && box.bottom <= around.bottom;
              return inside && getComputedStyle(path).stroke !== "none" && box.width + box.height > 0;
            });
            return [svg.parentElement.dataset.name, [...svg.classList], curves, around.height];
          });""")
    for name, classes, curves, height in told:
        assert curves and all(curves) and height > 100, (name, classes)
    return [(name, classes) for name, classes, _, _ in told]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_every_chart_is_seen_and_nothing_is_wider_than_the_window(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    open_page(browser, page, width=width, dark=dark)
    names = each(browser, "figure", "e.dataset.name")
    charts = seen(browser)
    assert [name for name, _ in charts] == names and {"loss", "lr", "expert_load_max", "some/metric"} <= {*names}
    assert all("by-step" in classes and "lin" in classes for _, classes in charts)
    assert ("wide" in charts[0][1]) == (width == 1280)
    assert browser.run("return document.documentElement.scrollWidth") == width
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(19, 21, 23)" if dark else "rgb(248, 248, 246)")
    assert not browser.complaints(), "the browser has nothing to complain of"


def test_what_is_along_charts_and_their_scale_are_chosen_without_a_script_too(browser: Browser, page: Path) -> None:
    open_page(browser, page, script=False)
    names = [name for name, _ in seen(browser)]
    for axis in ("tokens", "seconds", "step"):
        browser.point(f"label:has(#by-{axis})", click=True)
        assert [name for name, classes in seen(browser) if f"by-{axis}" in classes] == names
    browser.point("#log", click=True)
    charts = seen(browser)
    assert [name for name, classes in charts if "log" in classes] == names
    assert "lin" not in dict(charts)["loss"] and "lin" in dict(charts)["lr"]


@pytest.mark.parametrize("axis", ["step", "tokens", "seconds"])
def test_values_are_told_under_the_pointer_and_under_the_cursor_of_arrow_keys(
    browser: Browser, page: Path, axis: str
) -> None:
    open_page(browser, page)
    browser.point(f"label:has(#by-{axis})", click=True)
    chart = f'figure[data-name="lr"] > svg.by-{axis}'
    assert told(browser) == []
    browser.point(chart)
    first, *lines = told(browser)
    # Of a row of `rows_of`, whose learning rate is 5e-4 from step 10 on.
    assert first.startswith("step ") and lines[:2] == ["plain", "5e-4"]
    assert {"step": "step", "tokens": "tokens", "seconds": ":"}[axis] in first.split(", ")[-1]
    browser.press(chart, "Escape")
    assert told(browser) == []
    browser.press(chart, "ArrowRight", "ArrowRight", "ArrowRight")
    assert told(browser)[0].startswith("step 3") and told(browser)[1:3] == ["plain", "8.5e-4"]
    browser.point("label:has(#by-step)", click=True)
    browser.point("label:has(#by-tokens)", click=True)
    assert told(browser) == [], "what was told was of another chart"
    assert not browser.complaints()


def told(browser: Browser) -> list[str]:
    """What is told of the learning rate, line by line; nothing if nothing is shown."""
    (text,) = each(browser, 'figure[data-name="lr"] > .tip', "e.checkVisibility() ? e.innerText : ''")
    return text.split("\n") if text else []


def test_a_page_can_be_read_by_who_does_not_see_it(browser: Browser, page: Path) -> None:
    open_page(browser, page)
    charts = each(browser, "figure > svg", "[e.getAttribute('role'), e.getAttribute('aria-label')]")
    assert charts and all(role == "img" and label for role, label in charts)
    assert all(each(browser, ".scroll", "e.getAttribute('aria-label')"))
    levels = [int(name[1]) for name in each(browser, "h1, h2, h3", "e.tagName")]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert each(browser, "html", "e.lang") == ["en"]
    assert each(browser, "title", "e.textContent") == ["plain, mixture and <script>"]
    assert each(browser, ".head h2 span:not(.state)", "e.textContent") == ["plain", "mixture", "<script>"]
