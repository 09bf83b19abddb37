"""The page at `/`, in a browser: asking, watching, the records; and that no text in it is ever more than text.

What opens a browser needs the extra `browser` and a Chromium of the system (on Debian: apt install chromium), and is
skipped without them.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from servers import ADAPTING, KEYS, PROBLEM, WAIT_S, Running, until

from mass.adaptation import gate
from mass.serving import answering
from mass.serving.app import PAGE
from mass.serving.records import MOST, Entry, owner_of
from mass.types import Adaptation, Example, GateDecision

FOLDER = Path(answering.__file__).parent / "page"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
OVERRIDE, ARABIC = "\u202egnp.exe\u202c", "\u0627\u062e\u062a\u0628\u0627\u0631"
HOSTILE = f"<img src=x onerror=alert(1)></script><script>alert(2)</script>&lt;b&gt; {OVERRIDE} {ARABIC} "
LONG = "x" * 20_000
WATCH = "window.violations = []; addEventListener('securitypolicyviolation', e => violations.push(e.violatedDirective))"
NARROW, WIDE = {"width": 360, "height": 780}, {"width": 1440, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Generator[Any, None, None]:
    api = pytest.importorskip("playwright.sync_api", reason="the page is tried with playwright, which is not installed")
    if CHROMIUM is None:
        pytest.skip("the page is tried in Chromium, which is not installed")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


class Visit:
    """A page of a browser, and what it did that it must not do."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.url = url
        self.context = browser.new_context(viewport=WIDE, **options)
        self.context.add_init_script(WATCH)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT_S * 500)
        self.dialogs, self.errors, self.hosts = list[str](), list[str](), set[str]()
        self.page.on("dialog", self._dialog)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.context.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def _dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def open(self, address: str = "") -> Any:
        self.page.goto(f"{self.url}/{address}")
        self.page.locator("#model option").first.wait_for(state="attached")
        return self.page

    def ask(self, problem: str, adapt: str = "always", seed: str = "1") -> None:
        self.page.fill("#problem", problem)
        self.page.check(f"input[value={adapt}]")
        self.page.fill("#seed", seed)
        self.page.click("#submit")

    def status(self, text: str) -> None:
        """Wait until the view that is shown says so."""
        self.page.locator("[role=status]:visible").filter(has_text=re.compile(text)).first.wait_for()

    def require_quiet(self) -> None:
        """Fail if anything ran, or left this server, that should not have."""
        assert self.dialogs == []
        assert self.errors == []
        assert self.page.evaluate("violations") == []
        assert self.page.locator("img, iframe, object, embed, [onerror], main script, main style").count() == 0
        assert self.hosts <= {urlsplit(self.url).netloc, ""}

    def require_no_overflow(self) -> None:
        self.page.set_viewport_size(NARROW)
        over = """[...document.querySelectorAll('body, main *')]
            .filter((node) => !node.closest('.scroll') && node.getBoundingClientRect().right > innerWidth + 1)
            .map((node) => node.parentElement.outerHTML.slice(0, 80))"""
        assert self.page.evaluate(over) == []
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        self.page.set_viewport_size(WIDE)


@pytest.fixture
def visit(browser: Any, server: Running) -> Generator[Visit, None, None]:
    found = Visit(browser, server.url)
    yield found
    found.context.close()


# --- the files


def test_the_server_has_every_file_of_the_page_and_a_strict_policy(server: Running) -> None:
    assert {name for name, _ in PAGE.values()} == {path.name for path in FOLDER.iterdir()}
    for path, (name, kind) in PAGE.items():
        reply = server.get(path)
        assert reply.status_code == 200
        assert reply.content == (FOLDER / name).read_bytes()
        assert reply.headers["content-type"].partition(";")[0] == kind
        policy = dict(one.strip().split(" ", 1) for one in reply.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert "unsafe" not in str(policy)
        assert "*" not in str(policy)


def test_no_file_names_another_host_or_writes_markup() -> None:
    for path in FOLDER.iterdir():
        text = path.read_text("utf-8")
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == [], path
        assert (
            re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text) == []
        ), path
    markup = (FOLDER / "index.html").read_text("utf-8")
    assert re.findall(r"<style|\sstyle=|\son\w+=|<script(?! type=\"module\" src=)", markup) == []


