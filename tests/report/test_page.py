"""The page is whole: self-contained, accessible, readable by a browser, and honest about what is missing."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image
from sample_runs import write_run

from flava_ds.cli import main
from flava_ds.demo.evaluation.evaluator import evaluate_run
from flava_ds.demo.evaluation.held_out import held_out_of
from flava_ds.errors import ConfigError
from flava_ds.evaluation.protocols import Score
from flava_ds.evaluation.results import write_results
from flava_ds.evaluation.runner import TaskResult
from flava_ds.report.page import live_charts, write_report
from flava_ds.watching.run_log import read_log

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
MOST_BYTES = 6_000_000


class Page(HTMLParser):
    """Collects the elements with their attributes, and the text."""

    def __init__(self, html: str):
        super().__init__()
        self.elements, self.text, self.open, self.errors = [], "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "br", "path", "use", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag in ("path", "use", "rect"):
            return
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.errors.append(f"</{tag}> inside {self.open[-3:]}")

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for found, attributes in self.elements if found == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    run, _ = write_run(tmp_path_factory.mktemp("run"))
    evaluate_run(run)
    path = write_report(run, held_out_of(run))
    return path, Page(path.read_text(encoding="utf-8"))


def test_elements_are_closed_in_order(report):
    _, page = report
    assert page.errors == [] and page.open == []


def test_nothing_is_fetched_and_nothing_runs(report):
    path, page = report
    text = path.read_text(encoding="utf-8")
    assert page.all("script") == [] and not re.search(r"\son\w+=", text)
    assert "http:" not in text and "https:" not in text and "@import" not in text
    for attributes in (found for _, found in page.elements):
        for name in ("src", "href", "xlink:href", "srcset", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), attributes
    assert path.stat().st_size < MOST_BYTES


def test_every_anchor_has_its_target(report):
    _, page = report
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {a["href"][1:] for a in page.all("a")} <= ids
    assert {a["aria-labelledby"] for a in page.all("section")} <= ids


def test_every_picture_decodes_and_is_described(report):
    _, page = report
    pictures = page.all("img")
    assert len(pictures) == 8 * 5 + 8 + 8 * 4 + 8 * 3 + 8 + 6
    for attributes in pictures:
        assert len(attributes["alt"]) > 3
        Image.open(io.BytesIO(base64.b64decode(attributes["src"].split(",")[1]))).load()
    assert (
        all(svg["aria-label"] and svg["role"] == "img" for svg in page.all("svg"))
        and len(page.all("svg")) == 6 + 3 + 6
    )


def test_tables_have_captions_and_headers_and_the_page_one_title(report):
    _, page = report
    assert len(page.all("caption")) == len(page.all("table")) > 4
    assert all("scope" in attributes for attributes in page.all("th"))
    assert len(page.all("h1")) == 1 and page.all("html")[0]["lang"] == "en" and len(page.all("main")) == 1


def test_all_parts_are_there(report):
    _, page = report
    assert "Not here." not in page.text
    for words in (
        "Zero-shot concepts",
        "Caption to image",
        "Global contrastive",
        "Gradient norm of each objective",
        "last 2.5: text 0.25",
        "0123abc",
        "hidden_size",
    ):
        assert words in page.text, words
    assert "the dot the loss on held-out data." in " ".join(page.text.split())
    assert not re.search(r"last [\d.]+:[^\n]*multimodal", page.text), (
        "an encoder that an objective does not reach has no place"
    )


def test_names_are_escaped(tmp_path):
    run, _ = write_run(tmp_path)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"name": "<b>&run</b>"}))
    assert Page(write_report(run).read_text()).all("b") == []


def test_weights_and_agreement_of_objectives_are_on_the_page_if_measured(tmp_path):
    run, _ = write_run(tmp_path)
    plain = Page(write_report(run).read_text(encoding="utf-8"))
    assert "Weight of each objective" not in plain.text and "pull the same way" not in plain.text
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"balance": {"type": "uncertainty"}}))
    cosine = "gradient_cosine/mmm_text/itm/text_encoder"
    log_more(run, lambda number: {"weight/itm": 1.0 + number, cosine: 0.5 - number % 2})
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "What balance uncertainty makes of the configured weights" in " ".join(page.text.split())
    assert "last 12" in page.text and page.errors == []
    row = "MMM, text", "Image-text matching", "text", "+0.00", "50 %"
    assert "".join(row) in re.sub(r"\n\s*", "", page.text)


def log_more(run, add):
    """Writes a run's log again: `add` gives the further fields of each of its records, by their place."""
    header, *lines = (json.loads(line) for line in (run / "log.jsonl").read_text().splitlines())
    lines = [line | add(number) for number, line in enumerate(lines)]
    (run / "log.jsonl").write_text("\n".join(json.dumps(line) for line in (header, *lines)))


