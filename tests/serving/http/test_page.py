"""The page in a real Chromium: choosing, making, previews, keyboard, phone, what is copied and downloaded."""

import json
import os
import re
import shutil
import subprocess

import pytest

playwright_api = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.browser
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    if shutil.which(CHROMIUM) is None:
        pytest.skip(f"no Chromium at {CHROMIUM}")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url):
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if _unexpected(said) else None)
    page.on("request", lambda request: request.url.startswith((url, "data:")) or problems.append(request.url))
    page.goto(url)
    playwright_api.expect(page.locator("#label")).not_to_have_value("")
    yield page
    context.close()
    assert problems == []  # no error, and nothing asked of anyone else


def _unexpected(said) -> bool:
    """An error in the console, other than Chromium's note that an answer was not 200, or none came."""
    return said.type == "error" and not said.text.startswith("Failed to load resource")


def slide(page, name: str, value: float) -> None:
    page.locator(f"#{name}").evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input', {bubbles: true})) }",
        value,
    )


def test_images_sharpen_and_can_be_kept(page):
    slide(page, "n", 3)
    slide(page, "steps", 100)
    page.fill("#seed", "7")
    page.evaluate("""() => {
        window.sources = new Set();
        new MutationObserver((seen) => seen.forEach((one) => window.sources.add(one.target.src)))
            .observe(document.body, {subtree: true, attributeFilter: ['src']});
    }""")
    page.click("#go")
    playwright_api.expect(page.locator(".tile.done")).to_have_count(3)
    playwright_api.expect(page.locator("#status")).to_contain_text("3 images in")
    assert page.evaluate("window.sources.size") > 3  # more than the final images: there were previews
    with page.expect_download() as download:
        page.locator(".tile").first.hover()
        page.locator(".tile .save").first.click()
    assert download.value.suggested_filename == "tench-7-1.png"
    page.locator(".tile .open").nth(1).click()
    playwright_api.expect(page.locator("#viewer-name")).to_have_text("tench, Tinca tinca")
    settings = "100 steps · guidance 2 · ddim · seed 7"
    caption = playwright_api.expect(page.locator("#viewer-caption"))
    caption.to_have_text(f"image 2 of 3 · {settings}")
    page.keyboard.press("ArrowRight")
    caption.to_have_text(f"image 3 of 3 · {settings}")
    page.click("#viewer-next")
    caption.to_have_text(f"image 1 of 3 · {settings}")
    page.keyboard.press("Escape")
    playwright_api.expect(page.locator("#viewer")).not_to_be_visible()


def test_everything_by_keyboard(page):
    page.locator("#label").focus()
    page.keyboard.type("cra")
    playwright_api.expect(page.locator("#label-list [role=option]")).to_have_count(2)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    playwright_api.expect(page.locator("#label")).to_have_value("crane, machine")
    playwright_api.expect(page.locator(".batch")).to_have_count(0)  # Enter chose, it did not start
    page.keyboard.press("Control+Enter")
    playwright_api.expect(page.locator(".tile.done")).to_have_count(4)
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('open')"):
            break
    page.keyboard.press("Enter")
    playwright_api.expect(page.locator("#viewer")).to_be_visible()


def test_stopping(page):
    page.evaluate("document.getElementById('steps').max = 250")
    slide(page, "steps", 250)
    page.select_option("#sampler", "ddpm")
    slide(page, "n", 10)
    place = page.locator("#go").bounding_box()
    page.click("#go")
    playwright_api.expect(page.locator(".tile img:not([hidden])")).not_to_have_count(0)
    playwright_api.expect(page.locator("#go")).not_to_be_visible()
    assert page.locator("#stop").bounding_box() == place
    page.click("#stop")
    playwright_api.expect(page.locator("#status")).to_have_text("Stopped.")
    playwright_api.expect(page.locator("#go")).to_be_enabled()
    said = page.locator(".tile.failed figcaption")
    playwright_api.expect(said).not_to_have_count(0)
    for text in said.all_text_contents():
        assert re.fullmatch("stopped( after step [0-9]+ of 250)?", text)


