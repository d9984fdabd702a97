from html.parser import HTMLParser

import pytest

from evaluation.demo.report import Report, render
from evaluation.demo.run import run_demo
from evaluation.demo.samples import Sample
from evaluation.report.charts import line_chart, thinned, ticks
from evaluation.report.page import data_uri
from tests.evaluation.browser import shown_by_a_browser
from tests.evaluation.builders import SCRIPT_TEXT, png, write_demo


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.addresses = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "data", "srcset")]


@pytest.fixture
def page(tmp_path):
    write_demo(tmp_path)
    run_demo(tmp_path)
    return tmp_path / "report.html"


def test_texts_names_and_reasons_are_escaped(page):
    text = page.read_text()
    tags = Tags(text)
    assert "script" not in tags.tags and "b" not in tags.tags
    assert "&lt;script&gt;alert(&#x27;hi&#x27;)&lt;/script&gt; a &amp; b 0" in text
    assert "no mention &lt;script&gt;" in text
    assert "&lt;b&gt;name 0&lt;/b&gt;" in text


def test_the_pictures_of_samples_and_the_starved_entities_are_shown(page):
    text = page.read_text()
    samples = text.split('id="samples"')[1].split("</section>")[0]
    assert samples.count("<img") == 4 and 'class="gap"' not in samples
    assert "<td>E1</td><td class=number>7</td><td class=number>8</td>" in text


def test_the_page_points_at_nothing_outside_itself(page):
    addresses = Tags(page.read_text()).addresses
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)


def test_attributes_cannot_be_broken_out_of():
    sample = Sample(
        image_id='"><script>x</script>', text=SCRIPT_TEXT, outcome="kept", stage="", reason="", entity_ids=("<i>",),
        image=png(0),
    )  # fmt: skip
    tags = Tags(render(Report(title="<script>", samples=[sample])))
    assert "script" not in tags.tags and "i" not in tags.tags


def test_an_unreadable_sample_leaves_a_gap():
    assert data_uri(b"no picture", "a") is None
    sample = Sample(image_id="a", text="t", outcome="kept", stage="", reason="", entity_ids=(), image=b"no picture")
    assert 'class="gap"' in render(Report(title="t", samples=[sample]))


def test_an_empty_report_still_renders():
    assert "<h1>t</h1>" in render(Report(title="t"))


def test_ticks_are_round_and_inside():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.13, 0.31) == pytest.approx([0.15, 0.2, 0.25, 0.3])


def test_thinning_takes_means_of_neighbours():
    assert thinned([(0, 1.0), (1, 3.0), (2, 5.0), (3, 7.0)], most=2) == [(0.5, 2.0), (2.5, 6.0)]


def test_a_chart_leaves_out_what_is_not_finite_and_says_so():
    chart = line_chart({"<a>": [(0, 1), (1, float("nan")), (2, 3)]}, title="t", x_label="x", y_label="y")
    assert "&lt;a&gt; (1 not finite)" in chart and "nan" not in chart
    assert "no points" in line_chart({"a": []}, title="t", x_label="x", y_label="y")


def test_a_browser_renders_it_and_asks_the_network_for_nothing(page, tmp_path):
    shown = shown_by_a_browser(page, tmp_path)
    assert "<h1>MOFI demo</h1>" in shown and "polyline" in shown
