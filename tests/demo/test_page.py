"""The page of vlkd-pl demo: its inputs, and a visit with a browser."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import struct
import time
import zlib
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

import pytest
from image_files import encoded
from PIL import Image

from vlkd_pl.cli import main
from vlkd_pl.commands import demo as command
from vlkd_pl.models.decoding import Decoding
from vlkd_pl.models.vlkd import VLKDModel
from vlkd_pl.pipeline import VLKD
from vlkd_pl.sample.scenes import LIMITS

pytest.importorskip("gradio", reason="the page needs the extra demo")

import httpx

from vlkd_pl.demo.page import (
    _ANSWER_NOTE,
    _CAPTION_NOTE,
    PHOTO,
    build_page,
    draw_examples,
    find_examples,
    image_problem,
    launch,
)

NUM_MASKS, NUM_BEAMS = 3, 4
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)


@pytest.fixture(scope="module")
def model():
    """The sample world's CLIP and BART, joined but not distilled."""
    folder = Path(str(files("vlkd_pl.sample"))) / "models"
    return VLKD(VLKDModel.load(str(folder / "clip"), str(folder / "bart"), "all"), "cpu")


def write_header(file, width, height):
    """Write a PNG whose header states a size, without pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    length, checksum = struct.pack(">I", 13), struct.pack(">I", zlib.crc32(header))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + length + header + checksum + struct.pack(">I", 9) + b"IDAT")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.bmp"])
def test_a_image_is_taken(name, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / name)
    assert image_problem(tmp_path / name, 10, 40 * 30) == ""


def test_too_many_pixels_are_refused_by_the_header_alone(tmp_path):
    sizes = {(40, 31): "too large: the maximum is 1,200", (1, 101): "too thin", (60_000, 60_000): "3600000000 pixels"}
    for (width, height), reason in sizes.items():
        write_header(tmp_path / "a.png", width, height)
        assert re.match(f"This image cannot be used: .*{reason}", image_problem(tmp_path / "a.png", 10, 1200))


def test_unreadable_file_is_refused(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (tmp_path / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    for file in [*tmp_path.iterdir(), tmp_path / "nothing.jpg"]:
        assert image_problem(file, 10, 10**6).startswith("This file is not a readable image.")


def test_a_large_file_is_refused(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("ab") as file:
        file.truncate(2**20 + 1)
    assert image_problem(tmp_path / "a.png", 1, 10**6) == "This file is too large. The maximum is 1 MB."


def test_drawn_examples_are_images_with_questions(tmp_path):
    examples = draw_examples(tmp_path / "new")
    assert [example.file for example in examples] == sorted((tmp_path / "new").iterdir())
    assert all(example.question.endswith("?") and not image_problem(example.file, 1, 64 * 64) for example in examples)


def test_the_photo_is_a_small_image_with_its_source():
    assert image_problem(PHOTO.file, 1, 320 * 320) == ""
    assert PHOTO.file.stat().st_size <= 30_000
    with Image.open(PHOTO.file) as image:
        assert image.width == image.height > 256  # a square tile, and not magnified as the small scenes are
    assert "CC0 1.0" in PHOTO.file.with_suffix(".txt").read_text(encoding="utf-8")


def test_limits_are_on_the_page_as_plain_text(model, monkeypatch):
    def notes():
        return [block.value for block in build_page(model).blocks.values() if block.elem_id == "limits"]

    assert notes() == [f"<p>{LIMITS}</p>"]
    monkeypatch.setattr(model.model.clip, "limits", "Images of <img src=http://example.com/a.png> & others.")
    assert notes() == ["<p>Images of &lt;img src=http://example.com/a.png&gt; &amp; others.</p>"]
    monkeypatch.setattr(model.model.clip, "limits", "")
    assert notes() == []


def test_examples_of_a_folder(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "0.jpg").write_text("no image")
    for number in range(20):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number:02}.png")
    assert [example.file.name for example in find_examples(tmp_path)] == [f"{number:02}.png" for number in range(12)]


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert main(["demo", "--model", "nothing"]) == 1
    assert capsys.readouterr().err == (
        "vlkd-pl demo: the page needs Gradio: it comes with the extra demo; run pip install '.[demo]' in the checkout "
        "of vlkd_pl\n"
    )


@pytest.fixture
def command_line(clip_folder, bart_folder, tmp_path, monkeypatch):
    """``vlkd-pl demo`` with a small model; what the command sets for its process ends with the test."""
    VLKDModel.load(str(clip_folder), str(bart_folder), "patches").save_pretrained(tmp_path / "model")
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")
    handler = signal.getsignal(signal.SIGTERM)
    yield ["demo", "--model", str(tmp_path / "model"), "--device", "cpu"]
    signal.signal(signal.SIGTERM, handler)


def test_a_taken_port_is_named(command_line, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main([*command_line, "--port", str(port)]) == 1
    assert f"nothing can listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_examples_without_a_image_are_named(command_line, tmp_path, capsys):
    assert main([*command_line, "--examples", str(tmp_path / "nothing")]) == 1
    assert f"there are no images in {tmp_path / 'nothing'}" in capsys.readouterr().err


# Clients that are written by hand


class Client:
    """Client that calls the page's functions with inputs that a browser would not send."""

    def __init__(self, address):
        self.http = httpx.Client(base_url=address, timeout=20)
        self.functions = self.http.get("config").json()["dependencies"]
        self.sessions = itertools.count()

    def take(self, *value):
        """Send an image; returns the error's text, or None if it was accepted."""
        (number,) = (function["id"] for function in self.functions if len(function["outputs"]) == 4)
        return self.call(number, list(value))

    def call(self, number, values):
        session = f"session {next(self.sessions)}"
        self.http.post("gradio_api/queue/join", json={"fn_index": number, "session_hash": session, "data": values})
        with self.http.stream("GET", "gradio_api/queue/data", params={"session_hash": session}) as events:
            for line in events.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {"msg": ""}
                if message["msg"] == "process_completed":
                    return None if message["success"] else str(message["output"]["error"])

    def upload(self, *files):
        return self.http.post("gradio_api/upload", files=[("files", file) for file in files])


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    """A page with two examples outside its upload folder."""
    folder = tmp_path_factory.mktemp("demo")
    examples = draw_examples(folder / "examples")[:2]
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
    (folder / "uploads").mkdir()
    page = build_page(model, examples, max_upload_mb=1, max_pixels=1_000_000)
    address = launch(page, port=free_port(), max_upload_mb=1)
    yield Client(address), folder / "uploads", examples
    page.close(verbose=False)
    patch.undo()


