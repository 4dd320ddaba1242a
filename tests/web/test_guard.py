"""Who may ask for what."""

from __future__ import annotations

import hmac
import socket

import httpx
import pytest

from coordinator import pair_state
from coordinator.service import Role, check_role
from coordinator.web.address import Listen, bind, metrics_address, web_address
from tasks.database import Database
from tasks.errors import InvalidInput
from tasks.settings import Settings, load_settings
from tests.ports import free_port
from tests.web.conftest import TOKEN, Serve, change, pair

BEARER = {"authorization": f"Bearer {TOKEN}"}
PAUSE = "/api/v1/pairs/docs/pause"
DATA = ["/api/v1/overview", "/api/v1/pairs", "/api/v1/openapi.json", "/metrics"]
OPEN = ["/", "/healthz", "/static/page.js"]


def is_paused(database: Database) -> bool:
    return pair_state.statuses(database)[0].paused


# On this machine only ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*OPEN, *DATA])
def test_looking_needs_no_token_on_loopback(web: httpx.Client, path: str) -> None:
    assert web.get(path).status_code == 200


@pytest.mark.parametrize("path", [*OPEN, *DATA, "/readyz"])
def test_a_foreign_name_that_leads_here_is_refused(web: httpx.Client, path: str) -> None:
    answer = web.get(path, headers={"host": "rebound.example:8080"})
    assert answer.status_code == 421


@pytest.mark.parametrize("host", ["localhost:9", "127.0.0.1", "[::1]:8080", "LocalHost"])
def test_the_names_of_this_machine_are_known(web: httpx.Client, host: str) -> None:
    assert web.get("/api/v1/pairs", headers={"host": host}).status_code == 200


