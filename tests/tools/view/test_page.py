"""The page in a real browser, served by the command: filters, a group, live steps, hostile text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lpo_ray.telemetry.samples import samples_path
from lpo_ray.telemetry.status import StatusFile
from tests.support.browser import CHROMIUM, Browser, open_browser
from tests.support.recorded_runs import called, make_run, scored, with_columns, write_step
from tests.support.viewer import served

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]
ROWS = "tbody tr"
HOSTILE = (
    "<script>window.owned = 1</script><img src=x onerror='window.owned = 1'>\"'><style>*{display:none}</style>"
    "\u202eabc\u2066\u200b\x07&lt;javascript:alert(1)"
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with open_browser(tmp_path / "profile") as found:
        yield found


def wait_for_rows(browser: Browser, count: int) -> None:
    browser.wait(f"document.querySelectorAll({ROWS!r}).length === {count}")


def test_from_the_list_of_runs_to_the_tokens_of_a_response(browser: Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "one", steps=3)
    with_columns(
        samples_path(run, 3),
        {
            "after": [0.2, -0.2, None, None, None, None],
            "token_log_ratio": [[0.4, -0.4, 0.0, 0.1], [0.0, 0.0, 0.0, 0.0], None, None, None, None],
            "detail": ["value 21, target 21", "value 20", None, None, None, None],
        },
    )
    with served(tmp_path / "runs") as url:
        browser.open(url)
        browser.click("tbody a")
        wait_for_rows(browser, 9)
        browser.click(".skip")
        assert browser.run("document.activeElement.id") == "main"
        assert browser.run("location.hash") == "#/one/groups", "the way to the content leaves the place as it is"
        assert "ended, step 3 of 3" in browser.text("#live")
        browser.click("[name=mixed]")
        wait_for_rows(browser, 3)
        browser.fill("[name=least_reward]", "0.9")
        browser.wait("document.querySelector('caption').innerText.startsWith('0 groups')")
        browser.click("[type=reset]")
        wait_for_rows(browser, 9)
        browser.fill("[name=least_staleness]", "1")
        wait_for_rows(browser, 3)
        browser.click("[type=reset]")
        wait_for_rows(browser, 9)
        browser.fill("[name=text]", "TARGET 21")
        wait_for_rows(browser, 1)
        browser.click("[type=reset]")
        wait_for_rows(browser, 9)
        browser.click("#order-reward")
        browser.wait("document.querySelector('[aria-sort=descending]')?.innerText.includes('mean')")
        assert browser.run("document.activeElement.id") == "order-reward", "a keyboard goes on where it was"
        browser.click("[name=measured]")
        wait_for_rows(browser, 1)
        place = browser.run("location.hash")
        browser.click("tbody a")
        browser.wait("document.querySelectorAll('.token[title]').length === 8")
        assert "value 21, target 21" in browser.text("#response-0")
        assert "0.599" in browser.text(ROWS), "P after: softmax of 0.2 and -0.2"
        shares = (
            "[...document.querySelectorAll('#response-0 .token[title]')]"
            ".map((token) => [token.className, Number(token.style.getPropertyValue('--share')) > 0.5])"
        )
        assert browser.run(shares) == [
            ["token up", True],
            ["token down", True],
            ["token up", False],
            ["token up", False],
        ]
        assert browser.run("getComputedStyle(document.querySelector('.token.up')).backgroundColor") not in (
            "rgba(0, 0, 0, 0)", "color(srgb 0 0 0 / 0)",
        )  # fmt: skip
        browser.run(
            "(s => { s.value = 'version'; s.dispatchEvent(new Event('change')); })(document.querySelector('#colour'))"
        )
        assert browser.run(shares)[0][0] == "token version series-2"
        browser.run("history.back()")
        wait_for_rows(browser, 1)
        assert browser.run("location.hash") == place, "the way back leads to the filters"
        assert browser.run("document.querySelector('[name=measured]').checked")
        browser.open(f"{url}#/one/curves")
        browser.wait("document.querySelectorAll('figure').length === 3")
        browser.run("document.querySelector('figure svg').dispatchEvent(new PointerEvent('pointermove', {clientX: 0}))")
        assert "step 1" in browser.text("figure .at")
        assert "0.100" in browser.text("figure output")
        browser.open(f"{url}#/one/log")
        browser.wait("document.querySelector('.log li')?.innerText.includes('the end')")
        browser.open(f"{url}#/../groups")
        browser.wait("document.querySelector('[role=alert]')?.innerText.includes('is not a run')")
        assert [found for found in browser.requested if not found.startswith((url, "about:blank", "data:"))] == []
    browser.problems = [problem for problem in browser.problems if "404" not in problem]
    assert browser.problems == []


def test_new_steps_of_a_live_run_appear_and_a_half_written_one_is_named(browser: Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1)
    StatusFile(run, "alive", 9, step=1).write()
    with served(run) as url:
        browser.open(f"{url}#/./groups?mixed=true")
        wait_for_rows(browser, 1)
        assert browser.text("#live") == "running, step 1 of 9"
        browser.run("document.querySelector('[name=text]').focus()")
        write_step(run, 2, [scored(20, (1.0, 0.0), version=1)])
        wait_for_rows(browser, 2)
        assert browser.run("document.activeElement.name") == "text", "a new step takes nothing from the keyboard"
        samples_path(run, 3).write_bytes(samples_path(run, 2).read_bytes()[:500])
        browser.wait("document.querySelector('.problem')?.innerText.includes('step_000003.parquet cannot be read')")
        wait_for_rows(browser, 2)
        browser.open(f"{url}#/./curves")
        browser.wait("document.querySelector('figure .at')?.innerText === 'step 2'")
        write_step(run, 3, [scored(30, (1.0, 0.0), version=2)])
        browser.wait("document.querySelector('figure .at')?.innerText === 'step 3'")
    assert browser.problems == []


def test_hostile_text_is_text(browser: Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1)
    with_columns(
        samples_path(run, 1),
        {
            **{
                name: [HOSTILE] * 6
                for name in ("prompt", "response", "answer", "verifier", "detail", "row", "divergence")
            },
            "prompt_id": [HOSTILE + str(row // 2) for row in range(6)],
            "reward": [float("nan"), 1.0, float("inf"), 0.0, 0.0, 0.0],
            "after": [float("nan"), 0.1, float("-inf"), 0.0, 0.0, 0.0],
            "token_log_ratio": [[float("nan"), float("inf"), float("-inf"), 1e300]] * 6,
        },
    )
    StatusFile(run, HOSTILE, 1, step=1, ended=True).write()
    (run / "log.jsonl").open("a").write(
        '{"time": 1, "level": "x y", "role": "<b>", "worker": "", "step": 1, "text": "<i>\\ud800"}\n'
    )
    with served(run) as url:
        for view in ("#/", "#/./groups", "#/./curves", "#/./log"):
            browser.open(url + view)
            browser.wait("document.querySelector('.view') !== null")
            assert (
                browser.run("document.querySelector('.view script, .view style, .view img, .view b, .view i')") is None
            )
        for row in range(3):
            browser.open(f"{url}#/./groups")
            wait_for_rows(browser, 3)
            browser.run(f"document.querySelectorAll('tbody a')[{row}].click()")
            browser.wait("document.querySelectorAll('.token[title]').length === 8")
            assert "<script>window.owned" in browser.text("pre")
            assert "U+202E" in browser.text("pre")
            assert "\u202e" not in browser.run("document.body.innerText")
        assert browser.run("window.owned ?? null") is None
    assert browser.problems == []


def test_a_conversation_is_read_as_one_and_what_is_said_in_it_is_text(browser: Browser, tmp_path: Path) -> None:
    """Authors, calls with their results, what was sampled; a result that the policy made up is in its own words."""
    run = called(tmp_path / "run", ("37*4+5=[37*4+5]", "153\n"), ("153\n[1+1]", "2\n"), ("=153", ""))
    path = samples_path(run, 1)
    columns = {"authors": [[HOSTILE, "tool"]], "ended": [HOSTILE], "moved": [1]}
    with_columns(path, {**columns, "token_log_ratio": [[0.5, -0.5, *[0.0] * 26]]})
    with served(run) as url:
        browser.open(f"{url}#/./groups")
        browser.click("tbody a")
        browser.wait("document.querySelectorAll('section.part').length === 5")
        heads = browser.texts("section.part .mark")
        assert heads[0].startswith("Turn 1: policy, 15 tokens")
        assert "<script>window.owned" in heads[1] and heads[1].endswith(", 4 tokens, not sampled")
        assert heads[2:] == [
            "Turn 2: policy, 9 tokens, calls 1+1", "tool, 2 tokens, not sampled", "Turn 3: policy, 4 tokens",
        ]  # fmt: skip
        parts = browser.texts("section.part > div:last-child")
        assert [part.replace("⏎", "").strip() for part in parts[1::2]] == ["153", "2"]
        assert parts[2].startswith("153"), "a result that nobody gave stands in the policy's turn"
        assert "1 turn moved to another engine" in browser.text("#response-0 .detail:last-of-type")
        classes = "[...document.querySelectorAll('#response-0 .tokens span[title]')].map((one) => one.className)"
        found = browser.run(classes)
        assert [found.count(name) for name in ("token up", "token down", "written")] == [27, 1, 6]
        assert browser.run("document.querySelector('.view script, .view style, .view img')") is None
        assert "\u202e" not in browser.run("document.body.innerText")
        assert browser.run("window.owned ?? null") is None
    assert browser.problems == []