META = {"_type": "gradio.FileData"}
ONLY_UPLOADS = "Upload an image, or choose an example."


def payloads(path):
    return {"path": path}, {"path": path, "meta": META}, {"path": path, "url": "http://example.com/a.png", "meta": META}


def test_uploads_and_examples_are_taken(served):
    client, uploads, examples = served
    (path,) = client.upload(("a.png", encoded())).json()
    assert Path(path).is_relative_to(uploads)
    for file in (path, str(examples[1].file)):
        assert [client.take(payload) for payload in payloads(file)] == [None] * 3


def test_no_other_file_is_read(served, tmp_path):
    client, uploads, _ = served
    (tmp_path / "secret.png").write_bytes(encoded())
    (uploads / "link.png").symlink_to(tmp_path / "secret.png")
    (uploads / "loop.png").symlink_to(uploads / "loop.png")
    os.mkfifo(uploads / "fifo.png")
    os.mkfifo(tmp_path / "fifo.png")
    paths = [tmp_path / "secret.png", uploads / "link.png", uploads / "loop.png", uploads / "fifo.png", uploads]
    paths += [tmp_path / "fifo.png", uploads / ".." / ".." / "x.png", "/etc/passwd", "/dev/zero", "/dev/stdin"]
    paths += [f"{uploads}/../{uploads.name}/fifo.png", "", "a\0b", "x" * 5000, "nothing.png", "file:///etc/passwd"]
    for path in map(str, paths):
        assert [client.take(payload) for payload in payloads(path)] == [ONLY_UPLOADS] * 3, path
    for value in ([{"path": str(paths[0])}], {"a": {"path": str(paths[0]), "meta": META}}, {"path": [str(paths[0])]}):
        assert client.take(value) == ONLY_UPLOADS
    for name in ("link.png", "loop.png", "fifo.png"):
        (uploads / name).unlink()


