"""Pictures for other pages: well-formed SVG that carries its style, whatever a name has in it."""

import xml.etree.ElementTree as ET

from alignment.report.run_report import Edge, LineageReport, Node
from alignment.report.svg import Label, SvgFigure
from alignment.report.svg_export import figure_svg, lineage_svg

SVG = "{http://www.w3.org/2000/svg}"


def test_a_figure() -> None:
    figure = SvgFigure("Loss of <a> & b", 'says "so"', 360, 230, (Label(1, 2, "x < y & z"),), caption="5 > 4")
    root = ET.fromstring(figure_svg(figure))
    assert root.tag == f"{SVG}svg"
    assert root.get("aria-label") == 'says "so"'
    assert [one.text for one in root.iter(f"{SVG}text")] == ["Loss of <a> & b", "x < y & z", "5 > 4"]
    assert ":root" in (root.findtext(f"{SVG}style") or "")


def test_a_lineage() -> None:
    nodes = tuple(Node(name=name, version=1, kind="model", digest=name * 64) for name in ("a", "b"))
    lineage = LineageReport(nodes=nodes, edges=(Edge(source="a@1", target="b@1", role="model"),))
    root = ET.fromstring(lineage_svg(lineage))
    assert len([one for one in root.iter(f"{SVG}g") if "node" in (one.get("class") or "")]) == 2
    assert len([one for one in root.iter(f"{SVG}path") if "link" in (one.get("class") or "")]) == 1