def test_last_is_the_last_logged_value_and_not_the_end_of_an_average(tmp_path):
    run, _ = write_run(tmp_path)

    def falling(number):
        value = 10.0**-number
        return {"lr": value, "grad_norm": value, "samples_per_second": value, "loss/itm": 7 - number / 2}

    log_more(run, lambda number: falling(number % 4))
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert page.text.count("last 0.001") == 3 and "7.00 → 5.50" in page.text


def test_losses_that_are_not_finite_at_the_end_are_told(tmp_path):
    run, _ = write_run(tmp_path)
    log_more(run, lambda number: {"loss/itm": [0.5, 0.5, None][min(number, 2)], "skipped_updates": 1500})
    third = read_log(run / "log.jsonl").steps[2]["step"]
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert f"Not finite at the end: Image-text matching from step {third} on." in page.text
    assert "0.50 → not finite" in page.text and "1,500 updates were skipped" in page.text


def test_evaluations_while_training_are_drawn_and_not_denied(tmp_path):
    run, _ = write_run(tmp_path)
    name = "mine_zero_shot/top1_accuracy"

    def add(number):
        found = {f"evaluation/{name}": 0.25 + number / 100} if number % 4 == 3 else {}
        return found | ({f"evaluation_reference/start/{name}": 0.125} if number == 0 else {})

    log_more(run, add)
    page = Page(write_report(run).read_text(encoding="utf-8"))
    words = " ".join(page.text.split())
    assert "No task has run" not in words and "mine_zero_shot top1 accuracy 0.28 → 0.36 before 0.125" in words
    assert "The dashed line is the model before its first step." in words and "more numbers" not in words
    assert "mine_zero_shot top1 accuracy while training, from 0.28 to 0.36" in [
        svg["aria-label"] for svg in page.all("svg")
    ]
    assert page.errors == [] and "#tasks" in [a["href"] for a in page.all("a")]


def test_of_many_numbers_every_task_has_its_first(tmp_path):
    run, _ = write_run(tmp_path)
    names = [f"task_{task}/number_{number}" for task in range(4) for number in range(8)]
    found = {f"evaluation/{name}": 0.5 for name in names} | {"evaluation/mine/never_a_number": None}
    log_more(run, lambda number: found if number == 11 else {})
    charts = live_charts(read_log(run / "log.jsonl"))
    assert [(c["title"], c["number"]) for c in charts] == [
        (f"task_{task}", f"number {number}") for task in range(4) for number in range(6)
    ]
    assert "8 more numbers are in log.jsonl" in write_report(run).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "lost, words",
    [
        ("log.jsonl", "holds no steps yet"),
        ("evaluation.json", "has not been evaluated"),
        ("checkpoints", "no checkpoint yet"),
        ("../../codebook.safetensors", "no image codebook there"),
    ],
)
def test_a_partial_run_says_what_is_missing(tmp_path, lost, words):
    run, _ = write_run(tmp_path)
    path = (run / lost).resolve()
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    page = Page(write_report(run, held_out_of(run)).read_text(encoding="utf-8"))
    assert words in page.text and "Not here." in page.text and page.errors == []


