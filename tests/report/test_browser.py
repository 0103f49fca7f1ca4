"""The page in a real browser: offline, linked, keyboard, hostile tokens, files."""

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from assay.report import write_report
from report import synthetic
from report.results import SyntheticResult

pytestmark = pytest.mark.browser
SIGNALS = (
    "page.sections[0].linked.map(f => [f.view.signal('cursor_position'), f.view.signal('cursor_layer')])"
)
DRAWN = "document.documentElement.dataset.drawn === 'yes'"


@dataclass
class Visit:
    """A page that is open, and what it did that it should not have."""

    page: Page
    context: BrowserContext
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def marks(self) -> list[list[int | None]]:
        """Token and layer marked in each linked figure, once the next picture is shown."""
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return self.page.evaluate(SIGNALS)

    def cell(self, figure: int, row: int) -> tuple[float, float]:
        """Middle of one cell of a figure, in pixels of the window."""
        cells = (
            self.page.locator(f"[data-figure='{figure}'] .view")
            .locator(".mark-rect.role-mark")
            .first.locator("path")
        )
        box = cells.nth(row).bounding_box()
        assert box is not None
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@pytest.fixture(scope="module")
def survey_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(
        SyntheticResult(synthetic.survey(), "survey"), tmp_path_factory.mktemp("survey") / "r.html"
    )


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokens = synthetic.HOSTILE
    dataset = synthetic.survey(tokens).assign_attrs(
        {"trace.answer": tokens[0], "trace.subject": tokens[1], "model": tokens[0]}
    )
    result = SyntheticResult(dataset, "survey")
    result.manifest["settings"] = {"text": "".join(tokens)}
    return write_report(result, tmp_path_factory.mktemp("hostile") / "r.html")


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Visit]]:
    contexts: list[BrowserContext] = []

    def open_page(path: Path, fragment: str = "", **context: object) -> Visit:
        settings = {"viewport": {"width": 1500, "height": 1000}, **context}
        contexts.append(chromium.new_context(**settings))
        opened = Visit(contexts[-1].new_page(), contexts[-1])
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.on("console", lambda message: opened.complaints.append(message.text))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.goto(path.as_uri() + fragment)
        opened.page.wait_for_function(DRAWN)
        return opened

    yield open_page
    for context in contexts:
        context.close()


def test_opens_from_a_file_with_no_request_and_no_complaint(
    survey_page: Path, visit: Callable[..., Visit]
) -> None:
    opened = visit(survey_page)
    assert opened.requests == [survey_page.as_uri()]
    assert opened.complaints == []
    assert opened.page.locator(".view svg").count() == 3


def test_hovering_a_cell_marks_token_and_layer_in_all(survey_page: Path, visit: Callable[..., Visit]) -> None:
    opened = visit(survey_page)
    row = 2 * len(synthetic.PASSAGE) + 4  # third layer of the lens, which is after block 1; fifth token
    opened.page.mouse.move(*opened.cell(0, row))
    assert opened.marks() == [[4, 1]] * 3
    assert "urs" in opened.page.locator(".token.marked").inner_text()
    assert "after block 1" in opened.page.locator(".readout").inner_text()
    opened.page.mouse.move(*opened.cell(2, 0))
    assert opened.marks() == [[0, 0]] * 3


def test_a_click_pins_until_escape(survey_page: Path, visit: Callable[..., Visit]) -> None:
    opened = visit(survey_page)
    opened.page.mouse.click(*opened.cell(1, 5))
    opened.page.mouse.move(*opened.cell(2, 0))
    assert opened.marks() == [[5, 0]] * 3
    assert opened.page.url.endswith("#token=5&layer=0")
    opened.page.locator("[data-figure='1'] .scroll").press("Escape")
    assert opened.marks() == [[None, None]] * 3
    assert "token" not in opened.page.url


def test_hovering_a_token_of_the_passage_marks_it(survey_page: Path, visit: Callable[..., Visit]) -> None:
    opened = visit(survey_page)
    opened.page.locator(".token").nth(7).hover()
    assert opened.marks() == [[7, None]] * 3


def test_arrow_keys_walk_over_tokens_and_layers(survey_page: Path, visit: Callable[..., Visit]) -> None:
    opened = visit(survey_page)
    first = opened.page.locator(".token").first
    first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft"):
        opened.page.keyboard.press(key)
    assert (
        opened.marks() == [[0, 1]] * 3
    )  # the first press marks the first cell; -1 is the layer before block 0
    opened.page.keyboard.press("ArrowRight")
    opened.marks()
    assert opened.page.evaluate("document.activeElement.dataset.position") == "1"
    assert "token 1" in opened.page.locator("[data-spoken]").inner_text()
    opened.page.keyboard.press("Enter")
    opened.marks()
    assert "pinned" in opened.page.locator(".readout").inner_text()


def test_the_orientation_switch_turns_all_figures_and_the_keys(
    survey_page: Path, visit: Callable[..., Visit]
) -> None:
    opened = visit(survey_page, "#token=3&layer=2")
    tall = opened.page.locator("[data-figure='1'] .view svg").bounding_box()
    opened.page.get_by_role("button", name="→ right").click()
    opened.page.wait_for_function(DRAWN)
    turned = opened.page.locator("[data-figure='1'] .view svg").bounding_box()
    assert tall is not None and turned is not None
    assert turned["height"] > 1.5 * tall["height"]
    assert opened.marks() == [[3, 2]] * 3
    opened.page.locator("[data-figure='0'] .scroll").press("ArrowRight")
    assert opened.marks() == [[3, 3]] * 3
    assert "layers=right" in opened.page.url
    assert opened.complaints == []


