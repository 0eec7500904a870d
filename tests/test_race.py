"""scripts/race.py: what is recorded, the page in a real browser, the animation."""

import html.parser
import json
import os
import re
import subprocess

import film
import pytest
import torch

from bandwidth import gigabytes_of
from data import BOS, decode, encode
from fast.load import load
from generate import Prefix, Sampling
from measure.modes import check_compared, state_for
from measure.quality import identical
from measure.rounds import PaperPrefix
from sample import drafting_of
from scripts import race
from speculate import MODES, run_mode
from support.terminal import BadInput

pytestmark = pytest.mark.more  # minutes together: .ci/run has them

ENDLESS = Sampling(ignore_eos=True)
PROMPT = b"def f(x):\n    "
# Text that would end a script, markup, quotes, a line that only JavaScript ends, control bytes,
# characters of two to four bytes, a placeholder of the page, and what is no UTF-8
HOSTILE = "</script><script>alert(1)</script><!--\"'`\\\u2028RECORDING\0\x1b\té€😀".encode()
HOSTILE += b"\xff\xc3("


@pytest.fixture(scope="module")
def page(trained_file, tmp_path_factory):
    """A function: a prompt and more flags -> the path of its page."""

    def write(prompt, *flags):
        path = tmp_path_factory.mktemp("race") / "race.html"
        ask = ["--checkpoint", str(trained_file), "--prompt", os.fsdecode(prompt), *flags]
        race.main([*ask, "--out", str(path)])
        return path

    return write


def recorded(trained_file, mode, *flags, state=None):
    """-> (machine, the Generation that nothing watches, its lane). state: a plain one's class."""
    ask = ["--checkpoint", str(trained_file), "--out", "x.html", "--bytes", "40", *flags]
    options, machine = race.options_from(ask), load(str(trained_file), plain=state)
    drafting = check_compared(machine.model, drafting_of(options))[mode]
    new = state_for(mode, machine)
    plain = run_mode(mode, new, encode(PROMPT), 40, drafting, sampling=ENDLESS)
    return machine, plain, race.record(mode, machine, encode(PROMPT), drafting, options)


# ---- what is recorded


@pytest.mark.parametrize("state", [None, Prefix, PaperPrefix])
@pytest.mark.parametrize("mode", MODES)
def test_a_recording_has_every_byte_pass_and_moment(mode, state, trained_file):
    """On the fast machine, on the plain one, and with the paper's rounds."""
    machine, plain, lane = recorded(trained_file, mode, "--ignore-eos", state=state)
    patcher = machine.patcher
    events, text = lane["events"], [BOS, *encode(PROMPT), *plain.ids]
    decided = [id_ for event in events for id_ in event.get("decided", [])]
    assert decided[:40] == plain.ids
    assert 40 <= len(decided) < 40 + machine.model.config.block_size
    times = [event["t"] for event in events]
    assert times == sorted(times) and 0 <= times[0] and times[-1] <= lane["seconds"]
    # The first byte follows from the prompt alone, but in BLT-D.
    assert events[0].get("decided", []) == plain.ids[: int(mode != "bltd")]
    assert set(events[0]["passes"].values()) == {0}
    # The last event knows all passes, and none of those that only the recording needed.
    c, last = plain.counters, events[-1]
    passes = {"decoder": c.decoder, "closing": c.encoder_global, "patcher": c.entropy}
    assert last["passes"] == passes
    assert last["gb"] == pytest.approx(gigabytes_of(plain), abs=1e-6)
    # Boundaries and entropies are those of the whole text.
    ids, entropies, closed = map(list, zip(*lane["bytes"]))
    assert ids == text and closed == patcher.closes(torch.tensor(text)).cumsum(0).tolist()
    expected = patcher.entropies(torch.tensor(text))
    assert torch.allclose(torch.tensor(entropies), expected, atol=1e-3)


def test_a_lane_says_what_its_mode_reads(trained_file):
    """The page tells it in words; it once knew the defaults of its own."""
    settings = {mode: recorded(trained_file, mode)[2]["settings"] for mode in MODES}
    assert settings["blt"] == {} and settings["lookup"] == {"draft_size": 8}
    assert settings["blts"] == {"draft_size": 8, "alpha": 0.0}
    assert settings["bltd"]["unmask"] == "confidence" and settings["bltd"]["block_size"] == 8
    assert settings["bltdv"]["unmask"] == "chained" and settings["bltdv"]["copy"] == 16
    *_, lane = recorded(trained_file, "bltdv", "--block-size", "4", "--unmask", "one-step")
    assert lane["settings"]["block_size"] == 4 and lane["settings"]["unmask"] == "one-step"