def test_no_address_is_fetched(served, monkeypatch):
    client, _, _ = served
    address = "http://93.184.215.14/a.png"
    lookups = []
    for name in ("async_ssrf_protected_get", "async_ssrf_protected_download", "ssrf_protected_download"):
        monkeypatch.setattr(
            f"gradio.processing_utils.{name}", lambda *parameters, **more: lookups.append(parameters), raising=False
        )
    connect = socket.socket.connect

    def recorded(self, where):
        if where[0] not in ("127.0.0.1", "::1"):
            lookups.append(where)
            raise OSError(f"no network in this test: {where}")
        return connect(self, where)

    monkeypatch.setattr(socket.socket, "connect", recorded)
    values = [*payloads(address), {"url": address, "meta": META}, {"path": None, "url": address}]
    assert [client.take(value) for value in values] == [ONLY_UPLOADS] * 5
    for function in client.functions:
        for value in values[1:]:
            assert client.call(function["id"], [value] * len(function["inputs"])) == ONLY_UPLOADS
    for route in (f"file={address}", f"file={address.upper()}", f"proxy={address}", "deep_link?session_hash=1"):
        assert client.http.get(f"gradio_api/{route}").status_code == 404
    for route in ("process_recording", "component_server"):
        assert client.http.post(f"gradio_api/{route}", json={}).status_code == 404
    assert client.http.get("gradio_api/file=/etc/passwd").status_code == 403
    assert lookups == []


def test_the_size_of_requests_is_bounded(served):
    client, _, _ = served

    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(40):
            yield bytes(100_000)

    several = [(f"{number}.png", bytes(200_000)) for number in range(10)]
    assert client.upload(*several).status_code == 413
    assert client.upload(("large.png", bytes(2**20 + 1))).status_code == 413
    form = {"content-type": "multipart/form-data; boundary=x"}
    assert client.http.post("gradio_api/upload", content=endless(), headers=form).status_code == 413
    json_of_megabytes = {"content": b"[" + b" " * 2**21 + b"]", "headers": {"content-type": "application/json"}}
    assert client.http.post("gradio_api/queue/join", **json_of_megabytes).status_code == 413


def test_the_oldest_uploads_are_deleted(served):
    client, uploads, examples = served
    examples_size = sum(example.file.stat().st_size for example in examples)

    def stored_files():
        return {file.name: file.stat().st_size for file in uploads.rglob("*") if file.is_file()}

    def wait_for(condition):  # files are moved and deleted behind the response
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with suppress(FileNotFoundError):
                if condition():
                    return
            time.sleep(0.05)
        raise AssertionError(f"not in time: {stored_files()}")

    for number in range(25):
        (path,) = client.upload((f"large {number}.png", bytes([number]) * 2**20)).json()
        wait_for(Path(path).exists)
        os.utime(path, (number, number))
    wait_for(lambda: sum(stored_files().values()) <= 20 * 2**20 + examples_size)
    assert {"large 24.png", "large 12.png"} <= stored_files().keys()
    assert "large 0.png" not in stored_files()
    client.upload(*((f"{number}.png", f"many {number}".encode()) for number in range(300)))
    wait_for(lambda: len(stored_files()) <= 100 + len(examples))
    (choose,) = (function["id"] for function in client.functions if len(function["outputs"]) == 2)
    assert client.call(choose, [1]) is None  # the page's own copies of examples stay


def test_an_upload_folder_of_ones_own_is_needed(model, monkeypatch):
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    with pytest.raises(ValueError, match="GRADIO_TEMP_DIR is not set"):
        launch(build_page(model))


@pytest.fixture
def browser(tmp_path):
    """A headless Chromium that records its requests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="the browser is driven by selenium")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("there is no Chromium with its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def assert_in_order(percents):
    """Asserts that percents do not rise."""
    values = [0.0 if percent.startswith("<") else float(percent.removesuffix("%")) for percent in percents]
    assert values == sorted(values, reverse=True)


def requested(browser):
    """The network addresses that the browser's pages requested."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    sockets = [message["params"]["url"] for message in messages if message["method"] == "Network.webSocketCreated"]
    return [url for url in urls + sockets if url.startswith(("http://", "https://", "ws://", "wss://"))]