def test_the_reasons_that_can_be_filtered_by_are_those_of_the_server() -> None:
    text = (FOLDER / "parts.js").read_text("utf-8")

    def keys(name: str) -> list[str]:
        found = re.search(rf"export const {name} = {{\n(.*?)\n}};", text, re.DOTALL)
        assert found is not None
        return [one.strip('"') for one in re.findall(r"^  (\"[^\"]+\"|\w+): ", found[1], re.MULTILINE)]

    assert keys("REASONS") == list(gate.REASONS)
    assert keys("WITHOUT_GATE") == [answering.DEADLINE, answering.FAILED, answering.STOPPING]


# --- asking


def test_a_problem_is_asked_watched_judged_replayed_and_deleted(visit: Visit, server: Running, tmp_path: Path) -> None:
    page = visit.open()
    visit.ask(PROBLEM)
    visit.status("^Answered by the adapted weights")
    told = server.get("/v1/mass/adaptations?limit=1").json()["data"][0]
    record = server.get(f"/v1/mass/adaptations/{told['id']}").json()["record"]
    assert page.locator("#result .example").count() == len(record["examples"])
    weights = [one.split(" ")[0] for one in page.locator("#result dt:text-is('Weight') + dd").all_text_contents()]
    used = [one["weight"] for one in record["examples"] if not one["rejected"]]
    assert weights == [f"{value:.3f}" if value >= 0.0005 or value == 0 else "under" for value in used]
    assert page.locator("#result .chosen pre").inner_text() == record["text"]
    assert page.locator("#result .panel pre").first.inner_text() == record["unadapted_text"]
    struck = page.locator("#result del").all_text_contents()
    assert struck
    assert all(one in record["unadapted_text"] for one in struck)
    assert "passed" in page.locator(".decision").inner_text()
    assert page.locator("#result tr", has_text="synthesis").locator("td").last.inner_text() == str(
        record["tokens"]["synthesis"]
    )
    visit.require_quiet()
    visit.require_no_overflow()

    page.get_by_role("link", name="Its record").click()
    page.get_by_role("button", name="Yes").click()
    visit.status("Kept in the record")
    assert server.get(f"/v1/mass/adaptations/{told['id']}").json()["right"] is True
    page.get_by_role("button", name="Replay").click()
    visit.status("^Replayed: the same text")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download JSON").click()
    download.value.save_as(tmp_path / "record.json")
    assert (
        json.loads((tmp_path / "record.json").read_text("utf-8"))
        == server.get(f"/v1/mass/adaptations/{told['id']}").json()
    )
    for name in record:  # everything in the record is on its page, at least in the whole at the end
        assert f'"{name}"' in page.locator("#entry details").last.text_content()
    visit.require_no_overflow()

    page.get_by_role("button", name="Delete").click()
    page.keyboard.press("Escape")
    assert server.get(f"/v1/mass/adaptations/{told['id']}").status_code == 200
    page.get_by_role("button", name="Delete").click()
    page.locator("dialog").get_by_role("button", name="Delete").click()
    page.get_by_role("heading", name="Past adaptations").wait_for()
    until(lambda: server.get(f"/v1/mass/adaptations/{told['id']}").status_code == 404)
    page.locator(f"#list a[href$='{told['id']}']").wait_for(state="detached")
    visit.require_quiet()


def test_stop_gives_the_request_up(
    visit: Visit, server: Running, held: tuple[threading.Event, threading.Event]
) -> None:
    asked, go = held
    page = visit.open()
    visit.ask(PROBLEM)
    assert asked.wait(WAIT_S)
    visit.status("^Learning: ")
    assert "not learned yet" in page.locator("#result").inner_text()
    page.get_by_role("button", name="Stop").click()
    visit.status("^Stopped")
    until(lambda: not server.service._jobs)
    go.set()
    assert page.evaluate("document.activeElement.id") == "submit"
    assert page.get_by_role("button", name="Stop").count() == 0