def test_what_is_typed_is_asked_for_or_the_field_says_why_not(page):
    page.fill("#label", "goldfish")
    page.click("#go")
    playwright_api.expect(page.locator(".batch h2")).to_have_text("goldfish")
    playwright_api.expect(page.locator("#go")).to_be_visible()
    page.fill("#label", "Tinca tinca")  # a synonym
    page.click("#go")
    playwright_api.expect(page.locator(".batch h2").first).to_have_text("tench, Tinca tinca")
    playwright_api.expect(page.locator("#go")).to_be_visible()
    for typed, said in (
        ("unicorn", "No class is called “unicorn”."),
        ("crane", "2 classes are called like “crane”: choose one."),
    ):
        page.fill("#label", typed)
        page.click("#go")
        playwright_api.expect(page.locator("#label-problem")).to_have_text(said)
        playwright_api.expect(page.locator("#label")).to_have_attribute("aria-invalid", "true")
    playwright_api.expect(page.locator(".batch")).to_have_count(2)


def test_few_classes_are_chips_with_a_sample_each(page):
    chips = page.locator(".chip")
    playwright_api.expect(chips).to_have_text(
        ["One of each", "tench", "goldfish", "great white shark", "crane, bird", "crane, machine", "hen"]
    )
    playwright_api.expect(page.locator(".chip img[src^='data:image/webp']")).to_have_count(6)
    chips.nth(6).click()
    playwright_api.expect(page.locator("#label")).to_have_value("hen")
    playwright_api.expect(chips.nth(6)).to_have_attribute("aria-pressed", "true")
    chips.first.click()
    playwright_api.expect(page.locator("#n-field")).not_to_be_visible()
    page.click("#go")
    playwright_api.expect(page.locator(".tile.done")).to_have_count(6)
    playwright_api.expect(page.locator(".tile figcaption").last).to_have_text("hen")


def test_settings_are_in_the_address_and_images_outlast_a_reload(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".chip").nth(6).click()
    slide(page, "n", 2)
    slide(page, "steps", 3)
    page.select_option("#sampler", "ddpm")
    page.click("#go")
    playwright_api.expect(page.locator("#status")).to_contain_text("2 images in")
    page.locator(".share").click()
    link = page.evaluate("navigator.clipboard.readText()")
    assert re.search(r"class=5&n=2&steps=3&guidance=2&sampler=ddpm&seed=\d+$", link)
    first = page.locator(".tile img").first.get_attribute("src")
    page.goto(link)
    playwright_api.expect(page.locator("#label")).to_have_value("hen")
    assert page.locator("#sampler").input_value() == "ddpm"
    playwright_api.expect(page.locator(".tile.done img").first).to_have_attribute("src", first)
    page.click("#go")
    playwright_api.expect(page.locator(".tile.done")).to_have_count(4)
    playwright_api.expect(page.locator(".tile img").first).to_have_attribute("src", first)  # the same image
    playwright_api.expect(page.locator("#status")).to_contain_text("2 images in")
    page.click("#forget")
    playwright_api.expect(page.locator(".batch")).to_have_count(0)
    page.reload()
    playwright_api.expect(page.locator("#label")).to_have_value("hen")
    playwright_api.expect(page.locator(".batch")).to_have_count(0)


def test_a_server_that_is_gone_is_said_in_words(page):
    playwright_api.expect(page.locator(".chip img[src]")).to_have_count(6)
    page.route("**/v1/images/generations", lambda route: route.abort("connectionrefused"))
    page.click("#go")
    playwright_api.expect(page.locator("#status")).to_contain_text("The server does not answer")
    page.context.set_offline(True)
    page.click("#go")
    playwright_api.expect(page.locator("#status")).to_have_text("This device is offline.")


def test_controls_are_those_of_the_model_within_the_limits(page):
    def other(route) -> None:
        answer = route.fetch()
        data = answer.json()
        data["data"][0] |= {"guidable": False, "num_classes": 0, "max_images": 3, "max_inference_steps": 40}
        route.fulfill(response=answer, json=data)

    page.route("**/v1/models", other)
    page.reload()
    playwright_api.expect(page.locator("#about")).to_contain_text("no classes")
    playwright_api.expect(page.locator("#guidance-field")).not_to_be_visible()
    playwright_api.expect(page.locator("#label-field")).not_to_be_visible()
    assert page.locator("#n").get_attribute("max") == "3"
    assert page.locator("#steps").get_attribute("max") == "40"


