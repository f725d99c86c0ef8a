"""The review page: who is answered, what is served, and that a browser can review with it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("zarr", reason="zarr is not installed: `pip install .[training]`")

from browser import Browser, needs_browser
from review_sets import FRAMES, NASTY, review_set

from e2e_perception.data import review_session
from e2e_perception.data.label_layers import read_layer
from e2e_perception.data.review_clips import ReviewDataset
from e2e_perception.data.review_server import MAX_BODY_BYTES, ReviewServer
from e2e_perception.data.review_session import ReviewSession


class Served:
    """A server that runs, and requests to it."""

    def __init__(self, server: ReviewServer, out: Path) -> None:
        self.server, self.out = server, out

    def ask(
        self, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Path relative to the token, or absolute; `Content_Type` is a header's name."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=60)
        target = path if path.startswith("/") else f"/{self.server.token}/{path}"
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        connection.putrequest(method, target, skip_host="Host" in named)
        if body is not None and "Content-Length" not in named:
            named["Content-Length"] = str(len(body))
        for key, value in named.items():
            connection.putheader(key, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    def json(self, path: str) -> dict[str, Any]:
        status, _, content = self.ask(path)
        assert status == 200, content
        found: dict[str, Any] = json.loads(content)
        return found

    def decide(self, document: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        headers.setdefault("Content_Type", "application/json")
        status, _, content = self.ask("decide", method="POST", body=body, **headers)
        return status, json.loads(content)


@contextmanager
def running(server: ReviewServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join(timeout=30)


def serving(dataset: Path, out: Path) -> Iterator[Served]:
    opened = ReviewDataset.open(dataset)
    with (
        ReviewSession(opened, opened.names(), out, "kim") as session,
        ReviewServer(session) as server,
        running(server),
    ):
        yield Served(server, out)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return review_set(tmp_path_factory.mktemp("sets") / "set")


@pytest.fixture
def served(dataset: Path, tmp_path: Path) -> Iterator[Served]:
    yield from serving(dataset, tmp_path / "layer.parquet")


# ----------------------------------------------------------------------------------- who is answered


def test_only_this_machine_is_listened_to(served: Served) -> None:
    assert served.server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "path", ["/", "//clips", "/wrong/clips", "/wrong/", "/../clips", "/clips", "/%2e%2e/"]
)
def test_without_the_token_nothing_is_served(served: Served, path: str) -> None:
    status, _, content = served.ask(path)
    assert status == 403 and b"the token is wrong" in content
    assert served.server.token.encode() not in content


def test_every_server_has_its_own_long_token(served: Served, dataset: Path, tmp_path: Path) -> None:
    (other,) = (s.server.token for s in serving(dataset, tmp_path / "other.parquet"))
    assert other != served.server.token and len(other) >= 32


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:1"])
def test_a_page_of_another_origin_is_refused(served: Served, origin: str) -> None:
    decision = {"clip": 0, "identities": ["100"], "verdict": "label"}
    assert served.decide(decision, Origin=origin) == (
        403,
        {"error": "requests of other pages are not served"},
    )
    assert served.ask("clips", Origin=origin)[0] == 403
    assert not served.out.exists()
    assert served.decide(decision, Origin=served.server.origins[0])[0] == 200


def test_a_name_that_another_site_points_here_is_refused(served: Served) -> None:
    status, _, content = served.ask("clips", Host="evil.example")
    assert status == 403 and b"this name is not served" in content
    assert served.ask("clips", Host=f"localhost:{served.server.server_port}")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "nothing", "clips/", "clips/0/", "clips/-1", "clips/0.0", "clips/0?x=1", "clips/0000000000",
        "pictures/0/0/front/", "pictures/0/0/..%2f..%2fetc%2fpasswd", "pictures/0/0/../../secret",
        "pictures/0/0/rear", "pictures/0/99/front", "pictures/0/0/right", "../../etc/passwd",
        "review_template.html", "decide",
    ],
)  # fmt: skip
def test_no_other_path_is_served(served: Served, path: str) -> None:
    status, _, content = served.ask(path)
    assert status == 404 and set(json.loads(content)) == {"error"}


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"])
def test_no_other_method_is_served(served: Served, method: str) -> None:
    assert served.ask("clips", method=method)[0] == 501


@pytest.mark.parametrize("path", ["clips", "", "decide/", "decide?x"])
def test_nothing_but_decisions_is_posted(served: Served, path: str) -> None:
    assert served.ask(path, method="POST", body=b"{}", Content_Type="application/json")[0] == 404


def test_answers_forbid_everything_that_the_page_does_not_need(served: Served) -> None:
    for path in ("", "clips", "pictures/0/0/birdseye"):
        status, headers, _ = served.ask(path)
        assert status == 200
        assert headers["Content-Security-Policy"].startswith("default-src 'none';")
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert (headers["Referrer-Policy"], headers["X-Content-Type-Options"]) == ("no-referrer", "nosniff")
        assert "Access-Control-Allow-Origin" not in headers


# ----------------------------------------------------------------------------------- what is said


def test_labels_come_with_provenance_and_where_they_are(served: Served) -> None:
    clip = served.json("clips/0")
    assert [track["identity"] for track in clip["tracks"]] == ["100", "101", "102"]
    track = clip["tracks"][1]
    assert (track["source"], track["tool"], track["bundle"]) == (
        "autolabel", "e2e_perception 0.1.0", "abcdef0123456789",
    )  # fmt: skip
    assert track["confidence"] == [0.625, 0.625] and len(track["frames"]) == FRAMES
    label = ReviewDataset.open(served.server.session._dataset.dataset.path).read(
        served.server.session.names[0]
    ).tracks[101][1]  # fmt: skip
    seen = track["frames"][1]
    assert seen["box"][:2] == pytest.approx([label.box.x, label.box.y], abs=1e-3)
    assert len(seen["future"]) == 8
    assert [(camera["name"], camera["frames"]) for camera in clip["cameras"]] == [
        ("front", [1] * FRAMES),
        ("left", [1] * FRAMES),
    ]
    assert served.json("clips")["progress"] == {"tracks": 6, "decided": 0, "accepted": 0, "rejected": 0}


def test_pictures_are_those_of_the_clip(served: Served) -> None:
    session = served.server.session
    _, headers, content = served.ask("pictures/1/2/front")
    assert headers["Content-Type"] == "image/png"
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(picture, session.clip(1).clip.inputs["images"][2, 0])
    above = cv2.imdecode(np.frombuffer(served.ask("pictures/1/2/birdseye")[2], np.uint8), cv2.IMREAD_COLOR)
    assert above.shape == (128, 192, 3)


def test_a_decision_is_written_and_told(served: Served) -> None:
    status, told = served.decide({"clip": 0, "identities": ["100", "101"], "verdict": "rejected"})
    assert status == 200 and told["open"] == 1
    assert told["decisions"] == {"100": ["rejected", "kim"], "101": ["rejected", "kim"]}
    assert {row.identity for row in read_layer(served.out).rows} == {100, 101}
    assert served.json("clips/0")["decisions"] == told["decisions"]
    assert served.decide({"clip": 0, "identities": ["100"], "verdict": None})[1]["open"] == 2


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "not understood"),
        (b"[]", 400, "not understood"),
        (b"{" * 1000, 400, "not understood"),
        ({"clip": 0, "identities": ["100"], "verdict": "maybe"}, 400, "not understood"),
        ({"clip": 0, "identities": [], "verdict": "label"}, 400, "not understood"),
        ({"clip": 0, "identities": [100], "verdict": "label"}, 400, "not understood"),
        ({"clip": 0, "identities": ["1e2"], "verdict": "label"}, 400, "whole numbers"),
        ({"clip": 0, "identities": ["100"], "verdict": "label", "out": "/etc/x"}, 400, "not understood"),
        ({"clip": 7, "identities": ["100"], "verdict": "label"}, 400, "no clip 7"),
        ({"clip": 0, "identities": ["9" * 19], "verdict": "label"}, 400, "has no track 999"),
        (b" " * (MAX_BODY_BYTES + 1), 413, "at most 65536 bytes"),
    ],
)
def test_what_is_no_decision_is_refused_and_nothing_is_written(
    served: Served, body: Any, status: int, message: str
) -> None:
    got, told = served.decide(body)
    assert got == status and message in told["error"]
    assert not served.out.exists()
    assert served.json("clips")["progress"]["decided"] == 0


def test_a_body_of_another_type_or_of_no_length_is_refused(served: Served) -> None:
    decision = {"clip": 0, "identities": ["100"], "verdict": "label"}
    assert served.decide(decision, Content_Type="text/plain")[0] == 415
    status, _, _ = served.ask(
        "decide", method="POST", Content_Type="application/json", Transfer_Encoding="chunked"
    )
    assert status == 411


def test_a_full_disk_is_said_and_the_decision_is_not_taken(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, rows: object, *, shards: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(review_session, "write_layer", full)
    status, told = served.decide({"clip": 0, "identities": ["100"], "verdict": "label"})
    assert (status, told) == (507, {"error": "not saved: No space left on device"})
    assert served.json("clips/0")["decisions"] == {}


@pytest.fixture
def nasty(tmp_path: Path) -> Iterator[Served]:
    path = review_set(
        tmp_path / "set",
        clips=1,
        scenario=NASTY,
        source=NASTY,
        tool=NASTY,
        bundle_digest=NASTY,
        reviewer=NASTY,
    )
    yield from serving(path, tmp_path / "layer.parquet")


def test_no_markup_of_the_data_set_goes_out(nasty: Served) -> None:
    _, _, content = nasty.ask("clips/0")
    assert b"<" not in content
    assert json.loads(content)["scenario"] == NASTY


def test_a_reviewers_name_is_text_in_the_page(dataset: Path, tmp_path: Path) -> None:
    opened = ReviewDataset.open(dataset)
    with (
        ReviewSession(opened, opened.names(), tmp_path / "l.parquet", NASTY) as session,
        ReviewServer(session) as server,
        running(server),
    ):
        page = Served(server, tmp_path).ask("")[2].decode()
    assert NASTY not in page and "a&lt;/script&gt;&lt;b onload=" in page


# ----------------------------------------------------------------------------------- in a browser

SAVED = 'document.documentElement.dataset.saving === "0"'
CHOSEN = "document.querySelector('tr[aria-selected=true]').dataset.identity"
FRAME = "Number(document.documentElement.dataset.frame)"
LOADED = "[...pictures.values()].every(image => image.complete && image.naturalWidth > 0) && (draw(), true)"
CLIP = "document.documentElement.dataset.clip"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as opened:
        yield opened


@needs_browser
def test_keys_review_a_clip_and_every_decision_is_in_the_layer(served: Served, browser: Browser) -> None:
    browser.open(served.server.url)
    assert browser.evaluate(CHOSEN) == "100"
    browser.press("j")
    browser.press("j")
    browser.press("k")
    assert browser.evaluate(CHOSEN) == "101"
    browser.press("r")
    browser.until(SAVED)
    assert {row.identity: row.verdict for row in read_layer(served.out).rows} == {101: "rejected"}
    assert browser.evaluate(CHOSEN) == "102", "the next track is chosen"
    browser.press("a")
    browser.until(SAVED)
    assert {row.identity: row.verdict for row in read_layer(served.out).rows} == {
        101: "rejected",
        102: "label",
    }
    assert "2 of 6 tracks: 1 accepted, 1 rejected" in browser.evaluate("document.body.innerText")
    browser.press("k")
    browser.press("u")
    browser.until(SAVED)
    assert {row.identity: row.verdict for row in read_layer(served.out).rows} == {102: "label"}
    browser.press("a", shift=True)
    browser.until(SAVED)
    assert {row.identity: row.verdict for row in read_layer(served.out).rows} == dict.fromkeys(
        (100, 101, 102), "label"
    )
    browser.press("n")
    browser.until(f'{CLIP} === "1"')
    assert browser.complaints == []


@needs_browser
def test_buttons_decide_and_the_page_opened_again_shows_it(served: Served, browser: Browser) -> None:
    browser.open(served.server.url)
    row = "document.querySelector('tr[data-identity=\"101\"]')"
    browser.click_on(f"{row}.querySelectorAll('button')[1]")
    browser.until(f"{SAVED} && {row}.innerText.includes('rejected by kim')")
    assert {r.verdict for r in read_layer(served.out).rows if r.identity == 101} == {"rejected"}
    browser.open("about:blank", "true")
    browser.open(served.server.url)
    assert browser.evaluate(f"{row}.innerText.includes('rejected by kim')")
    assert browser.evaluate(f"{row}.querySelectorAll('button')[1].getAttribute('aria-pressed')") == "true"
    assert browser.evaluate("document.getElementById('progress').textContent").startswith("1 of 6")


@needs_browser
def test_arrows_step_through_frames_and_clips_and_space_plays_to_the_end(
    served: Served, browser: Browser
) -> None:
    browser.open(served.server.url)
    seen = [browser.evaluate(FRAME)]
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        browser.press(key)
        seen.append(browser.evaluate(FRAME))
    assert seen == [0, 1, 2, 2, 1]
    browser.press("ArrowRight", shift=True)
    browser.until(f'{CLIP} === "1"')
    assert browser.evaluate(FRAME) == 0
    browser.press(" ")
    browser.until(f"{FRAME} === {FRAMES - 1} && document.getElementById('play').textContent === 'Play'")
    browser.press("ArrowUp")
    browser.until(f'{CLIP} === "0"')
    browser.press("ArrowUp")  # there is none before it
    assert browser.evaluate("location.hash") == "#0"


@needs_browser
def test_boxes_are_drawn_where_they_are_and_a_click_chooses_one(served: Served, browser: Browser) -> None:
    browser.open(served.server.url)
    browser.until(LOADED)
    box = served.server.session.clip(0).tracks[101][0].box
    place = browser.evaluate(
        f"(r => [r.x + ({box.x} + 24) * r.width / 96, r.y + (32 - {box.y}) * r.width / 96])"
        "(document.getElementById('bev').getBoundingClientRect())"
    )
    browser.click(*place)
    assert browser.evaluate(CHOSEN) == "101"
    # The colour of its class is on its outline, ahead of it and beside it, and nowhere far off.
    near = """(u, v, reach) => {
        const c = document.getElementById("bev"), k = devicePixelRatio * c.clientWidth / 96, n = reach * k;
        const d = c.getContext("2d").getImageData((u + 24) * k - n, (32 - v) * k - n, 2 * n, 2 * n).data;
        let found = 0;
        for (let i = 0; i < d.length; i += 4)
            if (d[i] === 0x5a && d[i + 1] === 0xa2 && d[i + 2] === 0xf2) found++;
        return found; }"""
    assert browser.evaluate(f"({near})({box.x + box.length / 2}, {box.y}, 0.6)") > 0
    assert browser.evaluate(f"({near})({box.x}, {box.y - box.width / 2}, 0.6)") > 0
    assert browser.evaluate(f"({near})({box.x}, {box.y - 15}, 2)") == 0
    cameras = browser.evaluate("[...document.querySelectorAll('#cameras canvas')].map(c => c.dataset.camera)")
    assert cameras == ["front", "left"]
    drawn = browser.evaluate(
        "[...document.querySelectorAll('#cameras canvas')].map(c => "
        "new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size)"
    )
    assert min(drawn) > 1000, "the pictures are noise, which has many colours"


@needs_browser
def test_futures_are_shown_when_they_are_asked_for(served: Served, browser: Browser) -> None:
    browser.open(served.server.url)
    browser.until(LOADED)
    picture = "document.getElementById('bev').toDataURL()"
    before = browser.evaluate(picture)
    browser.press("f")
    with_futures = browser.evaluate(picture)
    assert with_futures != before
    browser.press("f")
    assert browser.evaluate(picture) == before


@needs_browser
def test_what_could_not_be_saved_is_said_and_stays_open(
    served: Served, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser.open(served.server.url)

    def full(path: Path, rows: object, *, shards: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(review_session, "write_layer", full)
        browser.press("a")
        browser.until("!document.getElementById('error').hidden")
    assert "not saved: No space left" in browser.evaluate("document.getElementById('error').textContent")
    assert browser.evaluate("document.getElementById('progress').textContent").startswith("0 of 6")
    browser.press("a")
    browser.until(f"{SAVED} && document.getElementById('error').hidden")
    assert browser.evaluate("document.getElementById('progress').textContent").startswith("1 of 6")


@needs_browser
def test_nasty_text_is_text_in_the_browser(nasty: Served, browser: Browser) -> None:
    browser.open(nasty.server.url)
    assert NASTY in browser.evaluate("document.getElementById('title').textContent")
    assert NASTY in browser.evaluate("document.getElementById('tracks').textContent")
    assert browser.evaluate("document.querySelectorAll('b[onload]').length") == 0
    assert browser.complaints == []