def test_a_plain_answer_asks_for_no_practice(visit: Visit) -> None:
    page = visit.open()
    page.select_option("#model", "tiny-terms")
    assert page.get_by_role("radio", name="always").is_disabled()
    page.fill("#problem", PROBLEM)
    page.locator("#problem").press("Control+Enter")
    visit.status("^Answered by the unadapted weights")
    assert page.locator("#result .panel").count() == 1
    assert page.locator("#result .example").count() == 0


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ({"status": 429, "message": "the queue is full; try again in 3 s"}, "The queue is full; try again in 3 s."),
        ({"status": 502, "body": "<h1>bad gateway</h1>"}, "The server answered with status 502. Try again."),
        (None, "The server cannot be reached. See that mass serve is running, and try again."),
        (
            {"status": 200, "body": ": practising\n\n"},
            "The connection broke before the answer was complete. Ask again.",
        ),
    ],
)
def test_a_failure_is_one_sentence_that_says_what_to_do(visit: Visit, reply: dict[str, Any] | None, text: str) -> None:
    page = visit.open()

    def answer(route: Any) -> None:
        if reply is None:
            route.abort()
            return
        body = reply.get("body") or json.dumps({"error": {"message": reply["message"]}})
        route.fulfill(status=reply["status"], body=body)

    page.route("**/v1/chat/completions", answer)
    visit.ask(PROBLEM)
    visit.status("^No answer")
    assert page.get_by_role("alert").all_text_contents() == [text]
    assert page.get_by_role("button", name="Ask", exact=True).get_attribute("aria-disabled") == "false"


# --- hostile text


def hostile_entry(id: str, text: str) -> Entry:
    """Return an entry that has the text wherever a text of a client or of a model can be."""
    used = Example(text, text, text, (1,), weight=0.5, loss_before=1.0, loss_after=0.5, note=text)
    rejected = Example("", "", text, (1,), rejected=f"unparsed: {text}")
    decision = GateDecision(True, text, {"drift": 0.1, text: 1.0})
    config = {"gate": {"max_drift": 0.5}, text: text}
    record = Adaptation(
        text, HOSTILE, 1, config, text, examples=(used, rejected), gate=decision, unadapted_text=text + "a b",
        text=text + "a c", answer=text, engine=text, tokens={text: 3}, seconds={text: 0.5, "total": 1.0},
    )  # fmt: skip
    request = {"messages": [{"role": text, "text": text}], "model": text}
    return Entry.of(record, id=id, owner="", checkpoint=text, checkpoint_hash=text, extra={"request": request})


def test_hostile_text_of_a_record_is_shown_as_text(visit: Visit, server: Running) -> None:
    assert server.service.records is not None
    text = HOSTILE + LONG
    server.service.records.add(hostile_entry("hostile-1", text))
    page = visit.open("#/adaptations")
    page.locator("a[href$='hostile-1']").wait_for()
    visit.require_quiet()
    visit.require_no_overflow()
    page.locator("a[href$='hostile-1']").click()
    page.locator("#entry .facts").first.wait_for()
    assert page.locator("#entry pre").first.text_content() == text
    assert page.locator("#entry .chosen pre").text_content() == text + "a c"
    assert page.locator("#entry .example pre").all_text_contents() == [text, text, text]
    visit.require_quiet()
    visit.require_no_overflow()
    # What reorders text is named where it stands, and stays inside an element of its own.
    mark = page.locator("#entry pre .hidden-character").first
    assert mark.get_attribute("data-name") == "U+202E"
    assert mark.evaluate("node => getComputedStyle(node).unicodeBidi") == "isolate"
    shown = mark.evaluate("node => getComputedStyle(node, '::after').content")
    assert "U+202E" in shown or shown == "attr(data-name)"
    page.get_by_role("button", name="Delete").click()
    page.locator("dialog").get_by_role("button", name="Delete").click()
    page.get_by_role("heading", name="Past adaptations").wait_for()


