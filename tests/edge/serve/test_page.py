"""The page at `/`: what it is made of, and what a person sees of it in a real Chromium."""

import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from build_gguf import tiny_pack
from build_server import serving
from slm_edge.edge.serve.page import FILES


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return tiny_pack(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def server(pack):
    with serving(pack) as server:
        yield server


@pytest.fixture(scope="module")
def keyed(pack, tmp_path_factory):
    """A server that asks for keys, and the secret of one."""
    import subprocess
    import sys

    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    command = [sys.executable, "-m", "slm_edge.edge", "serve", "--keys", str(keys), "--new-key", "alice"]
    secret = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    with serving(pack, "--keys", str(keys)) as server:
        yield server, secret


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium or another; the test skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium (apt install chromium, or name one in CHROMIUM)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    """The page, opened; an error of its script or of its policy fails the test."""
    context = browser.new_context()
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.goto(server.url)
    page.wait_for_selector("#model option:nth-child(2)", state="attached")
    yield page
    context.close()
    assert not errors


def test_its_files_come_from_here_and_nothing_else_can(server):
    for path in FILES:
        reply = server.get(path)
        assert reply.status == 200
        assert reply.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert reply.headers["x-content-type-options"] == "nosniff"
        for url in re.findall(r"https?://[^\"' )]+", reply.body.decode()):
            assert url == "http://www.w3.org/2000/svg"
    html = server.get("/").body.decode()
    # The policy would stop each of them.
    assert not re.search(r"<style|style=|\son\w+=|<script(?! src)", html)
    assert server.request("HEAD", "/page.js").body == b""


def test_the_state_is_for_those_with_a_key(server, keyed):
    state = server.get("/v1/slm/state").json
    assert state["state"] == "ready" and state["places"] == 4
    assert [one["name"] for one in state["adapters"]] == ["math", "code"]
    with_keys, secret = keyed
    assert with_keys.get("/").status == 200
    assert with_keys.get("/v1/slm/state").status == 401
    assert with_keys.get("/v1/slm/state", headers={"authorization": f"Bearer {secret}"}).status == 200


def test_an_answer_says_which_adapter_gave_it(page, server):
    page.select_option("#model", "code")
    page.fill("#text", "the world")
    page.keyboard.press("Enter")
    page.wait_for_selector(".said:not([aria-busy]) .by")
    shown = page.locator(".said").last
    assert shown.locator(".by").inner_text().startswith("code")
    body = {"model": "code", "messages": [{"role": "user", "content": "the world"}]}
    said = server.post("/v1/chat/completions", body).json["choices"][0]["message"]["content"]
    assert "".join(shown.locator("div").inner_text().split()) == "".join(said.replace("```", "").split())
    assert page.locator("#state").inner_text().startswith("state ready")


def test_stop_takes_the_request_back(page, server):
    before = server.get("/v1/slm/state").json["cancelled"]
    # All places of this adapter are taken for a while, and others wait for them: who comes then waits behind.
    shape = {"type": "array", "items": {"type": "integer"}, "minItems": 400}
    form = {"type": "json_schema", "json_schema": {"name": "numbers", "schema": shape}}
    page.select_option("#model", "math")
    with ThreadPoolExecutor(12) as busy:
        for _ in range(12):
            busy.submit(server.chat, model="math", max_tokens=400, response_format=form)
        while server.get("/v1/slm/state").json["waiting"] < 4:
            time.sleep(0.02)
        page.fill("#text", "the rest")
        page.click("#send")
        page.wait_for_selector("#stop:not([hidden])")
        page.keyboard.press("Escape")
        page.wait_for_selector("#send:not([hidden])")
        assert page.locator("#note").inner_text() == "Stopped."
        # Where nothing was said, the question is there to be asked again.
        said = page.locator(".said").count()
        assert page.locator("#text").input_value() == ("" if said else "the rest")
        end_s = time.monotonic() + 30
        while server.get("/v1/slm/state").json["cancelled"] == before:
            assert time.monotonic() < end_s
            time.sleep(0.05)


def test_what_a_model_says_is_text(page):
    """The page's own functions, given what a model could say."""
    hostile = (
        "<img src=x onerror=document.title='x'><script>document.title='x'</script>\n```html\n<b>bold</b>\n```\nend"
    )
    page.evaluate("said => { const li = made('li'); talk.append(li); show(li, said); }", hostile)
    shown = page.locator("#talk li").last
    assert shown.locator("img, script, b").count() == 0
    assert shown.locator("pre code").inner_text() == "<b>bold</b>"
    assert "<img src=x" in shown.inner_text()
    assert page.title() == "slm-edge"


def test_with_a_key_the_page_asks_for_it(browser, keyed):
    server, secret = keyed
    page = browser.new_page()
    page.goto(server.url)
    page.wait_for_selector("#note.failed")
    assert "key" in page.locator("#note").inner_text()
    # The menu with the key is opened for that.
    page.fill("#key", secret)
    page.keyboard.press("Tab")
    page.wait_for_selector("#model option:nth-child(2)", state="attached")
    assert secret not in page.url
    page.close()


def test_it_fits_a_phone_and_is_named_for_screen_readers(browser, server):
    page = browser.new_page(viewport={"width": 360, "height": 640}, color_scheme="dark")
    page.goto(server.url)
    page.wait_for_selector("#model option:nth-child(2)", state="attached")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for role, name in (("combobox", "Model"), ("textbox", "Message"), ("button", "Send"), ("log", "Conversation")):
        assert page.get_by_role(role, name=name, exact=True).count() == 1, name
    colours = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    assert colours == ["rgb(17, 21, 26)", "rgb(230, 237, 243)"]
    # By keyboard alone: from the top to the message box in a few steps.
    page.locator("body").evaluate("node => node.focus()")
    seen = []
    for _ in range(8):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id"))
    assert {"model", "new", "text"} <= set(seen)
    page.close()
