"""The API beside the pages, in the running app: cookies and tokens give no rights to each other; and its own page."""

import re
from collections.abc import Callable
from typing import Any

import httpx

from alignment.records import Comparison
from preference_ui.accounts.tokens import make_token
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.web.api.application import api_app
from preference_ui.web.api.openapi_page import openapi_html
from preference_ui.web.middleware import COOKIE


def test_a_cookie_opens_nothing_of_the_api_and_a_token_none_of_the_pages(
    running_app: Any, comparison: Callable[..., Comparison]
) -> None:
    root = running_app.sign_in("root", "administrator")
    for path in ("votes", "records", "queues", "guidelines"):
        assert root.get(f"/api/v1/{path}").status_code == 401
    for path in ("comparisons", "leases", "guidelines/read"):
        assert root.post(f"/api/v1/{path}", json={}).status_code == 401
    queue_comparisons(running_app.store, [comparison("api-0")], votes_wanted=50)
    store = running_app.store
    tokens = [make_token(store, "t", ["queue", "read"], account=root.name, created_by="test")[1]]
    rater = running_app.sign_in("voter")
    tokens.append(make_token(store, "t", ["vote"], account=rater.name, created_by="test")[1])
    for token in tokens:
        for client in (httpx.Client(base_url=running_app.url, headers={"authorization": f"Bearer {token}"}),
                       httpx.Client(base_url=running_app.url, cookies={COOKIE: token})):  # fmt: skip
            for page in ("/rate", "/admin", "/review", "/arena"):
                assert client.get(f"{page}/config").status_code == 401
                assert client.get(page).status_code == 303
            assert running_app.call(client, "begin").status_code == 401
            assert running_app.call(client, "overview", page="/admin").status_code == 401
            assert client.get("/metrics").status_code == 404
    head = {"authorization": f"Bearer {tokens[1]}"}
    assert httpx.post(f"{running_app.url}/api/v1/leases", headers=head).json()["lease"]["answers"]
    stolen = {"origin": "https://evil.example"}
    assert httpx.post(f"{running_app.url}/api/v1/leases", headers=head | stolen).status_code == 403


def test_the_page_of_the_api_is_shown_to_everybody_and_needs_nothing_from_elsewhere(running_app: Any) -> None:
    page = httpx.get(f"{running_app.url}/api/v1/docs")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    loaded = re.findall(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="([^"]*)"', page.text)
    assert loaded
    for address in loaded:
        assert address.startswith("/desk/")
        assert httpx.get(running_app.url + address).status_code == 200
    assert not re.search(r"https?://|@import|//cdn", page.text)
    document = httpx.get(f"{running_app.url}/api/v1/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert document["servers"] == [{"url": "/api/v1"}]
    operations = [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]
    assert len(operations) == 14
    for method, path in operations:
        assert f"{method} {path}" in page.text
    for path, methods in document["paths"].items():
        for one in methods.values():
            assert one["security"] == [{"HTTPBearer": []}], path
            assert {"401", "403", "422", "429"} <= set(one["responses"])


def test_every_link_of_the_page_leads_somewhere_and_what_it_says_is_text(sqlite_store: Any) -> None:
    document = api_app(sqlite_store).openapi()
    html = openapi_html(document)
    places = set(re.findall(r'id="([^"]+)"', html))
    links = re.findall(r'href="#([^"]+)"', html)
    assert len(links) > 28
    assert [link for link in links if link not in places] == []
    document["paths"]["/votes"]["get"]["description"] = "<script>alert(1)</script>"
    document["info"]["description"] = "<img src=x onerror=alert(1)>"
    assert "<script>alert" not in openapi_html(document)
    assert "<img" not in openapi_html(document)