def hostile_stream(text: str) -> str:
    """Return a stream of a server whose model writes the text everywhere."""
    practice = [
        {"problem": text, "solution": text, "text": text, "rejected": None, "note": text, "weight": 1.0,
         "loss_before": 1.0, "loss_after": 2.0},
        {"problem": "", "solution": "", "text": text, "rejected": text, "note": None, "weight": 0.0,
         "loss_before": None, "loss_after": None},
    ]  # fmt: skip
    end = {
        "id": text, "model": text, "adapted": True, "gate": {"adapt": True, "reason": text, "measures": {text: None}},
        "fallback": None, "seconds": {text: 1.0, "total": 2.0}, "tokens": {text: 5}, "seed": 1, "practice": practice,
        "unadapted": [text],
    }  # fmt: skip
    parts: list[dict[str, Any]] = [
        {"choices": [], "mass": {"stage": "unadapted", "unadapted": [text]}},
        {"choices": [], "mass": {"stage": "written", "practice": practice}},
        {"choices": [], "mass": {"stage": "learned", "practice": practice}},
        *({"choices": [{"delta": {"content": part}}]} for part in (text, "the rest")),
        {"choices": [{"delta": {}, "finish_reason": "stop"}], "mass": end},
    ]
    return "".join(f"data: {json.dumps(part)}\n\n" for part in parts) + "data: [DONE]\n\n"


def test_hostile_text_of_a_model_is_shown_as_text(visit: Visit) -> None:
    page = visit.open()
    text = HOSTILE + LONG
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=200, body=hostile_stream(text)))
    visit.ask(HOSTILE)
    visit.status("^Answered by the adapted weights")
    assert page.locator("#result .chosen pre").text_content() == text + "the rest"
    assert page.locator("#result ins").last.text_content().endswith("the rest")
    assert page.locator("#result .example pre").all_text_contents() == [text, text, text]
    visit.require_quiet()
    visit.require_no_overflow()


def test_a_hostile_problem_is_sent_and_kept_as_it_is(visit: Visit, server: Running) -> None:
    page = visit.open()
    visit.ask(HOSTILE + "\n\n" + OVERRIDE)
    visit.status("^Answered by the ")
    page.get_by_role("link", name="Its record").click()
    page.locator("#entry .facts").first.wait_for()
    assert page.locator("#entry pre").first.text_content() == HOSTILE + "\n\n" + OVERRIDE
    kept = server.get("/v1/mass/adaptations?limit=1").json()["data"][0]
    assert kept["problem"] == HOSTILE + "\n\n" + OVERRIDE
    visit.require_quiet()


# --- past adaptations


def entries(count: int) -> list[Entry]:
    def one(place: int) -> Entry:
        fallback = "certain without practice" if place % 2 else ""
        decision = GateDecision(not fallback, fallback or "passed")
        record = Adaptation(f"Paged problem {place}", ADAPTING, place, {}, "", gate=decision, fallback=fallback)
        entry = Entry.of(
            record, id=f"paged-{place}", owner="", checkpoint="mass", checkpoint_hash="0", time=place + 1.0
        )
        return dataclasses.replace(entry, summary=dataclasses.replace(entry.summary, model=ADAPTING))

    return [one(place) for place in range(count)]


def test_the_list_is_filtered_and_paged(visit: Visit, server: Running) -> None:
    records = server.service.records
    assert records is not None
    for entry in entries(60):
        records.add(entry)
    records.set_verdict("paged-3", True, owner=None)
    page = visit.open("#/adaptations")
    rows = page.locator("#list tbody tr")

    def shown(change: Callable[[], Any], first: str, count: int) -> None:
        change()
        rows.first.filter(has_text=first).wait_for()
        assert rows.count() == count

    def search() -> None:
        page.get_by_label("Text in the problem").fill("paged PROBLEM")
        page.get_by_role("button", name="Filter").click()

    shown(search, "Paged problem 59", 25)
    shown(page.get_by_role("link", name="Older").click, "Paged problem 34", 25)
    shown(page.get_by_role("link", name="Older").click, "Paged problem 9", 10)
    assert page.get_by_role("link", name="Older").count() == 0
    shown(page.go_back, "Paged problem 34", 25)
    shown(page.get_by_role("link", name="Newest").click, "Paged problem 59", 25)
    shown(lambda: page.get_by_label("Weights").select_option("adapted"), "Paged problem 58", 25)
    shown(lambda: page.get_by_label("Weights").select_option("unadapted"), "Paged problem 59", 25)
    shown(lambda: page.get_by_label("Was it right?").select_option("yes"), "Paged problem 3", 1)
    page.get_by_label("Decision").select_option("passed")
    page.get_by_text("No past adaptation matches.").wait_for()
    assert rows.count() == 0
    page.get_by_role("link", name="Clear").click()
    rows.nth(24).wait_for()
    assert page.get_by_label("Text in the problem").input_value() == ""
    for entry in entries(60):
        records.delete(entry.summary.id, owner=None)


