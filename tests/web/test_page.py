"""The page, in a real browser."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable
from uuid import UUID

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from coordinator import pair_state
from tasks.database import Database
from tasks.ledger import Ledger
from tasks.throttle import Limits, set_limits
from tests.browser import SECONDS, Open
from tests.e2e.conftest import Side, fill
from tests.eventually import eventually
from tests.integration.ledger_rows import add_worker, plan_run
from tests.ports import free_port
from tests.web.conftest import TOKEN, Serve, pair
from tests.web.test_metrics import do, end, execute, fail
from tests.web.test_process_metrics import Start, ask
from tests.web.test_process_metrics import start as start

NASTY = "<img src=x onerror=\"document.title='taken over'\"><script>1</script>&amp;"


def address(web: httpx.Client) -> str:
    return str(web.base_url)


@pytest.fixture
def failed_run(database: Database) -> UUID:
    """A run of the pair that has failed, and has nasty names in it."""
    add_worker(database, "w")
    run_id, tasks = plan_run(database, list("abcdef"), chunk_size=2)
    do(database, tasks[0], added=2)
    fail(database, tasks[1])
    do(database, tasks[2], added=2)
    execute(database, "UPDATE sync_runs SET pair = 'docs'")
    execute(database, "UPDATE sync_tasks SET collection_name = %s", NASTY)
    execute(database, "UPDATE sync_tasks SET error = %s WHERE error IS NOT NULL", NASTY)
    end(database, run_id, verified=False)
    return run_id


# Live -------------------------------------------------------------------------------------------


Coordinate = Callable[[], subprocess.Popen[str]]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def coordinate(start: Start, port: int, sides: tuple[Side, Side]) -> Coordinate:
    """Starts a coordinator without a worker, and waits for its page."""

    def started() -> subprocess.Popen[str]:
        coordinator = start(
            "coordinator",
            SYNC_SOURCE_URL=sides[0].url,
            SYNC_TARGET_URL=sides[1].url,
            SYNC_CHUNK_SIZE="10",
            SYNC_WEB_PORT=str(port),
            SYNC_API_TOKEN=TOKEN,
            ENABLE_SYNC_WORKER="false",
        )
        eventually(lambda: ask(port, "/healthz"), within=60)
        return coordinator

    return started


def completed(page: Page) -> int:
    """How many chunks the grid says are completed."""
    label = page.locator(".grid canvas").first.get_attribute("aria-label") or ""
    found = re.search(r"([\d,]+) completed", label)
    return int(found[1].replace(",", "")) if found else 0


def test_a_run_is_seen_as_it_happens(
    coordinate: Coordinate,
    start: Start,
    port: int,
    sides: tuple[Side, Side],
    opened: Open,
    database: Database,
) -> None:
    fill(sides[0].client, "docs", 600)
    # Slow enough to be watched, on a fast machine too.
    set_limits(database, sides[1].url.partition("?")[0], Limits(records_per_second=60))
    coordinate()
    page = opened(f"http://127.0.0.1:{port}/")
    page.evaluate("window.neverReloaded = true")
    card = page.locator(".pair")
    expect(card).to_contain_text("syncing")
    expect(card).to_contain_text("not yet known to be alike")
    expect(page.locator("#no-workers")).to_be_visible()
    workers = [start("worker") for _ in range(2)]
    expect(page.locator("#workers tr[data-status=active]")).to_have_count(2)
    expect(page.locator(".grid figcaption")).to_contain_text("docs · 60 chunks")
    seen = eventually(lambda: completed(page), within=60)
    assert seen < 60
    eventually(lambda: completed(page) > seen, within=60)
    expect(page.locator(".phases [aria-current]")).to_contain_text("Sync")
    # One is killed; the other does the rest.
    workers[0].send_signal(signal.SIGKILL)
    expect(page.locator("#workers tr[data-status=dead]")).to_have_count(1)
    set_limits(database, sides[1].url.partition("?")[0], Limits())
    expect(card).to_contain_text("verified alike", timeout=90 * SECONDS)
    expect(page.locator("#work-title")).to_have_text("Last run")
    expect(page.locator(".work")).to_contain_text("verified")
    expect(page.locator("#history svg").first).to_be_visible()
    assert page.evaluate("window.neverReloaded")
    # What the page says is what the ledger says.
    assert completed(page) == 60
    shares = page.locator(".cell-share").all_inner_texts()
    assert sum(int(re.sub(r"\D", "", text)) for text in shares) >= 60


def test_a_lost_connection_is_told_and_found_again(
    coordinate: Coordinate, port: int, opened: Open
) -> None:
    coordinator = coordinate()
    page = opened(f"http://127.0.0.1:{port}/")
    expect(page.locator("#connection")).to_have_text("live")
    expect(page.locator("#banner")).to_be_hidden()
    coordinator.terminate()
    coordinator.wait(30)
    expect(page.locator("#connection")).to_have_text("connection lost")
    expect(page.locator("#banner")).to_be_visible()
    expect(page.locator("#banner")).to_contain_text(
        "The coordinator does not answer. What is shown"
    )
    expect(page.locator(".pair")).to_be_visible()  # what was known stays
    coordinate()
    expect(page.locator("#connection")).to_have_text("live")
    expect(page.locator("#banner")).to_be_hidden()


# What it shows, and asks for ----------------------------------------------------------------------


def test_names_and_reasons_are_never_markup(
    web: httpx.Client, failed_run: UUID, opened: Open
) -> None:
    page = opened(address(web))
    expect(page.locator(".trouble li")).to_contain_text(NASTY)
    expect(page.locator(".grid figcaption")).to_contain_text(NASTY)
    assert page.locator("main img").count() == 0
    assert page.title() == "chroma-sync"


def test_the_token_is_asked_for_when_it_is_needed(
    web: httpx.Client, database: Database, opened: Open
) -> None:
    page = opened(address(web))
    dialog = page.locator("#token-dialog")
    page.get_by_role("button", name="Verify now").click()
    expect(dialog).to_be_visible()
    page.get_by_label("SYNC_API_TOKEN").fill("not the token at all")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("was refused")
    assert pair_state.read_state(database, "docs").requested is None
    page.get_by_label("SYNC_API_TOKEN").fill(TOKEN)
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#toast")).to_contain_text("A verify of docs begins")
    expect(page.locator(".pair")).to_contain_text("verify asked for")
    assert pair_state.read_state(database, "docs").requested == "verify"
    # Kept for the tab, and nowhere else.
    assert page.evaluate("sessionStorage.getItem('chroma-sync-token')") == TOKEN
    assert page.evaluate("localStorage.length") == 0
    assert page.context.cookies() == []
    assert TOKEN not in page.content()
    page.get_by_role("button", name="Pause").click()
    expect(page.locator(".pair")).to_contain_text("paused")
    expect(page.get_by_role("button", name="Resume")).to_be_visible()


def test_a_page_for_all_the_world_shows_nothing_before_the_token(
    serve: Serve, database: Database, browser: Browser
) -> None:
    pair_state.register(database, [pair()])
    web = serve(pair(), sync_web_host="0.0.0.0")
    page = browser.new_page()
    page.goto(address(web))
    expect(page.locator("#token-dialog")).to_be_visible()
    expect(page.locator("#page")).to_have_attribute("aria-busy", "true")
    page.get_by_label("SYNC_API_TOKEN").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator(".pair")).to_contain_text("docs")
    page.close()


def test_without_a_token_of_the_coordinators_there_is_nothing_to_press(
    serve: Serve, database: Database, failed_run: UUID, opened: Open
) -> None:
    pair_state.register(database, [pair()])
    page = opened(address(serve(pair(), sync_api_token=None)))
    expect(page.locator("#read-only")).to_be_visible()
    expect(page.locator("main").get_by_role("button")).to_have_count(0)


def test_a_failed_run_can_be_tried_again(
    web: httpx.Client, database: Database, failed_run: UUID, opened: Open
) -> None:
    page = opened(address(web), token=TOKEN)
    trouble = page.locator(".trouble")
    expect(trouble).to_contain_text(f"docs {str(failed_run)[:8]}: 1 chunk failed")
    expect(trouble).to_contain_text("records 2 to 4")
    trouble.get_by_role("button", name="Retry").click()
    expect(page.locator("#toast")).to_contain_text("A sync of docs begins")
    assert pair_state.read_state(database, "docs").requested == "sync"


def test_a_run_is_cancelled_only_if_that_is_meant(
    web: httpx.Client, database: Database, opened: Open
) -> None:
    run_id, _ = plan_run(database, list("abcdef"), chunk_size=2)
    page = opened(address(web), token=TOKEN)
    page.get_by_role("button", name="Cancel run").click()
    page.get_by_role("button", name="Leave it").click()
    assert not Ledger(database).progress(run_id).is_over
    with database.connection() as connection:
        (row,) = connection.execute("SELECT status FROM sync_runs").fetchall()
    assert row == ("running",)
    page.get_by_role("button", name="Cancel run").click()
    page.locator("#ask-dialog").get_by_role("button", name="Cancel run").click()
    expect(page.locator(".work")).to_contain_text("cancelled")


def test_it_can_be_used_by_keyboard(web: httpx.Client, database: Database, opened: Open) -> None:
    page = opened(address(web), token=TOKEN)
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Sync now":
            break
    # Still there, and still focused, after the page has been brought up to date.
    execute(database, "UPDATE sync_pairs SET next_run_at = now() + interval '1 hour'")
    expect(page.locator(".pair")).to_contain_text("next in 1 h")
    assert page.evaluate("document.activeElement.textContent") == "Sync now"
    page.keyboard.press("Enter")
    expect(page.locator("#toast")).to_contain_text("A sync of docs begins")


def test_the_bar_of_a_worker_is_its_share_of_the_work(
    web: httpx.Client, database: Database, failed_run: UUID, opened: Open
) -> None:
    add_worker(database, "idle")
    page = opened(address(web))
    shares = {}
    for row in page.locator("#workers tr").all():
        bar, filled = row.locator(".meter"), row.locator(".meter > span")
        expect(filled).to_have_attribute("style", re.compile("width"))
        page.wait_for_function(
            "bar => bar.getAnimations().length === 0", arg=filled.element_handle()
        )
        widths = [one.evaluate("one => one.getBoundingClientRect().width") for one in (filled, bar)]
        shares[row.locator(".name").inner_text()] = widths[0] / widths[1]
    assert shares == {"w": 1, "idle": 0}


def test_ten_thousand_chunks_fit(web: httpx.Client, database: Database, opened: Open) -> None:
    plan_run(database, [f"{n}" for n in range(10_000)], chunk_size=1)
    page = opened(address(web))
    expect(page.locator(".legend")).to_contain_text("a cell is 7 chunks")
    size = page.locator(".grid canvas").bounding_box()
    assert size is not None
    assert size["height"] < 500
    # And what it says grows with what is done.
    execute(
        database,
        "UPDATE sync_tasks SET task_status = 'completed', completed_at = now(),"
        " started_at = now(), worker_id = 'w' WHERE chunk_start_offset < 5000",
    )
    expect(page.locator(".percent")).to_contain_text("50 %")


@pytest.mark.parametrize("width", [360, 820, 1440])
def test_it_fits_every_screen(
    web: httpx.Client, database: Database, failed_run: UUID, opened: Open, width: int
) -> None:
    plan_run(database, [f"{n}" for n in range(300)], chunk_size=1)
    page = opened(address(web), viewport={"width": width, "height": 800})
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    expect(page.locator(".trouble li")).to_be_visible()
    canvas = page.locator(".grid canvas").bounding_box()
    assert canvas is not None
    assert canvas["x"] + canvas["width"] <= width


CONTRASTS = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((part) => part / 255)
    .map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (colour.startsWith("rgb(")) return parse(colour);
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
    if (!own || !element.checkVisibility()) continue;
    const [one, other] = [parse(getComputedStyle(element).color), ground(element)].map(light);
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) poor.push(`${element.className || element.tagName}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_by_light_and_in_the_dark(
    web: httpx.Client, failed_run: UUID, opened: Open, scheme: str
) -> None:
    page = opened(address(web), token=TOKEN, color_scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", ground)[0]) < 128) == (scheme == "dark")
    assert page.evaluate(CONTRASTS) == []


def test_it_can_be_read_out(web: httpx.Client, failed_run: UUID, opened: Open) -> None:
    page = opened(address(web), token=TOKEN)
    for role in ("button", "img", "progressbar", "link"):
        for element in page.get_by_role(role).all():
            name = element.get_attribute("aria-label") or element.inner_text()
            assert name.strip(), element
    assert page.locator("h1").count() == 1
    assert page.get_by_role("heading", name="Workers").is_visible()
    label = page.locator(".grid canvas").get_attribute("aria-label")
    assert label == "3 chunks: 2 completed, 0 being worked on, 0 waiting, 1 failed."