def test_a_copied_address_shows_the_same(survey_page: Path, visit: Callable[..., Visit]) -> None:
    opened = visit(survey_page, "#token=9&layer=4&layers=right")
    assert opened.marks() == [[9, 4]] * 3
    assert opened.page.get_by_role("button", name="→ right").get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("fragment", ["#token=9999&layer=-7", "#token=<b>&layer=x", "#result=5&token=1"])
def test_an_address_that_means_nothing_marks_nothing(
    survey_page: Path, visit: Callable[..., Visit], fragment: str
) -> None:
    opened = visit(survey_page, fragment)
    assert opened.marks() == [[None, None]] * 3
    assert opened.complaints == []


def test_a_finding_leads_to_its_cell(survey_page: Path, visit: Callable[..., Visit]) -> None:
    opened = visit(survey_page)
    opened.page.locator(".findings a").first.click()
    assert opened.marks() == [[5, 0]] * 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_system_theme_and_its_own_switch(
    survey_page: Path, visit: Callable[..., Visit], scheme: str
) -> None:
    opened = visit(survey_page, color_scheme=scheme)
    ground = "getComputedStyle(document.body).backgroundColor"
    colours = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}
    assert opened.page.evaluate(ground) == colours[scheme]
    other = "dark" if scheme == "light" else "light"
    opened.page.get_by_role("button", name=other, exact=True).click()
    opened.page.wait_for_function(DRAWN)
    assert opened.page.evaluate(ground) == colours[other]
    assert colours[other] in opened.page.locator(".view svg").first.evaluate(
        "e => getComputedStyle(e).backgroundColor"
    )


def test_hostile_tokens_are_inert_and_visible(hostile_page: Path, visit: Callable[..., Visit]) -> None:
    opened = visit(hostile_page, "#token=0&layer=2")
    for place in range(len(synthetic.HOSTILE)):
        opened.page.locator(".token").nth(place).click()
    for table in opened.page.locator("details.table summary").all():
        table.click()
    opened.page.mouse.move(*opened.cell(0, 0))
    opened.page.wait_for_selector("#vg-tooltip-element.visible")
    assert opened.page.evaluate("window.hacked") is None
    assert opened.page.locator("img").count() == 0
    assert opened.complaints == []
    assert opened.requests == [hostile_page.as_uri()]
    text = opened.page.locator("body").inner_text()
    assert "</script><script>window.hacked=1</script>" in opened.page.locator(".token").first.inner_text()
    assert not set(text) & set("\u202e\u2066\u2069\x00\x1b")


def test_the_table_behind_a_figure_names_its_rows_and_columns(
    survey_page: Path, visit: Callable[..., Visit]
) -> None:
    opened = visit(survey_page, "#token=3&layer=2")
    details = opened.page.locator("[data-figure='1'] details.table")
    details.locator("summary").click()
    assert details.locator("tbody tr").count() == 3 * 6 * len(synthetic.PASSAGE)
    assert details.locator("th[scope=col]").count() > 5
    assert "Causal trace" in details.locator("caption").inner_text()
    details.locator("select").select_option("token")
    assert details.locator("tbody tr").count() == 3 * 6


def test_another_quantity_is_drawn_on_demand(survey_page: Path, visit: Callable[..., Visit]) -> None:
    opened = visit(survey_page, "#token=3&layer=2")
    figure = opened.page.locator("[data-figure='0']")
    figure.locator("[data-variant]").select_option("entropy")
    figure.locator(".view svg text", has_text="entropy (nats)").first.wait_for()
    assert opened.marks() == [[3, 2]] * 3


def test_the_csv_holds_the_numbers_of_the_figure(hostile_page: Path, visit: Callable[..., Visit]) -> None:
    opened = visit(hostile_page)
    with opened.page.expect_download() as started:
        opened.page.locator("[data-figure='0'] [data-save=csv]").click()
    text = Path(started.value.path()).read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    dataset = synthetic.lens(synthetic.HOSTILE)
    assert len(rows) == dataset.sizes["layer"] * dataset.sizes["position"]
    assert float(rows[0]["entropy"]) == pytest.approx(float(dataset["entropy"][0, 0]), rel=1e-5)
    assert rows[9]["token"] == "'=1+1"
    assert rows[0]["token"] == synthetic.HOSTILE[0]


@pytest.mark.parametrize(("kind", "start"), [("svg", b"<svg"), ("png", b"\x89PNG")])
def test_a_figure_can_be_saved_from_the_page(
    survey_page: Path, visit: Callable[..., Visit], kind: str, start: bytes
) -> None:
    opened = visit(survey_page)
    with opened.page.expect_download() as started:
        opened.page.locator(f"[data-figure='1'] [data-save={kind}]").click()
    assert started.value.suggested_filename == f"causal_trace-state.{kind}"
    assert Path(started.value.path()).read_bytes().startswith(start)


def test_sixty_tokens_and_thirty_layers_stay_responsive(tmp_path: Path, visit: Callable[..., Visit]) -> None:
    tokens = (synthetic.PASSAGE * 4)[:60]
    path = write_report(SyntheticResult(synthetic.survey(tokens, 30), "survey"), tmp_path / "r.html")
    assert path.stat().st_size < 3_000_000
    opened = visit(path)
    move = """async () => { const start = performance.now();
        for (let k = 0; k < 20; k++) { page.sections[0].cursor.set({position: k, layer: k}, {pinned: false});
            await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))); }
        return (performance.now() - start) / 20; }"""
    assert opened.page.evaluate(move) < 200  # two frames are 33 ms; the rest is room for a busy machine
    assert opened.marks() == [[19, 19]] * 3