def test_a_server_without_records_says_how_to_keep_them(visit: Visit) -> None:
    error = {"error": {"message": "no records", "code": "records_off"}}
    visit.page.route("**/v1/mass/adaptations?*", lambda route: route.fulfill(status=404, body=json.dumps(error)))
    page = visit.open("#/adaptations")
    page.get_by_text("This server keeps no records.").wait_for()
    assert page.locator("#filters").is_hidden()


def test_a_record_that_is_not_there_is_said(visit: Visit) -> None:
    page = visit.open("#/adaptations/mass-none%27%3Cb%3E")
    page.get_by_role("alert").filter(has_text="does not exist").wait_for()
    visit.require_quiet()


# --- keys


def test_a_key_is_asked_for_kept_in_the_tab_and_shows_its_own_records(browser: Any, locked: Running) -> None:
    alice, bob = KEYS["MASS_API_KEY"].split(",")
    records = locked.service.records
    assert records is not None
    owner = owner_of(alice)
    entry = hostile_entry("of-alice", "a problem of Alice")
    records.add(dataclasses.replace(entry, summary=dataclasses.replace(entry.summary, owner=owner)))
    for one in records.list(owner=owner_of(bob), limit=MOST).entries:  # of other tests of this server
        records.delete(one.id, owner=owner_of(bob))
    assert httpx2.get(locked.url, timeout=WAIT_S).status_code == 401
    visit = Visit(browser, locked.url, http_credentials={"username": "any", "password": bob})
    try:
        page = visit.open("#/adaptations")
        page.get_by_text("Nothing has been recorded yet.").wait_for()
        page.get_by_role("button", name="Key", exact=True).click()
        page.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_role("alert").filter(has_text="This server wants another key.").wait_for()
        assert page.evaluate("document.activeElement.id") == "key"
        page.get_by_label("API key").fill(alice)
        page.keyboard.press("Enter")
        page.get_by_role("link", name="a problem of Alice").wait_for()
        assert page.locator("#trouble").is_hidden()
        assert page.evaluate("JSON.stringify(Object.values(sessionStorage))") == json.dumps([alice])
        assert page.evaluate("localStorage.length + document.cookie.length") == 0
        assert alice not in page.content() + page.url
        page.get_by_role("button", name="Key", exact=True).click()
        page.get_by_role("button", name="Forget it").click()
        page.get_by_text("Nothing has been recorded yet.").wait_for()
        assert page.evaluate("sessionStorage.length") == 0
        visit.require_quiet()
    finally:
        visit.context.close()


# --- for everybody


def test_every_control_has_a_name_and_the_focus_follows(visit: Visit) -> None:
    page = visit.open()
    unnamed = "[...document.querySelectorAll('input, select, textarea')].filter(n => !n.labels.length).length"
    assert page.evaluate(unnamed) == 0
    assert page.locator("#status").get_attribute("role") == "status"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(3):
        page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Past adaptations").wait_for()
    assert page.evaluate("document.activeElement.id") == "history-title"
    assert page.title() == "Past adaptations · MASS"


def test_light_and_dark_are_the_readers_own(visit: Visit) -> None:
    page = visit.open()

    def lightness(scheme: str) -> int:
        page.emulate_media(color_scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)))

    assert lightness("light") > 700
    assert lightness("dark") < 100


def test_differences_are_outside_a_longest_common_subsequence(visit: Visit) -> None:
    page = visit.open()
    draw = random.Random(0)
    for _ in range(30):
        a, b = ([draw.choice("abc") for _ in range(draw.randrange(12))] for _ in range(2))
        only_a, only_b = page.evaluate("async ([a, b]) => (await import('/text.js')).differences(a, b)", [a, b])
        kept = [[x for x, only in zip(*one, strict=True) if not only] for one in ((a, only_a), (b, only_b))]
        assert kept[0] == kept[1]
        assert len(kept[0]) == longest(a, b)


def longest(a: list[str], b: list[str]) -> int:
    """Length of a longest common subsequence, from its definition."""
    if not a or not b:
        return 0
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            rows[i + 1][j + 1] = rows[i][j] + 1 if x == y else max(rows[i][j + 1], rows[i + 1][j])
    return rows[-1][-1]
