"""The page that segments dropped pictures: what it computes and draws, value by value, and itself in a real browser."""

from __future__ import annotations

import base64
import html
import io
import re
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from callbacks.experiments import trainer
from callbacks.label_maps import class_colours, region_colours
from callbacks.segmentation_app.page import Session, first_lines, launch, page, serve
from callbacks.segmentation_app.segment import MOST, class_lines, read_picture, segment
from callbacks.segmentation_app.views import area_table, download_link, drawn, legend_of
from datamodules.scenes.voc_layout import write_voc
from lightning_modules import CorrClipSegmentation
from lightning_modules.backbones import TinyClip
from lightning_modules.backbones.mask_files import PregeneratedMasks
from lightning_modules.backbones.masks import Felzenszwalb, NoMasks

CONFIG = Path(__file__).parents[2] / "configs/corrclip/world.yaml"
TYPED = "grass; sand; forest\nship, solar panel\nswimming pool; pool\nbaseball field\n<b>tree</b>"
NAMES = ["grass", "ship", "solar panel", "swimming pool", "baseball field", "<b>tree</b>"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_voc(str(folder), 2)
    Image.open(folder / "JPEGImages/000001.jpg").crop((0, 0, 96, 80)).save(folder / "scene.png")
    return folder / "scene.png"


@pytest.fixture(scope="module")
def model() -> CorrClipSegmentation:
    model = CorrClipSegmentation(TinyClip(), templates="plain", text_cache=None, short=96, crop=96, stride=48)
    model.configure_model()
    return model.eval()


@pytest.fixture(scope="module")
def found(model, scene):
    return segment(model.segmenter, model.prompt, Felzenszwalb(), str(scene), TYPED)


@pytest.mark.parametrize(
    ("typed", "lines"),
    [
        ("cat", ["cat"]),
        (" cat ,dog\n\n,", ["cat", "dog"]),
        ("sky;wall ;  tree\r\ncat", ["sky; wall; tree", "cat"]),
        (", ".join(map(str, range(MOST))), list(map(str, range(MOST)))),
    ],
)
def test_typed_classes_are_lines(typed, lines) -> None:
    assert class_lines(typed) == lines


def test_the_field_begins_with_the_classes_of_the_model_else_of_the_data(tmp_path, monkeypatch) -> None:
    def first(given, data):
        return first_lines(SimpleNamespace(hparams={"class_lines": given}), data)

    class Away:
        @property
        def class_lines(self):
            raise FileNotFoundError

    data = SimpleNamespace(class_lines=["ship"])
    (tmp_path / "classes.txt").write_text("bird, large; heron\n\ncat\n")
    lines = first(str(tmp_path / "classes.txt"), data)
    assert lines == ["bird, large; heron", "cat"]
    assert first(["cat"], data) == ["cat"]
    assert first(None, data) == ["ship"]
    assert first(None, Away()) == first(None, None) == []
    with pytest.raises(FileNotFoundError, match=r"none\.txt does not exist"):
        first("none.txt", data)
    typed = "\n".join([*lines, "dog, bird"])  # commas of a line that stayed as it was belong to its names
    assert class_lines(typed, lines) == ["bird, large; heron", "cat", "dog", "bird"]
    module, sessions = sys.modules[Session.__module__], []
    blocks = SimpleNamespace(block_thread=lambda: None)
    monkeypatch.setattr(module, "page", lambda session: sessions.append(session) or blocks)
    for name in ("gradio", "launch"):
        monkeypatch.setattr(module, name, lambda *given: "nowhere")
    model = SimpleNamespace(hparams={"class_lines": lines}, prompt=None, segmenter=None)
    model.configure_model = model.place = lambda *device: None
    serve(model, data, torch.device("cpu"))
    assert sessions[0].lines == lines


@pytest.mark.parametrize(
    ("typed", "mistake"),
    [
        ("", "There is no class."),
        (" ,\n ", "There is no class."),
        ("cat\nDog, dog", "The class 'dog' is there twice."),
        ("cat;, dog", "'cat;' has an empty name"),
        ("\n".join(map(str, range(5000))), "There are 5000 names; the page takes 300."),
        ("; ".join(map(str, range(MOST + 1))), "There are 301 names"),
    ],
)
def test_classes_that_are_none_are_said(typed, mistake) -> None:
    with pytest.raises(ValueError, match=re.escape(mistake)):
        class_lines(typed)


def test_pictures_of_any_kind_are_read_upright(tmp_path) -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0] = (255, 0, 0)
    tag = Image.Exif()
    tag[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=tag)
    turned = np.array(read_picture(str(tmp_path / "turned.png")))
    assert turned.shape == (3, 2, 3)
    assert turned[0, 1].tolist() == [255, 0, 0]
    Image.fromarray(np.array([[0, 257 * 40, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert np.array(read_picture(str(tmp_path / "deep.png")))[0].tolist() == [[0] * 3, [40] * 3, [255] * 3]
    Image.new("CMYK", (1, 1), (0, 255, 255, 0)).save(tmp_path / "print.tif")
    assert read_picture(str(tmp_path / "print.tif")).getpixel((0, 0)) == (255, 0, 0)
    (tmp_path / "broken.png").write_bytes((tmp_path / "deep.png").read_bytes()[:40])
    with pytest.raises(ValueError, match="damaged"):
        read_picture(str(tmp_path / "broken.png"))
    Image.fromarray(np.array([[0.0, 1.0]], np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="The picture holds floating-point numbers"):
        read_picture(str(tmp_path / "float.tif"))


def test_it_finds_what_the_model_finds(model, scene, found) -> None:
    image = torch.from_numpy(np.array(Image.open(scene))).permute(2, 0, 1)
    ids = Felzenszwalb().masks(image)
    classes = model.prompt(class_lines(TYPED))
    with torch.inference_mode():
        labels = model.segmenter(image, ids, classes)
        (logits,) = model.segmenter.logits([image], [ids], classes.text)
        by_query = logits.resized((80, 96)).numpy()
    assert found.names == NAMES
    assert found.image.shape == (80, 96, 3)
    assert (found.labels == labels.numpy()).all()
    assert len(np.unique(found.labels)) >= 3
    np.testing.assert_allclose(found.heat[0], by_query[:3].max(0), atol=1e-6)
    np.testing.assert_allclose(found.heat[3], by_query[5:7].max(0), atol=1e-6)
    assert (found.regions == ids.numpy()).all()  # felzenszwalb's have no gaps
    truth = np.array(Image.open(scene.parent / "SegmentationClass/000001.png"))[:80, :96]
    assert (found.labels == 0)[truth == 0].mean() > 0.9


def test_a_large_photo_is_shrunk_and_regions_are_numbered_without_gaps(model, scene, tmp_path) -> None:
    Image.open(scene).resize((1600, 1200)).save(tmp_path / "large.png")
    halves = SimpleNamespace(
        name="halves", by_name=False, masks=lambda image: (torch.arange(image.shape[2]) // 512 * 7).expand(768, -1)
    )
    found = segment(model.segmenter, model.prompt, halves, str(tmp_path / "large.png"), TYPED)
    assert found.image.shape == (768, 1024, 3)
    assert found.heat.shape == (6, 192, 256)
    assert found.regions[5, [0, 511, 512, 1023]].tolist() == [0, 0, 1, 1]
    assert "The picture of 1600 x 1200 pixels was shrunk to 1024 x 768." in area_table(found)
    assert "1 region by halves; 50.0 % of the picture is in none." in legend_of(found, "Regions", 0)
    without = segment(model.segmenter, model.prompt, None, str(scene), TYPED)
    assert not without.regions.any()
    assert "No regions" in legend_of(without, "Regions", 0)
    assert set(np.unique(np.array(drawn(without, "Regions", 0, 1.0)))) == {128, 176}  # stripes


def test_pictures_show_colours_by_opacity(found) -> None:
    top = [found.labels[0, 0], found.labels[40, 60]]
    for opacity in (0.0, 0.3, 1.0):
        picture = np.array(drawn(found, "Classes", 0, opacity)).astype(int)
        assert picture.shape == (533, 640, 3)
        below = np.array(Image.fromarray(found.image).resize((640, 533), Image.Resampling.BICUBIC)).astype(int)
        for (y, x), label in zip([(3, 3), (270, 403)], top, strict=True):
            expected = (1 - opacity) * below[y, x] + opacity * class_colours(NAMES)[label]
            assert abs(picture[y, x] - expected).max() <= 1
    regions = np.array(drawn(found, "Regions", 0, 1.0))
    assert regions[3, 3].tolist() == region_colours(found.regions.max())[found.regions[0, 0] - 1].tolist()
    heat = np.array(drawn(found, "Heatmap", 2, 1.0))
    y, x = np.unravel_index(found.heat[2].argmax(), found.heat[2].shape)
    brightest = colormaps["inferno"](1.0, bytes=True)[:3]
    assert abs(heat[round((y + 0.5) * 533 / 80), round((x + 0.5) * 640 / 96)].astype(int) - brightest).max() <= 12
    words = legend_of(found, "Heatmap", 5)
    assert "&lt;b&gt;tree" in words
    assert f"{found.heat[5].min():.3f}" in words
    assert f"{found.heat[5].max():.3f}" in words


def test_table_and_file_hold_the_label_map(found) -> None:
    table = area_table(found)
    cells = re.findall(r"</i>(.*?)</td><td>(.*?) %</td><td>(.*?)</td>", html.unescape(table).replace(",", ""))
    counts = {NAMES[k]: int((found.labels == k).sum()) for k in np.unique(found.labels)}
    assert {name: int(pixels) for name, _, pixels in cells} == counts
    assert [int(pixels) for *_, pixels in cells] == sorted(counts.values(), reverse=True)
    assert cells[0][1] == f"{100 * max(counts.values()) / 7680:.1f}"
    for name in set(NAMES) - set(counts):
        assert html.escape(name) in table.split("Not found:")[1]
    stored = Image.open(io.BytesIO(base64.b64decode(re.search(r'base64,([^"]+)', download_link(found))[1])))
    assert stored.mode == "P"
    assert (np.array(stored) == found.labels).all()
    assert (np.array(stored.convert("RGB"))[0, 0] == class_colours(NAMES)[found.labels[0, 0]]).all()


def test_mistakes_become_one_sentence(model, scene, tmp_path) -> None:
    session = Session(model, PregeneratedMasks(str(tmp_path)))
    for picture, typed, mistake in [
        (None, "cat", "There is no picture."),
        (str(scene), "", "There is no class."),
        (str(scene), "cat", "has no regions of a new picture"),
    ]:
        found, words = session.answer(picture, typed)
        assert found is None
        assert mistake in words

    def nameless(image):
        raise ValueError("There is no SAM of that name.")

    source = SimpleNamespace(name="sam", by_name=False, masks=nameless)
    assert Session(model, source).answer(str(scene), "cat") == (None, "There is no SAM of that name.")

    def broken(lines):
        raise RuntimeError("out of memory\nat 0x1")

    session = Session(SimpleNamespace(segmenter=None, prompt=broken), None)
    assert session.answer(str(scene), "cat") == (
        None,
        "The picture was not segmented (RuntimeError: out of memory). The terminal shows where.",
    )


def test_texts_are_encoded_once() -> None:
    asked: list[list[str]] = []
    session = Session(SimpleNamespace(segmenter=None, prompt=asked.append), None)
    for lines in (["cat"], ["cat"], ["dog"]):
        session.prompt(lines)
    assert asked == [["cat"], ["dog"]]


def test_without_gradio_it_says_what_to_install(run_cli, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit):
        run_cli("app", "-c", CONFIG)
    assert "pip install 'clip-suite[app]'" in capsys.readouterr().err


def test_the_command_builds_model_and_data_and_serves_them(run_cli, tmp_path, monkeypatch) -> None:
    served: list[tuple] = []
    monkeypatch.setattr(trainer, "serve", lambda *given: served.append(given))
    masks = ("--data.masks", "lightning_modules.backbones.masks.NoMasks")
    run_cli("app", "-c", CONFIG, *masks, "--port", "7001", "--trainer.accelerator", "cpu")
    ((model, data, device, port, share),) = served
    assert isinstance(model, CorrClipSegmentation)
    assert isinstance(data.masks, NoMasks)
    assert (device, port, share) == (torch.device("cpu"), 7001, False)
    assert not list(tmp_path.rglob("*"))  # a page leaves no run


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def address(model, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'clip-suite[app]'")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    blocks = page(Session(model, Felzenszwalb(), ["cat", "dog"]))
    port = free_port()
    yield launch(blocks, port)
    with pytest.raises(OSError, match=f"Port {port} cannot be used.*--port"):
        launch(page(Session(model, None)), port)
    blocks.close()


@pytest.fixture
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="drives the browser")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between Gradio and pandas
def test_a_picture_is_dropped_and_segmented_in_a_browser(address, browser, scene, found, tmp_path) -> None:
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    asked: list[str] = []
    crashes: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: crashes.append(str(error)))
    tab.goto(address)
    button, mistake = tab.get_by_role("button", name="Segment", exact=True), tab.get_by_role("alert")

    def press(words: str) -> None:
        button.click()
        mistake.get_by_text(words).wait_for()

    def picture_after(action) -> np.ndarray:
        last = tab.locator("#result img").get_attribute("src") if tab.locator("#result img").count() else ""
        action()
        tab.wait_for_function(
            "last => { const i = document.querySelector('#result img'); return i && i.src != last && i.complete }",
            arg=last,
        )
        tab.screenshot(path=tmp_path / "page.png", full_page=True)
        return np.array(Image.open(io.BytesIO(tab.request.get(tab.locator("#result img").get_attribute("src")).body())))

    press("There is no picture.")
    (tmp_path / "letter.png").write_text("Dear Sir or Madam")
    tab.set_input_files("input[type=file]", tmp_path / "letter.png")
    tab.get_by_label("Remove Image").wait_for()
    press("no picture that can be read")
    tab.get_by_label("Remove Image").click()
    tab.set_input_files("input[type=file]", scene)
    tab.get_by_label("Remove Image").wait_for()
    typed = tab.get_by_role("textbox", name="Classes")
    assert typed.input_value() == "cat\ndog"
    typed.fill("cat, dog, Cat")
    press("The class 'Cat' is there twice.")
    typed.fill(TYPED)

    assert (picture_after(button.click) == np.array(drawn(found, "Classes", 0, 0.5))).all()
    assert mistake.count() == 0
    rows = [row.split() for row in tab.locator(".found tbody tr").all_inner_texts()]
    assert {int(row[-1].replace(",", "")) for row in rows} == set(
        np.unique(found.labels, return_counts=True)[1].tolist()
    )
    assert (picture_after(tab.get_by_label("Regions").check) == np.array(drawn(found, "Regions", 0, 0.5))).all()
    assert tab.get_by_text(f"{found.regions.max()} regions by felzenszwalb 100.").is_visible()
    largest = int(np.bincount(found.labels.ravel()).argmax())
    shown = picture_after(tab.get_by_label("Heatmap", exact=True).check)
    assert (shown == np.array(drawn(found, "Heatmap", largest, 0.5))).all()

    def choose() -> None:
        tab.get_by_label("Heatmap of").click()
        tab.get_by_role("option", name="solar panel").click()

    assert (picture_after(choose) == np.array(drawn(found, "Heatmap", 2, 0.5))).all()
    field = tab.get_by_label("number input for Opacity")

    def clear() -> None:
        field.fill("0")
        field.press("Tab")

    assert (picture_after(clear) == np.array(drawn(found, "Heatmap", 2, 0.0))).all()
    with tab.expect_download() as download:
        tab.get_by_text("Download the label map").click()
    assert (np.array(Image.open(download.value.path())) == found.labels).all()
    tab.set_viewport_size({"width": 390, "height": 844})
    assert tab.evaluate("document.documentElement.scrollWidth") == 390  # nothing sticks out on a phone
    assert not crashes
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)  # no fonts, scripts or reports elsewhere