def test_a_change_needs_the_token(web: httpx.Client, database: Database) -> None:
    for headers in (
        {},
        {"authorization": "Bearer another token"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": TOKEN},
        {"authorization": "Bearer"},
    ):
        answer = web.post(PAUSE, json={}, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert not is_paused(database)
    assert change(web, PAUSE).status_code == 200
    assert is_paused(database)


def test_without_a_token_nothing_can_be_changed(serve: Serve, database: Database) -> None:
    pair_state.register(database, [pair()])
    web = serve(pair(), sync_api_token=None)
    for headers in ({}, BEARER, {"authorization": "Bearer"}, {"authorization": "Bearer None"}):
        answer = web.post(PAUSE, json={}, headers=headers)
        assert answer.status_code == 403
        assert "SYNC_API_TOKEN" in answer.json()["error"]
    assert not is_paused(database)
    assert web.get("/api/v1/overview").json()["may_change"] is False


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://elsewhere.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_site_changes_nothing(
    web: httpx.Client, database: Database, headers: dict[str, str]
) -> None:
    answer = web.post(PAUSE, json={}, headers=BEARER | headers)
    assert answer.status_code == 403
    assert not is_paused(database)


def test_the_page_itself_may_change_things(web: httpx.Client, database: Database) -> None:
    own = {"origin": str(web.base_url).rstrip("/"), "sec-fetch-site": "same-origin"}
    assert web.post(PAUSE, json={}, headers=BEARER | own).status_code == 200
    assert is_paused(database)


def test_a_form_changes_nothing(web: httpx.Client, database: Database) -> None:
    # What a page elsewhere can send without asking.
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data"):
        answer = web.post(PAUSE, content=b"{}", headers=BEARER | {"content-type": kind})
        assert answer.status_code == 415
    assert not is_paused(database)


def test_a_long_body_is_refused_unread(web: httpx.Client) -> None:
    headers = BEARER | {"content-type": "application/json"}
    assert web.post(PAUSE, content=b" " * 20_000, headers=headers).status_code == 413
    pieces = (b" " for _ in range(3))  # sent in chunks, without a length
    assert web.post(PAUSE, content=pieces, headers=headers).status_code == 411


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_looking_changes_nothing(web: httpx.Client, database: Database, method: str) -> None:
    assert web.request(method, PAUSE, headers=BEARER).status_code == 405
    assert not is_paused(database)


def test_no_answer_may_be_read_elsewhere_or_run_what_it_holds(web: httpx.Client) -> None:
    for path in (*OPEN, *DATA):
        headers = web.get(path, headers={"origin": "https://elsewhere.example"}).headers
        assert "access-control-allow-origin" not in headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy


def test_tokens_are_compared_in_constant_time(
    web: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append({one, other})
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert web.post(PAUSE, json={}, headers=BEARER).status_code == 401
    assert compared == [{TOKEN.encode()}]


# Beyond this machine ------------------------------------------------------------------------------


@pytest.fixture
def exposed(serve: Serve, database: Database) -> httpx.Client:
    pair_state.register(database, [pair()])
    return serve(pair(), sync_web_host="0.0.0.0")


@pytest.mark.parametrize("path", DATA)
def test_beyond_loopback_looking_needs_the_token(exposed: httpx.Client, path: str) -> None:
    host = {"host": "sync.example"}
    assert exposed.get(path, headers=host).status_code == 401
    assert exposed.get(path, headers=host | BEARER).status_code == 200


@pytest.mark.parametrize("path", OPEN)
def test_what_holds_nothing_is_open(exposed: httpx.Client, path: str) -> None:
    assert exposed.get(path, headers={"host": "sync.example"}).status_code == 200


def test_whether_it_is_ready_is_open_but_not_why(exposed: httpx.Client) -> None:
    strangers, ours = exposed.get("/readyz"), exposed.get("/readyz", headers=BEARER)
    assert strangers.status_code == ours.status_code == 503
    assert "detail" not in strangers.text
    assert "127.0.0.1" not in strangers.text
    assert "cannot connect" in ours.text


def test_no_listening_beyond_loopback_without_a_token() -> None:
    for host in ("0.0.0.0", "::", "10.0.0.1", "sync.example"):
        with pytest.raises(InvalidInput, match=r"^SYNC_API_TOKEN is not set"):
            web_address(Settings(sync_web_host=host))
        with pytest.raises(InvalidInput, match=r"^SYNC_API_TOKEN is not set"):
            check_role(Settings(sync_web_host=host), Role(coordinates=True, works=False))
        with pytest.raises(InvalidInput, match=r"^SYNC_API_TOKEN is not set"):
            metrics_address(Settings(sync_web_host=host, sync_metrics_port=9200))
    for host in ("127.0.0.1", "::1", "localhost", "127.8.0.1"):
        assert web_address(Settings(sync_web_host=host)) is not None


# Where to listen ----------------------------------------------------------------------------------


def settings(**given: object) -> Settings:
    return Settings.model_validate({"sync_api_token": TOKEN} | given)


def test_loopback_is_the_default() -> None:
    assert web_address(Settings()) == Listen(host="127.0.0.1", port=8080, is_fixed=False)


def test_the_port_of_a_platform_counts_and_is_for_all_the_world() -> None:
    assert web_address(settings(port=5000)) == Listen(host="0.0.0.0", port=5000, is_fixed=True)
    assert web_address(settings(port=5000, sync_web_host="127.0.0.1")) == Listen(
        host="127.0.0.1", port=5000, is_fixed=True
    )
    assert web_address(settings(port=5000, sync_web_port=9000)) == Listen(
        host="127.0.0.1", port=9000, is_fixed=True
    )


def test_nothing_is_served_on_port_0() -> None:
    assert web_address(Settings(sync_web_port=0, port=5000)) is None
    assert metrics_address(Settings(port=5000)) is None


def test_a_port_that_is_taken_is_told_or_passed_over() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(InvalidInput, match=f"port {port}: Address already in use"):
            bind(Listen(host="127.0.0.1", port=port, is_fixed=True))
        with bind(Listen(host="127.0.0.1", port=port, is_fixed=False)) as other:
            assert port < other.getsockname()[1] <= port + 20


def test_the_token_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNC_API_TOKEN", "short secret")
    assert TOKEN not in repr(settings())
    with pytest.raises(InvalidInput, match="at least 16") as caught:
        load_settings()
    assert "short secret" not in str(caught.value)