def test_a_visit(model, browser, tmp_path, monkeypatch):
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    hosts = []
    getaddrinfo = socket.getaddrinfo

    def recorded(host, *arguments, **options):
        hosts.append(host)
        return getaddrinfo(host, *arguments, **options)

    def texts(selector):
        return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector)]

    def wait_for(condition, what):
        return WebDriverWait(browser, 30, 0.1, [StaleElementReferenceException]).until(lambda _: condition(), what)

    def click(selector):
        wait_for(lambda: texts(selector), selector)
        browser.execute_script("document.querySelector(arguments[0]).click()", selector)

    def upload(file):
        if browser.find_elements(By.CSS_SELECTOR, "#image img"):
            click("#image button[aria-label='Remove Image']")
        wait_for(
            lambda: browser.find_element(By.CSS_SELECTOR, "#image input[type=file]"), "a place for files"
        ).send_keys(str(file))

    def ask(question):
        box = wait_for(lambda: browser.find_element(By.CSS_SELECTOR, "#question :is(textarea, input)"), "a box")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(Keys.DELETE, question)
        click("#question button")

    def wait_for_message(part):
        wait_for(lambda: part in browser.find_element(By.TAG_NAME, "body").text, part)

    monkeypatch.setattr(socket, "getaddrinfo", recorded)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    examples = [*draw_examples(tmp_path / "examples"), PHOTO]
    page = build_page(model, examples, num_masks=NUM_MASKS, num_beams=NUM_BEAMS, max_upload_mb=1, max_pixels=1_000_000)
    address = launch(page, port=free_port(), max_upload_mb=1)
    try:
        assert address.startswith("http://127.0.0.1:")
        browser.get(address)
        wait_for(lambda: texts("#limits p") == [LIMITS], "the limits")

        ask("what is this?")
        wait_for_message("drop an image first")

        image = tmp_path / "image.png"
        Image.open(examples[0].file).resize((300, 200)).save(image)
        upload(image)
        (captioned,) = model.iter_captions([image], NUM_MASKS, Decoding(NUM_BEAMS, num_candidates=NUM_BEAMS))
        wait_for(lambda: texts("#captions li .text"), "a caption")
        assert texts("#captions li .text") == [caption.text for caption in captioned.captions[:3]]
        assert texts("#captions .note") == [_CAPTION_NOTE]
        assert_in_order(texts("#captions li .score"))

        ask("")
        wait_for_message("type a question first")
        ask("what is this? " * 20)
        wait_for_message("are too many")
        ask("what" * 300)
        wait_for_message("The question is too long. The maximum is 1,000 characters")
        ask("what color is the fish?")
        ((best, *others),) = model.answers(
            image,
            ["what color is the fish?"],
            decoding=Decoding(NUM_BEAMS, 10, length_penalty=0.0, num_candidates=NUM_BEAMS),
        )
        wait_for(lambda: texts("#answers li .text"), "an answer")
        assert texts("#answers li .text") == [best.text, *(other.text for other in others)]
        assert len(texts("#answers li .score")) == 1 + len(others) > 1
        assert texts("#answers .note") == [_ANSWER_NOTE]
        assert_in_order(texts("#answers li .score"))
        browser.save_screenshot(str(tmp_path / "page.png"))
        assert Image.open(tmp_path / "page.png").size[0] == 1200

        (tmp_path / "text.jpg").write_text("no image")
        upload(tmp_path / "text.jpg")
        wait_for_message("This file is not a readable image.")
        wait_for(
            lambda: not texts("#captions li") and not texts("#answers li"), "nothing is shown for an unreadable file"
        )

        write_header(tmp_path / "vast.png", 2000, 2000)
        upload(tmp_path / "vast.png")
        wait_for_message("too large: the maximum is 1,000,000")
        write_header(tmp_path / "damaged.png", 20, 20)
        upload(tmp_path / "damaged.png")
        wait_for_message("The image is damaged")
        (tmp_path / "large.png").write_bytes(bytes(2**20 + 1))
        upload(tmp_path / "large.png")
        wait_for_message("exceed the maximum allowed size of 1")

        for number in (1, len(examples)):
            click(f"#examples button:nth-of-type({number})")
            file = examples[number - 1].file
            (captioned,) = model.iter_captions([file], NUM_MASKS, Decoding(NUM_BEAMS, num_candidates=NUM_BEAMS))
            expected = [caption.text for caption in captioned.captions[:3]]
            wait_for(lambda: texts("#captions li .text") == expected, "captions of the example")  # noqa: B023

        assert [url for url in requested(browser) if not url.startswith(address)] == []
        assert {host.decode() if isinstance(host, bytes) else host for host in hosts} <= {"127.0.0.1", "localhost"}
    finally:
        page.close(verbose=False)