def test_no_threshold_is_shown_that_is_not_of_entropies(trained_file):
    """A patcher by stride compares nothing, so no byte lies above or below its threshold."""
    machine = load(str(trained_file))
    options = race.options_from(["--out", "x.html", "--bytes", "4"])
    assert race.run_race(machine, encode(b"x"), options)["threshold"] is not None
    machine.patcher.config.kind = "stride"
    assert race.run_race(machine, encode(b"x"), options)["threshold"] is None


def test_accepted_bytes_of_a_recording_are_those_counted(trained_file):
    *_, plain, lane = recorded(trained_file, "bltdv", "--ignore-eos")
    rounds = [event for event in lane["events"] if "accepted" in event][1:]
    assert len(rounds) == plain.counters.rounds
    assert sum(event["accepted"] for event in rounds) == plain.counters.accepted > 0
    drafts = [event for event in lane["events"] if event.get("whole")]
    assert sum(len(event["cells"]) for event in drafts) == plain.counters.drafted


# ---- the page


class Elements(html.parser.HTMLParser):
    """The attributes of all elements of a page by their tags."""

    def __init__(self, text):
        super().__init__()
        self.found = {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.setdefault(tag, []).append(dict(attributes))


def browse(path, script, where=""):
    """Open a page, run a script in it after its own, let ten seconds pass -> Elements.

    where: what stands behind the page's address.

    Errors and messages of the console fail the test; alerts end in the page as data-alert.
    """
    text = path.read_text(encoding="utf-8")
    before = "<script>window.alert = () => { document.documentElement.dataset.alert = 1 };</script>"
    text = text.replace("<title>", before + "<title>", 1)
    own, end = text.rsplit("</body>", 1)
    copy = path.with_name("driven.html")
    copy.write_text(f"{own}<script>{script}</script></body>{end}", encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    flags += " --disable-background-networking --disable-component-update --dump-dom"
    flags += " --enable-logging=stderr --virtual-time-budget=10000"
    flags += f" --user-data-dir={path.with_name('profile')}"
    command = [film.BROWSER, *flags.split(), copy.as_uri() + where]
    done = subprocess.run(command, capture_output=True, timeout=120)
    messages = [line for line in done.stderr.decode().splitlines() if "CONSOLE" in line]
    assert not messages, messages
    return Elements(done.stdout.decode()).found


def lanes_in(path):
    """-> the lanes of the recording in a page."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text.split('id="recording">')[1].split("</script>")[0])["lanes"]


def lanes_of(elements):
    """-> mode -> attributes of its lane."""
    return {a["data-mode"]: a for a in elements["section"] if "data-mode" in a}


def in_browser(test):
    """Marks a test that needs a browser, and skips it where there is none."""
    reason = "there is no chromium: apt-get install chromium"
    return pytest.mark.browser(pytest.mark.skipif(not film.BROWSER, reason=reason)(test))


PLAY = "document.getElementById('play').click();"


@in_browser
def test_the_page_plays_to_its_end_and_every_lane_has_its_text(page, trained_file):
    path = page(PROMPT, "--bytes", "40")
    elements = browse(path, f"setSpeed(5); {PLAY}")
    assert elements["body"][0]["data-finished"] == "true"
    lanes = lanes_of(elements)
    assert list(lanes) == list(MODES)
    machine = load(trained_file)
    plain = None
    for mode, lane in lanes.items():
        made = run_mode(mode, machine.state(), encode(PROMPT), 40)
        assert lane["data-text"] == decode(made.ids).hex() and "done" in lane["class"].split()
        plain = plain or made
        if MODES[mode].verified:
            options = race.options_from(["--out", "x.html"])
            same = identical(mode, machine, encode(PROMPT), plain, made, options)
            assert same == (lane["data-text"] == lanes["blt"]["data-text"] or "tie"), mode


@in_browser
def test_scrubbing_back_shows_the_beginning_again(page):
    path = page(PROMPT, "--bytes", "40")
    scrub = "const bar = document.getElementById('scrub'); const at = (value) => {"
    scrub += "bar.value = value; bar.dispatchEvent(new Event('input')); };"
    ends = lanes_of(browse(path, f"{scrub} at(1000);"))
    middle = lanes_of(browse(path, f"{scrub} at(1000); at(500);"))
    begin = lanes_of(browse(path, f"{scrub} at(1000); at(0);"))
    for mode in MODES:
        first, half, whole = (lanes[mode]["data-text"] for lanes in (begin, middle, ends))
        assert half.startswith(first) and whole.startswith(half) and len(whole) == 80
        assert len(first) == 2 * (mode != "bltd")  # the prompt alone gives the others a byte


@in_browser
def test_a_hostile_prompt_is_text(page):
    """It ended the script that holds the recording, were `<` not escaped."""
    path = page(HOSTILE, "--bytes", "16", "--temperature", "3")
    # A lane is chosen and walked by keyboard, so that every byte of the prompt is told in words.
    press = "for (const text of document.querySelectorAll('.text')) { text.focus(); for (let i = 0;"
    press += " i < 70; i++) text.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft',"
    press += " bubbles: true})); }"
    elements = browse(path, f"{press} setSpeed(5); {PLAY}")
    assert "data-alert" not in elements["html"][0]
    # The recording, the page's own, and the two of this test.
    assert len(elements["script"]) == 4
    assert elements["body"][0]["data-finished"] == "true"
    spans = [a for a in elements["span"] if "data-index" in a]
    chosen = [a for a in spans if "chosen" in a["class"].split()]
    assert [a["data-index"] for a in chosen] == ["1"]
    raw = [a for a in spans if "prompt" in a["class"].split() and "raw" in a["class"].split()]
    # U+2028 and the bytes that are no UTF-8 or no character, in each of the lanes
    assert len(raw) == len(MODES) * (3 + 2 + 2)


@pytest.mark.parametrize("flag", ["--plain", "--rounds paper"])
def test_a_race_of_the_plain_machine_has_the_same_bytes(flag, page):
    """Written by the files of the root alone, once by the paper's rounds."""
    few = ["--bytes", "6", "--ignore-eos"]
    lanes = [lanes_in(page(b"def ", *few, *more)) for more in ([], flag.split())]
    for ours, theirs in zip(*lanes):
        assert ours["mode"] == theirs["mode"]
        if ours["verified"] or ours["mode"] == "blt":
            assert [byte[0] for byte in ours["bytes"]] == [byte[0] for byte in theirs["bytes"]]
        calls = [lane["events"][-1]["passes"]["closing"] for lane in (ours, theirs)]
        if flag == "--plain":
            assert calls[0] == calls[1]
        elif ours["mode"] != "blt":
            assert calls[0] < calls[1]


def test_the_page_is_one_file_in_ascii_data(page):
    """Nothing is fetched, and the prompt can't end the script around it."""
    text = page(HOSTILE, "--bytes", "200", "--ignore-eos").read_text(encoding="utf-8")
    assert len(text.encode()) < 300_000
    assert not re.search(r"(src|href)\s*=|https?://|url\(|@import", text)
    data = text.split('id="recording">')[1].split("</script>")[0]
    assert data.isascii() and "<" not in data and text.count("</script>") == 2


# ---- the animation


@in_browser
def test_the_animation_is_the_page_at_moments(trained_file, tmp_path, capsys, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(film, "FRAMES", 2)
    path = tmp_path / "race.gif"
    ask = ["--checkpoint", str(trained_file), "--prompt", os.fsdecode(HOSTILE), "--bytes", "40"]
    race.main([*ask, "--out", str(tmp_path / "race.html")])
    film.main([str(tmp_path / "race.html"), str(path)])
    with image.open(path) as picture:
        assert picture.n_frames == 3 and picture.size == film.SIZE
        frames = []
        for frame in range(3):
            picture.seek(frame)
            frames.append(picture.convert("RGB").tobytes())
    assert len(set(frames)) == 3
    assert "BLT-DV" in capsys.readouterr().out


@in_browser
def test_a_still_page_stands_where_its_address_says(page):
    path = page(PROMPT, "--bytes", "40")
    ends = lanes_of(browse(path, "", "#1"))
    begin = lanes_of(browse(path, "", "#0"))
    for mode in MODES:
        assert len(ends[mode]["data-text"]) == 80
        assert len(begin[mode]["data-text"]) == 2 * (mode != "bltd")


# ---- bad input


def test_bad_input_is_said_before_anything_runs(trained_file, tmp_path, monkeypatch):
    known = ["--checkpoint", str(trained_file)]
    expected = [
        (known, "--out"),
        ([*known, "--out", "x.html", "--prompt", "x" * 201], "200 bytes"),
        ([*known, "--out", "x.html", "--bytes", "401"], "400"),
        ([*known, "--out", str(tmp_path / "no" / "x.html")], "No such file"),
        ([*known, "--out", "x.html", "--block-size", "99"], "up to 8 bytes, not 99"),
        (["--checkpoint", "gone.pt", "--out", "x.html"], "no checkpoint"),
    ]
    for arguments, words in expected:
        with pytest.raises(BadInput, match=re.escape(words)) as problem:
            race.main(arguments)
        assert "\n" not in str(problem.value)
    monkeypatch.setattr(film, "BROWSER", None)
    with pytest.raises(BadInput, match="chromium"):
        film.main(["x.html", str(tmp_path / "x.gif")])
    assert not list(tmp_path.iterdir())