def test_the_demos_numbers_are_not_on_the_page_of_another_run(tmp_path):
    run, data = write_run(tmp_path)
    evaluate_run(run)
    (data / "concepts.json").unlink()
    assert held_out_of(run) is None
    page = Page(write_report(run, held_out_of(run)).read_text(encoding="utf-8"))
    assert page.errors == [] and page.all("img") == [] and "No task has run on this model" in page.text
    assert "Zero-shot concepts" not in page.text and "Masked pictures" not in page.text
    assert "the loss of guessing." in page.text and "the dot" not in page.text


def test_what_tasks_found_is_on_the_page(tmp_path):
    run, _ = write_run(tmp_path)
    scores = {"accuracy": Score(0.9, 10_000, 0.003), "roc_area": Score(0.97, 10_000, 0.001)}
    facts = {"folder": "/data/cifar", "split": "test", "samples": 10_000}
    write_results(
        run, {"cifar10_probe": {"step": 1200} | TaskResult(scores, 1.0, facts).to_json("cifar10_probe")}
    )
    page = Page(write_report(run).read_text(encoding="utf-8"))
    for words in (
        "cifar10_probe",
        "90.00 % ± 0.30",
        "10,000",
        "FLAVA 92.87 %",
        "1,200",
        "of split test in /data/cifar",
    ):
        assert words in page.text, words
    assert "Not here." not in page.text.split("Tasks")[2].split("The run")[0] and page.errors == []


def test_suites_are_linked_from_wherever_the_page_is(tmp_path):
    run, _ = write_run(tmp_path)
    for name in ("vision/step_00000012", "vision/step_00000012_ema", "vision_limit_5/step_00001200"):
        (run / "suites" / name).mkdir(parents=True)
        (run / "suites" / name / "suite.html").write_text("a page")
    for out in (None, tmp_path / "elsewhere" / "page.html"):
        written = write_report(run, out=out)
        page = Page(written.read_text(encoding="utf-8"))
        listed = "vision, step 12, vision, step 12 (ema), vision_limit_5, step 1,200."
        assert listed in " ".join(page.text.split())
        links = [dict(link)["href"] for link in page.all("a") if "suite.html" in dict(link)["href"]]
        assert len(links) == 3 and all((written.parent / link).read_text() == "a page" for link in links)
        assert "No task has run" not in page.text and page.errors == []


def test_a_checkpoint_has_no_report_of_its_own(tmp_path, capsys):
    run, _ = write_run(tmp_path)
    checkpoint = run / "checkpoints" / "step_00000012"
    assert main(["report", str(checkpoint)]) == 2 and not (checkpoint / "report.html").exists()
    assert f"{checkpoint}: is a checkpoint; give the run, {run}" in capsys.readouterr().err


def test_a_run_without_a_configuration_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="config.json"):
        write_report(tmp_path)


@pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine; the other tests read the page's elements"
)
def test_a_browser_shows_every_picture_without_an_error(report, tmp_path):
    probe = """<script>
    window.failures = []; addEventListener('error', e => failures.push(e.message), true);
    addEventListener('load', () => {
      const images = [...document.images];
      images.filter(i => !(i.complete && i.naturalWidth > 0)).forEach(i => failures.push('picture ' + i.alt));
      const wide = document.documentElement.scrollWidth > innerWidth + 1 ? 'wider than the window' : '';
      document.body.setAttribute('data-result', JSON.stringify({images: images.length, failures, wide,
        fetched: performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length,
        charts: [...document.querySelectorAll('svg')]
          .filter(s => s.getBoundingClientRect().height > 80).length}));
    });
    </script></head>"""
    copy = tmp_path / "page.html"
    copy.write_text(report[0].read_text(encoding="utf-8").replace("</head>", probe, 1), encoding="utf-8")
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", "--window-size=600,900"]
    done = subprocess.run(
        [*command, "--dump-dom", copy.as_uri()], capture_output=True, text=True, timeout=120
    )
    [attributes] = [found for tag, found in Page(done.stdout).elements if tag == "body"]
    assert json.loads(attributes["data-result"]) == {
        "images": 118,
        "failures": [],
        "wide": "",
        "fetched": 0,
        "charts": 15,
    }
