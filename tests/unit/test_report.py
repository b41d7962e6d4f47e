"""The report: safe, self-contained, and whole even where the run is not."""

import html.parser
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys

import fake_run
import numpy as np
import pytest

from gen.concepts import load_bank
from gen.shards.store import StageStore
from synthclip_jax import compare, compare_runs, report
from synthclip_jax.evals import results
from synthclip_jax.evals.build import build as build_results
from synthclip_jax.files import state_files
from synthclip_jax.model.checkpoint_files import checkpoint_digest, write_checksums
from synthclip_jax.report import plots
from synthclip_jax.report.markup import Html, tag, text, thumbnail
from synthclip_jax.report.missing import Missing
from synthclip_jax.report.workdir import Run
from synthclip_jax.workdir import generated

pytest.importorskip("pyarrow")

ATTACK = '<script>alert("x")</script><img src=http://evil.test/a.png onerror=alert(1)>'
SECTIONS = ["pipeline", "concepts", "captions", "pictures", "audit", "training", "zeroshot", "classes", "provenance"]


class Reader(html.parser.HTMLParser):
    """Collects elements, attributes and text, and checks that elements nest."""

    VOID = frozenset({"br", "hr", "img", "link", "meta"})

    def __init__(self, page):
        super().__init__()
        self.elements, self.stack, self.texts = [], [], []
        self.feed(page)
        self.close()
        assert self.stack == []

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in self.VOID:
            self.stack.append(name)

    def handle_endtag(self, name):
        assert self.stack.pop() == name

    def handle_data(self, data):
        if self.stack and self.stack[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return fake_run.make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(finished):
    return report.build(finished)


def test_the_invented_run_is_one_that_generation_takes_for_its_own(finished):
    dataset = finished / "dataset" / "toy" / "1.0.0"
    for stage, data in (("captions", None), ("images", dataset)):
        store = StageStore(finished / "gen" / stage, data)
        plan = store.ensure_plan(store.read_plan())
        assert len(store.committed()) == plan["shards"]
    assert load_bank(finished).texts == list(fake_run.CONCEPTS)
    assert generated.read_balance(finished / "gen" / "balance" / "balance.json")["kept"] == 46
    assert generated.read_provenance(dataset / "provenance.json")["records"] == 96


def test_a_finished_run_fills_every_section(page):
    reader = Reader(page)
    assert [attributes["id"] for name, attributes in reader.elements if name == "section"] == SECTIONS
    assert "absent" not in {attributes.get("class") for _, attributes in reader.elements}
    for fact in (
        "96 pictures drawn by software from 46 captions",
        "8 concepts",
        "17 turned away",
        "t = 20",
        "ln(128) = 4.85",
        "composites",
        "outlines",
        "12.50%",  # chance of 8 classes
        "Named worst",
        fake_run.BANK_DIGEST,
        f"jax {importlib.metadata.version('jax')}",
        "blob, a disc painter (CC0)",
    ):
        assert fact in reader.text, fact


def test_the_navigation_leads_to_every_section(page):
    links = [attributes["href"] for name, attributes in Reader(page).elements if name == "a"]
    assert links == [f"#{name}" for name in SECTIONS]


def test_the_page_loads_nothing_from_anywhere(page):
    reader = Reader(page)
    assert {name for name, _ in reader.elements}.isdisjoint({"script", "iframe", "object", "embed", "base", "form"})
    for name, attributes in reader.elements:
        for key in ("src", "href", "srcset", "data", "poster", "xlink:href"):
            if key in attributes:
                assert attributes[key].startswith(("data:", "#")), (name, attributes[key][:80])
        assert not [key for key in attributes if key.startswith("on")]
    assert not re.search(r"https?://", re.sub(r'src="data:[^"]*"', "", page))
    assert not re.search(r"@import|url\(", page)
    policy = [attributes["content"] for _, attributes in reader.elements if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_the_accuracies_on_the_page_are_those_of_the_result_file(finished, page):
    result = json.loads((finished / "eval" / "600-zeroshot.json").read_text())
    shown = Reader(page).text
    for name in ("composites", "outlines"):
        for metric in ("acc1", "acc5", "mean_per_class_recall"):
            value, low, high = (result["metrics"][f"zeroshot/{name}/{metric}{end}"] for end in ("", "_low", "_high"))
            assert f"{100 * value:.1f}% {100 * low:.1f} to {100 * high:.1f}" in shown


def test_hostile_captions_concepts_and_names_are_shown_and_never_run(tmp_path):
    concepts = (ATTACK, "cat & <b>dog</b>", "owl", "teapot")
    captions = [(c, f"{ATTACK} {concepts[c]} {k}") for c in range(4) for k in range(3)]
    fake_run.make_run(tmp_path, concepts=concepts, captions=captions)
    config = tmp_path / "train" / "config.json"
    run = json.loads(config.read_text())
    run["config"]["name"] = run["versions"]["jax"] = ATTACK
    state_files.write(config, run)
    for stage in ("captions", "images"):
        path = tmp_path / "gen" / stage / "commits" / "00000.json"
        record = json.loads(path.read_text())
        record["rejects"][ATTACK] = 3
        path.write_text(json.dumps(record | {"check": generated.plan_digest(record)}))
    page = report.build(tmp_path)
    reader = Reader(page)
    assert not [element for element in reader.elements if element[0] == "script"]
    assert not [element for element in reader.elements if element[0] == "img" and "onerror" in element[1]]
    assert "<script" not in page
    assert reader.text.count("<script>alert(") > 20  # all of them are there, as text


def test_an_empty_workdir_gives_a_page_of_sentences(tmp_path):
    reader = Reader(report.build(tmp_path))
    assert [attributes["id"] for name, attributes in reader.elements if name == "section"] == SECTIONS
    absent = [attributes for _, attributes in reader.elements if attributes.get("class") == "absent"]
    assert len(absent) == len(SECTIONS)
    assert "This workdir is still empty" in reader.text
    assert "No checkpoint has been evaluated" in reader.text


@pytest.mark.parametrize(
    ("gone", "sentence"),
    [
        ("eval", "No checkpoint has been evaluated"),
        ("train", "No training step has been logged"),
        ("dataset", "There are no pictures"),
        ("gen/balance", "The captions have not been balanced"),
        ("gen/captions", "There are no captions"),
        ("gen", "Nothing has been generated"),
        ("testsets", "The pictures themselves cannot be shown"),
        ("gen/images/commits", "Nothing here yet."),
    ],
)
def test_a_missing_part_leaves_a_sentence_and_the_rest(tmp_path, finished, gone, sentence):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / gone)
    reader = Reader(report.build(workdir))
    assert sentence in reader.text
    assert [attributes["id"] for name, attributes in reader.elements if name == "section"] == SECTIONS


@pytest.mark.parametrize(
    ("path", "data", "sentence"),
    [
        ("gen/balance/balance.json", b"{", "This part cannot be read: StateError"),
        ("gen/balance/counts_after.npy", b"nothing", "This part cannot be read"),
        ("gen/captions/captions-00000-of-00001.parquet", b"PAR1 no", "This part cannot be read: ArrowInvalid"),
        ("eval/600-zeroshot.json", b"[]", "600-zeroshot.json: damaged (it is a list, expected an object)"),
        ("testsets/composites/test/0.tar", b"x" * 700, "the archive is damaged or cut off"),
    ],
)
def test_a_damaged_part_does_not_take_the_others_with_it(tmp_path, finished, path, data, sentence):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    (workdir / path).write_bytes(data)
    reader = Reader(report.build(workdir))
    assert sentence in reader.text
    assert "Provenance" in reader.text


def test_an_undecodable_picture_in_the_dataset_leaves_a_sign(tmp_path):
    calls = iter(range(1000))
    encode = fake_run.encode

    def broken_now_and_then(picture, form):
        return b"no jpeg" if next(calls) % 5 == 0 else encode(picture, form)

    fake_run.encode = broken_now_and_then
    try:
        fake_run.make_generation(tmp_path)
    finally:
        fake_run.encode = encode
    reader = Reader(report.build(tmp_path))
    assert "nopicture" in {attributes.get("class") for _, attributes in reader.elements}


def test_the_contact_sheet_shows_as_many_concepts_as_it_can(finished):
    run = Run(finished)
    images = run.images_of(run.dataset_folder)
    assert {record.concept for record in images.draw(8).records} == set(fake_run.CONCEPTS)
    assert len(images.draw(40).records) == 40
    assert not images.draw(40).left_out


def test_the_worst_classes_show_what_they_were_taken_for(finished, page):
    result = Run(finished).zeroshot[-1]
    detail = Run(finished).detail(result, "outlines")
    labels, guesses = detail["labels"], detail["top"][:, 0]
    share = [np.mean(guesses[labels == c] == c) for c in range(len(fake_run.CONCEPTS))]
    worst = int(np.argmin(share))
    taken_for = {fake_run.CONCEPTS[g] for g in guesses[labels == worst] if g != worst}
    panel = page.rpartition("<summary>outlines</summary>")[2].partition("Named worst")[2]
    card = panel.partition(f"<b>{fake_run.CONCEPTS[worst]}</b>")[2].partition("class-card")[0]
    assert card
    assert set(re.findall(r'<figure class="wrong">.*?<figcaption>(.*?)</figcaption>', card)) <= taken_for
    assert '<figure class="wrong">' in card


def test_how_sure_it_was_stands_beside_how_often_it_was_right(finished, page):
    run = Run(finished)
    result = run.zeroshot[-1]
    error = result["metrics"]["zeroshot/outlines/ece"]
    panel = page.partition(f"<summary>outlines: calibration error {100 * error:.1f}%</summary>")[2]
    cells = re.findall(r"<tr>(.*?)</tr>", panel.partition("</details>")[0])[1:]
    rows = [re.findall(r">([\d.,]+)%?<", cell) for cell in cells]
    counts, sure, right = np.array([[float(part) for part in row[-3:]] for row in rows]).T
    assert counts.sum() == result["metrics"]["zeroshot/outlines/n"]
    assert (counts * abs(sure - right)).sum() / counts.sum() == pytest.approx(100 * error, abs=0.1)


def test_composition_and_corruptions_have_a_row_each(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    shares = {"acc1": 0.625, "clean": 0.75, "noise": 0.5}
    for suite, name, chance in (("compositional", "choices", "acc1_chance"), ("corruptions", "composites", "chance")):
        values = {"n": 40, "captions": 80, chance: 0.5} if suite == "compositional" else {"n": 57, chance: 0.1}
        for metric, share in shares.items() if suite == "corruptions" else [("acc1", 0.625)]:
            values |= {metric: share, f"{metric}_low": share - 0.1, f"{metric}_high": share + 0.1}
        results.write_result(workdir, 600, suite, {f"{suite}/{name}/{key}": v for key, v in values.items()}, {name: {}})
    text = Reader(report.build(workdir)).text
    assert "40 pictures, 80 captions" in text
    assert "the right caption chosen 62.5%" in text
    assert "57 pictures" in text
    assert "top-1 with noise faults 50.0%" in text


def test_the_command_writes_the_page_and_says_where(finished):
    command = [sys.executable, "-m", "synthclip_jax.report", "--workdir", str(finished)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(finished / "report.html") in done.stdout
    assert (finished / "report.html").read_text().startswith("<!doctype html>")
    assert not list(finished.glob(".report*"))
    missing = subprocess.run([*command[:-1], "no/such"], capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert "no such workdir" in missing.stderr


def test_the_report_needs_no_jax(finished):
    code = (
        f"import sys; from synthclip_jax import report; report.build({str(finished)!r});"
        "assert not {'jax', 'torch', 'tensorflow', 'gen'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the parts


def test_markup_escapes_everything_but_markup():
    assert tag("p", "<b>", Html("<i>x</i>"), 3, None, ["&", '"']) == "<p>&lt;b&gt;<i>x</i>3&amp;&quot;</p>"
    assert tag("a", title='"><script>', hidden=True, lang=None) == '<a title="&quot;&gt;&lt;script&gt;" hidden></a>'
    assert tag("br") == "<br>"
    assert text("<") == "&lt;"


def test_pictures_are_encoded_again_so_that_nothing_but_their_pixels_gets_into_the_page():
    small = fake_run.encode(fake_run.blob("", "cat", 0, 32), "PNG")
    assert 'width="32"' in thumbnail(small)
    assert "image/jpeg" in thumbnail(small)
    assert thumbnail(small + b"a private key") == thumbnail(small)
    large = thumbnail(fake_run.encode(fake_run.blob("", "cat", 0, 512), "PNG"))
    assert 'width="144"' in large
    assert "image/jpeg" in large


@pytest.mark.parametrize("span", [(0, 1), (0, 0.00123), (3, 4000), (-2, 2.5), (0.8, 0.9)])
def test_ticks_are_round_few_and_inside(span):
    ticks = plots.round_ticks(*span)
    assert 3 <= len(ticks) <= 8
    assert all(span[0] - 1e-9 <= tick <= span[1] + 1e-9 for tick in ticks)


@pytest.mark.parametrize("span", [(1, 3), (0.8, 70), (1, 1e6), (1e-5, 1e9)])
def test_logarithmic_ticks_are_round_few_and_inside(span):
    ticks = plots.log_ticks(*span)
    assert 2 <= len(ticks) <= 7
    assert all(0.99 * span[0] <= tick <= 1.01 * span[1] for tick in ticks)


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (2.5e-4, "2.5e-4"), (1e-5, "1e-5"), (0.5, "0.5"), (1500, "1.5k"), (2e6, "2M")]
)
def test_numbers_on_axes_are_short(value, shown):
    assert plots.short(value) == shown


def test_ticks_close_together_differ_in_their_texts():
    labels = [label for _, label in plots.Axis("", 14.105, 14.142).labels()]
    assert len(set(labels)) == len(labels) > 2


def test_long_lines_are_thinned_and_keep_their_ends():
    for log in (False, True):
        x, y = plots.thin(range(1, 100_001), range(100_000), log)
        assert len(x) <= plots.POINTS
        assert (x[0], x[-1]) == (1, 100_000)
        assert y[-1] == 99_999


def test_smoothing_keeps_the_mean_of_a_straight_line():
    assert plots.smooth([0.0, 1.0, 2.0, 3.0, 4.0], 3) == [0.5, 1.0, 2.0, 3.0, 3.5]


def test_a_plot_of_one_point_or_equal_values_is_drawn():
    x, y = plots.Axis("x", *plots.span([5.0])), plots.Axis("y", *plots.span([0.0, 0.0]))
    assert "circle" in plots.line_plot("one", x, y, [plots.Line("", [5.0], [0.0])])
    log = plots.Axis("x", *plots.span([7.0], log=True), log=True)
    assert "svg" in plots.line_plot("one", log, y, [plots.Line("", [7.0], [0.0])])


def test_a_missing_part_is_a_typed_error(tmp_path):
    with pytest.raises(Missing, match="no concept bank"):
        _ = Run(tmp_path).bank


# ---- Whose numbers these are -----------------------------------------------------------------------------------------


def checkpoint(workdir, step=600):
    """The files of a checkpoint, as far as its digest is of them."""
    folder = workdir / "train" / "checkpoints" / str(step)
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"others")
    write_checksums(folder)
    return checkpoint_digest(folder)


OTHER_WEIGHTS = "of other weights than the checkpoint of this step holds now"


def test_numbers_of_other_weights_are_shown_with_that_word_on_every_page_and_in_every_table(tmp_path, finished):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    pages = (
        lambda: Reader(report.build(workdir)).text,
        lambda: build_results(workdir)[2],
        lambda: compare.table(compare.of_run(workdir), compare.of_paper("clip_cc12m")),
        lambda: compare_runs.build((workdir, finished)),
    )
    assert [OTHER_WEIGHTS in page() for page in pages] == [False] * 4
    digest = checkpoint(workdir)
    assert [OTHER_WEIGHTS in page() for page in pages] == [True] * 4
    assert OTHER_WEIGHTS in (workdir / "eval" / "results.csv").read_text()
    fake_run.evaluated(workdir, digest)
    assert [OTHER_WEIGHTS in page() for page in pages] == [False] * 4


def test_numbers_of_an_older_version_are_shown_with_that_word(tmp_path, finished):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    path = workdir / "eval" / "600-zeroshot.json"
    result = json.loads(path.read_text())
    for key in ("format", "check"):
        del result[key]
    for described in result["datasets"].values():
        del described["made_from"], described["detail_sha256"]
    path.write_text(json.dumps(result))
    assert "made by an older version" in Reader(report.build(workdir)).text
    assert "made by an older version" in build_results(workdir)[2]


def test_predictions_that_are_cut_off_cost_their_own_test_set_alone(tmp_path, finished):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    path = workdir / "eval" / "600-zeroshot.composites.npz"
    path.write_bytes(path.read_bytes()[:100])
    text = Reader(report.build(workdir)).text
    assert "600-zeroshot.composites.npz: not as it was written with this result" in text
    assert text.count("Named worst") == 1
