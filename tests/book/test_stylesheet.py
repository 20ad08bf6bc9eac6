"""What is left of a stylesheet matches all that it matched before."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "book" / "_ext"))
slim = pytest.importorskip("slim")


@pytest.mark.parametrize(
    "css, left",
    [
        (".a{x:1}.b{x:2}", ".a{x:1}"),
        (".b,.a .c{x:1}", ".a .c{x:1}"),
        (".a.b{x:1}p{x:2}", "p{x:2}"),
        (".a:not(.b){x:1}", ".a:not(.b){x:1}"),
        (":is(.a,.b) .b{x:1}", ""),
        ('[class*="b.b"],.b{x:1}', '[class*="b.b"]{x:1}'),
        (r".a-1\/2{x:1}", r".a-1\/2{x:1}"),
        ("@media print{.b{x:1}}", ""),
        ("@media print{.b{x:1}.a{x:2}}.c{x:3}", "@media print{.a{x:2}}.c{x:3}"),
        ("@keyframes b{0%{x:1}to{x:2}}", "@keyframes b{0%{x:1}to{x:2}}"),
        ('@import "b.css";@font-face{src:url(b.b)}', '@import "b.css";@font-face{src:url(b.b)}'),
        ('/* .a{} */.a{content:"}.b{;"}', '.a{content:"}.b{;"}'),
        ('.a{src:url("data:x;y,{")}.b{}', '.a{src:url("data:x;y,{")}'),
    ],
)
def test_only_rules_of_absent_classes_go(css, left):
    assert slim.purge(css, {"a", "c", "a-1/2"}) == left


def test_with_all_words_every_rule_stays():
    theme = pytest.importorskip("pydata_sphinx_theme")
    path = Path(theme.__file__).parent / "theme/pydata_sphinx_theme/static/styles"
    css = (path / "pydata-sphinx-theme.css").read_text()
    names = {name.replace("\\", "") for name in slim.CLASS.findall(css)}
    whole = slim.COMMENT.sub("", css)
    assert "".join(slim.purge(css, names).split()) == "".join(whole.split())