def test_an_error_of_the_server_is_told(page):
    page.locator("#steps").evaluate("(input) => { input.max = 1000; input.value = 900 }")
    page.click("#go")
    playwright_api.expect(page.locator("#status")).to_contain_text("at most 250 steps")
    playwright_api.expect(page.locator(".batch")).to_have_count(0)


def test_the_copied_command_works(page, url, tmp_path):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.fill("#seed", "3")
    page.click("#curl")
    playwright_api.expect(page.locator("#status")).to_contain_text("clipboard")
    command = page.evaluate("navigator.clipboard.readText()")
    body = json.loads(re.search(r"-d '(.*?)'", command, re.S)[1])
    assert body["prompt"] == "tench, Tinca tinca"
    assert body["seed"] == 3
    assert f"{url}/v1/images/generations" in command
    if shutil.which("curl") is None:
        pytest.skip("no curl here to run the command with")
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=60)
    assert sorted(os.listdir(tmp_path)) == [f"image-{i}.png" for i in range(body["n"])]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_can_be_read(browser, url, scheme):
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(url)
    # contrast of every visible text with what lies behind it, as WCAG 2.1 computes it
    worst, background = page.evaluate("""() => {
        const rgba = (text) => text.match(/[\\d.]+/g).map(Number);
        const luminance = (colour) => colour.slice(0, 3).map((v) => v / 255)
            .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const behind = (element) => {
            for (let e = element; e; e = e.parentElement) {
                const colour = rgba(getComputedStyle(e).backgroundColor);
                if (colour[3] !== 0) return luminance(colour);
            }
            return 1;
        };
        const texts = [...document.body.querySelectorAll('*')].filter((e) => e.checkVisibility()
            && !e.closest('[disabled]') && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
        const ratios = texts.map((e) => {
            const pair = [luminance(rgba(getComputedStyle(e).color)), behind(e)].sort((a, b) => b - a);
            const name = e.tagName + '.' + e.className + ': ' + e.textContent.slice(0, 30);
            return [(pair[0] + 0.05) / (pair[1] + 0.05), name];
        });
        return [ratios.sort((a, b) => a[0] - b[0])[0], behind(document.body)];
    }""")
    context.close()
    assert background > 0.8 if scheme == "light" else background < 0.1
    assert worst[0] >= 4.5, worst


def test_on_a_phone_nothing_is_wider_than_the_screen(browser, url):
    context = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(url)
    page.tap("#go")
    playwright_api.expect(page.locator(".tile.done")).to_have_count(4)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    tile = page.locator(".tile").first.bounding_box()
    assert tile["y"] + tile["height"] <= 740  # the first images are seen as they come
    small = page.evaluate("""() => [...document.querySelectorAll('button, input, select, .save')]
        .filter((e) => e.checkVisibility() && e.type !== 'range' && e.getBoundingClientRect().height < 36)
        .map((e) => e.id || e.className)""")
    assert small == []
    context.close()


def test_nothing_can_be_made_before_the_models_are_known(browser, url):
    context = browser.new_context()
    page = context.new_page()
    held: list = []
    page.route("**/v1/models", lambda route: route.continue_() if held else held.append(route))
    page.goto(url)
    while not held:
        page.wait_for_timeout(20)
    playwright_api.expect(page.locator("#go")).to_be_disabled()
    held[0].continue_()
    page.click("#go")  # waits until it can be clicked
    playwright_api.expect(page.locator(".tile.done")).to_have_count(4)
    context.close()


def test_the_description_of_the_api(page, url):
    page.goto(f"{url}/docs")
    playwright_api.expect(page.locator("#docs section")).to_have_count(6)
    playwright_api.expect(page.locator("#docs")).to_contain_text("num_inference_steps")
