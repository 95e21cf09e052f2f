"""Pages opened in a headless Chromium: what is shown, what a script finds, how it looks."""

import dataclasses
import html
import json
import random
import shutil
import subprocess

from cai.story import RunStory
from tests import stories

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
DRIVEN = """<!DOCTYPE html><html style="background:#888"><body style="margin:0">
<iframe id="page" style="border:0;width:{width}px;height:{height}px" srcdoc="{page}"></iframe>
<pre id="found"></pre><script>
const frame = document.getElementById("page");
const started = performance.now();
frame.addEventListener("load", () => {{
  const page = frame.contentDocument;
  const opened = performance.now() - started;
  const set = (id, value) => {{
    const control = page.getElementById(id);
    if (typeof value === "boolean") control.checked = value;
    else if (control.options) control.selectedIndex =
      [...control.options].findIndex((option) => option.textContent === value);
    else control.value = value;
    control.dispatchEvent(new frame.contentWindow.Event("input", {{ bubbles: true }}));
  }};
  const found = (() => {{ {script} }})();
  document.getElementById("found").textContent = JSON.stringify(found);
}});
</script></body></html>"""


def many(num_prompts: int) -> RunStory:
    """A story with as many held-out prompts, each answered by three policies in 60 words."""
    draw = random.Random(7)
    words = " ".join(stories.DRAFT.split()).split()
    whole = stories.full_story()

    def text() -> str:
        return " ".join(draw.choices(words, k=60))

    def example(number: int):
        one = whole.examples[number % len(whole.examples)]
        answers = (
            dataclasses.replace(
                answer, text=text(), score=draw.gauss(0, 1),
                compliance=draw.choice(("refusal", "partial", "compliance")),
            )
            for answer in one.answers
        )  # fmt: skip
        prompt = dataclasses.replace(one.prompt, id=f"{one.prompt.kind.value}-{number:05d}")
        return dataclasses.replace(one, prompt=prompt, answers=tuple(answers))

    return dataclasses.replace(whole, examples=tuple(map(example, range(num_prompts))))


def chromium(*arguments: str, folder) -> subprocess.CompletedProcess:
    """One headless call with a profile of its own."""
    assert CHROMIUM is not None
    return subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr",
            *arguments,
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def driven(page: str, script: str, *, folder, width: int = 1200, height: int = 900):
    """What `script` returns in a page that holds the report in a frame of this size."""
    path = folder / "driven.html"
    path.write_text(
        DRIVEN.format(page=html.escape(page), script=script, width=width, height=height), "utf-8"
    )
    done = chromium("--timeout=20000", "--dump-dom", path.as_uri(), folder=folder)
    found = done.stdout.rpartition('<pre id="found">')[2].partition("</pre>")[0]
    assert found, done.stderr
    return json.loads(html.unescape(found))


OPENED = """<!DOCTYPE html><body><iframe id="page" style="width:1200px;height:900px"></iframe>
<pre id="found"></pre><script>
const frame = document.getElementById("page");
const started = performance.now();
frame.addEventListener("load", () => {{
  document.getElementById("found").textContent = Math.round(performance.now() - started);
}});
frame.src = "{address}";
</script></body>"""


def opening_milliseconds(page: str, *, folder) -> int:
    """From the request for a page on disk to its load event, after its script."""
    path, opener = folder / "opened.html", folder / "opener.html"
    path.write_text(page, "utf-8")
    opener.write_text(OPENED.format(address=path.as_uri()), "utf-8")
    done = chromium("--timeout=30000", "--dump-dom", opener.as_uri(), folder=folder)
    found = done.stdout.rpartition('<pre id="found">')[2].partition("</pre>")[0]
    assert found, done.stderr
    return int(found)


def screenshot(
    page: str, path, *, folder, width: int, height: int, dark: bool = False, script: str = ""
) -> None:
    """A page as a picture, in a frame of this size, after what `script` does to it."""
    source = folder / "shown.html"
    source.write_text(
        DRIVEN.format(page=html.escape(page), script=script, width=width, height=height), "utf-8"
    )
    colours = ["--blink-settings=preferredColorScheme=0"] if dark else []
    size = f"--window-size={max(width, 500)},{height + 90}"
    chromium(*colours, size, f"--screenshot={path}", source.as_uri(), folder=folder)
