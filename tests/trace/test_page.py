"""The page: it holds everything it needs, and nothing a trace says becomes more than text."""

import html
import json
import re
import shutil
import subprocess
import sys
import types

import pytest

from jaxdecode.errors import UnsupportedError
from jaxdecode.trace import notebook, page, terminal, text
from tests.trace import made

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
MOST = 2_000_000


def data_of(content):
    (found,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', content, re.S
    )
    return json.loads(found)


@pytest.mark.parametrize("whole", [made.tree(), made.window(), made.hostile()])
def test_a_page_holds_the_trace_and_loads_nothing(whole):
    content = page.render([whole])
    shown = data_of(content)["traces"][0]
    assert shown["method"] == whole.method and len(shown["rows"]) == len(whole.rows)
    assert [len(row["steps"]) for row in shown["rows"]] == [len(row.steps) for row in whole.rows]
    assert not re.search(r'(src|href)="(?!data:,)', content) and "@import" not in content
    assert set(re.findall(r"https?://[^\"'\s]*", content)) <= {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in content


def test_no_text_of_a_trace_becomes_html():
    content = page.render([made.hostile()])
    assert (
        content.count("<img") == 0 and content.count("<script") == content.count("</script>") == 2
    )
    assert content.count("</title>") == 1 and html.escape(made.HOSTILE) in content
    pieces = data_of(content)["traces"][0]["pieces"]
    assert pieces["7"] == made.HOSTILE and pieces["8"] == "<!-- js -->"
    assert pieces["2"] == [0xE2, 0x80], "half a character stays bytes"


@pytest.mark.parametrize("whole", [made.large_tree(), made.large_window()])
def test_a_page_of_512_tokens_is_small(whole):
    whole.check()
    assert len(page.render([whole]).encode()) < MOST


def test_two_traces_say_what_they_share():
    one = made.tree()
    other = made.trace("tree", [made.row(one.rows[0].steps[:1], [7, 5])])
    assert data_of(page.render([one, other]))["same"] == [[[0, 0, 2]]]


def test_a_frame_is_one_element_of_a_notebook():
    frame = notebook.frame(page.render([made.hostile()]))
    assert frame.count("<") == 2 and 'sandbox="allow-scripts"' in frame


def test_show_needs_a_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", None)
    with pytest.raises(UnsupportedError, match="jaxdecode show"):
        notebook.show([made.tree()])


def test_show_draws_in_a_notebook(monkeypatch):
    shown = []
    shell = types.SimpleNamespace(kernel=object())
    display = types.SimpleNamespace(HTML=lambda content: content, display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    notebook.show([made.tree()])
    assert shown[0].startswith("<iframe srcdoc=")


def test_a_character_of_several_tokens_belongs_to_its_last_one():
    whole = made.trace("tree", [], pieces={1: b"a\xe2", 2: b"\x82", 3: b"\xac!"}, names={4: "<s>"})
    assert list(text.spell(whole, [1, 2, 3, 4, 9])) == ["a", "", "€!", "<s>", "<9> "]
    assert list(text.spell(whole, [1, 4, 3])) == ["a", "\ufffd<s>", "\ufffd!"]


def test_a_terminal_gets_lines_and_no_commands():
    whole = made.hostile()
    lines = list(terminal.lines(whole, whole.rows[0]))
    assert lines[0].startswith("step    1  1 of 3 drafts  '</script>") and len(lines) == 3
    assert "\x1b" not in "".join(lines) and "\\x1b]0;taken\\x07" in lines[0]
    assert lines[-1].startswith("3 tokens in 2 steps, 1.50 per step; end: ")


def test_a_canvas_gets_lines_too():
    whole = made.window()
    lines = list(terminal.lines(whole, whole.rows[0]))
    assert lines[1] == "step    2  1 of 1 slots, 1 reopened  0:'3 '"


def browse(content, tmp_path):
    """The page as a browser has drawn it, and what the browser said."""
    (tmp_path / "a.html").write_text(content)
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    seen = subprocess.run(
        [
            BROWSER,
            *flags.split(),
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--dump-dom",
            (tmp_path / "a.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in seen.stderr
    return seen.stdout


needs_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")


@needs_browser
@pytest.mark.parametrize("kind", ["tree", "window", "hostile", "pair"])
def test_a_browser_draws_it_without_a_complaint(kind, tmp_path):
    whole = made.tree() if kind == "pair" else getattr(made, kind)()
    traces = [whole, made.window()] if kind == "pair" else [whole]
    drawn = browse(page.render(traces), tmp_path)
    tokens = sum(len(row.tokens) for part in traces for row in part.rows)
    assert len(re.findall(r'<span class="token[^>]* title=', drawn)) == tokens
    assert "<title>taken" not in drawn and "<img" not in drawn


@needs_browser
def test_keys_go_through_the_steps(tmp_path):
    keys = ["Home", "ArrowRight", "ArrowRight", "ArrowLeft", "End", " ", " "]
    press = f"""<script>
        const at = {json.dumps(keys)}.map((key) => {{
            document.body.dispatchEvent(new KeyboardEvent("keydown", {{ key, bubbles: true }}));
            return player.step + (player.timer ? " plays" : "");
        }});
        document.title = at.join();
    </script></body>"""
    drawn = browse(page.render([made.tree()]).replace("</body>", press), tmp_path)
    assert "<title>0,1,1,0,1,0 plays,0</title>" in drawn
