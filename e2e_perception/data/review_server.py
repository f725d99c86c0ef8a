"""The review page, served to this machine alone.

    /TOKEN/                       the page, `review_template.html`
    /TOKEN/clips                  list of clips and progress
    /TOKEN/clips/N                labels of a clip
    /TOKEN/pictures/N/FRAME/VIEW  PNG: `birdseye`, or a camera
    /TOKEN/decide                 POST `DecideRequest`

Other programs of this machine, and pages of other sites in the same browser, can reach the port: the token
keeps the former out, and the checks of Host and Origin the latter. No path names a file.
"""

from __future__ import annotations

import html
import json
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from e2e_perception.core.errors import InputError
from e2e_perception.data.review_clips import ReviewClip, ReviewLabel
from e2e_perception.data.review_cvat import BIRDSEYE
from e2e_perception.data.review_pictures import BirdsEye, camera_picture, png, projected_edges_E4
from e2e_perception.data.review_session import Decision, ReviewSession

HOST = "127.0.0.1"
TEMPLATE = Path(__file__).with_name("review_template.html")
MAX_BODY_BYTES = 1 << 16
PATIENCE_S = 30.0  # for a request that does not go on
_CLIP = re.compile(r"clips/(\d{1,6})")
_PICTURE = re.compile(r"pictures/(\d{1,6})/(\d{1,4})/([A-Za-z0-9_]{1,64})")
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


class DecideRequest(BaseModel):
    """Body of a decision; identities are text because JavaScript's numbers end at 2^53."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    clip: int = Field(ge=0)
    identities: list[str] = Field(min_length=1, max_length=1000)
    verdict: Literal["label", "rejected"] | None


class _Refused(Exception):
    """A request that is not served."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class ReviewServer(ThreadingHTTPServer):
    """Serves a session.

    Attributes:
        session: What is reviewed.
        token: First part of every path.
    """

    daemon_threads = True

    def __init__(self, session: ReviewSession, port: int = 0) -> None:
        """Listen.

        Args:
            session: What is reviewed.
            port: 0: any that is free.
        """
        self.session = session
        self.token = secrets.token_urlsafe(24)
        super().__init__((HOST, port), _Handler)

    @property
    def origins(self) -> tuple[str, str]:
        """Where the page may have come from."""
        return f"http://{HOST}:{self.server_port}", f"http://localhost:{self.server_port}"

    @property
    def url(self) -> str:
        """Of the page."""
        return f"{self.origins[0]}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: ReviewServer
    timeout = PATIENCE_S
    server_version = "e2e-perception"
    sys_version = ""

    def do_GET(self) -> None:
        """The page, lists, clips and pictures."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Decisions."""
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not worth a line; their paths hold the token."""

    def _answer(self, serve: Callable[[str], tuple[str, bytes]]) -> None:
        try:
            kind, content = serve(self._allowed_path())
            status = HTTPStatus.OK
        except _Refused as refused:
            status, kind, content = refused.status, "application/json", _json({"error": str(refused)})
        except InputError as error:
            status, kind, content = HTTPStatus.BAD_REQUEST, "application/json", _json({"error": str(error)})
        except OSError as error:
            why = {"error": f"not saved: {error.strerror or error}"}
            status, kind, content = HTTPStatus.INSUFFICIENT_STORAGE, "application/json", _json(why)
        try:
            self.send_response(status)
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except ConnectionError:
            self.close_connection = True  # the page was closed; nobody waits for the answer

    def _allowed_path(self) -> str:
        """The path after the token.

        Raises:
            _Refused: If the request is not one of the page.
        """
        allowed = self.server.origins
        if f"http://{self.headers.get('Host', '')}" not in allowed:
            raise _Refused(HTTPStatus.FORBIDDEN, "this name is not served")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in allowed:
            raise _Refused(HTTPStatus.FORBIDDEN, "requests of other pages are not served")
        _, _, rest = self.path.partition("/")
        token, slash, path = rest.partition("/")
        if not (slash and secrets.compare_digest(token.encode(), self.server.token.encode())):
            raise _Refused(HTTPStatus.FORBIDDEN, "the token is wrong; open the address that was printed")
        return path

    def _get(self, path: str) -> tuple[str, bytes]:
        session = self.server.session
        if path == "":
            page = TEMPLATE.read_text(encoding="utf-8").replace("%TITLE%", html.escape(session.reviewer))
            return "text/html; charset=utf-8", page.encode()
        if path == "clips":
            return "application/json", _json(_list(session))
        found = _CLIP.fullmatch(path)
        if found:
            return "application/json", _json(_clip(session, int(found[1])))
        found = _PICTURE.fullmatch(path)
        if found:
            return "image/png", _picture(session, int(found[1]), int(found[2]), found[3])
        raise _Refused(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _post(self, path: str) -> tuple[str, bytes]:
        if path != "decide":
            raise _Refused(HTTPStatus.NOT_FOUND, "there is nothing here")
        if self.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,9}", length):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length")
        if int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {MAX_BODY_BYTES} bytes")
        try:
            asked = DecideRequest.model_validate_json(self.rfile.read(int(length)))
        except ValidationError as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"not understood: {error.errors()[0]['msg']}") from error
        session = self.server.session
        if not all(re.fullmatch(r"\d{1,19}", word) for word in asked.identities):
            raise _Refused(HTTPStatus.BAD_REQUEST, "identities are whole numbers")
        session.decide(asked.clip, [int(word) for word in asked.identities], asked.verdict)
        return "application/json", _json(
            {
                "progress": session.progress(),
                "open": session.open_tracks(asked.clip),
                "decisions": _decisions(session.decisions(asked.clip)),
            }
        )


# ----------------------------------------------------------------------------------- what is served


def _json(document: Any) -> bytes:
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    # Scenarios and classes may hold anything; no `<` goes out, whatever a browser takes the answer for.
    return text.replace("<", "\\u003c").encode()


def _list(session: ReviewSession) -> dict[str, Any]:
    return {
        "reviewer": session.reviewer,
        "clips": [
            {"name": str(name), "open": session.open_tracks(number)}
            for number, name in enumerate(session.names)
        ],
        "progress": session.progress(),
    }


def _decisions(decisions: dict[int, Decision]) -> dict[str, list[str]]:
    return {str(identity): [one.verdict, one.reviewer] for identity, one in decisions.items()}


def _clip(session: ReviewSession, number: int) -> dict[str, Any]:
    review = session.clip(number)
    grid, network = review.network.grid, review.network
    valid = review.clip.inputs["camera_valid"].astype(np.float32) > 0.0
    return {
        "clip": number,
        "shard": review.shard,
        "clip_id": review.clip_id,
        "scenario": review.clip.scenario,
        "labelled": review.clip.labels_valid,
        "stamps": [str(stamp) for stamp in review.clip.stamps_ns_T.tolist()],
        "grid": [grid.x_min, grid.x_max, grid.y_min, grid.y_max],
        "cameras": [
            {"name": camera, "frames": valid[:, slot].astype(int).tolist()}
            for slot, camera in enumerate(network.cameras)
            if valid[:, slot].any()
        ],
        "image": [network.image_width, network.image_height],
        "tracks": [_track(review, identity, labels) for identity, labels in review.tracks.items()],
        "decisions": _decisions(session.decisions(number)),
    }


def _track(review: ReviewClip, identity: int, labels: list[ReviewLabel]) -> dict[str, Any]:
    confidences = [label.confidence for label in labels]
    return {
        "identity": str(identity),
        "class": " / ".join(_different(label.class_name for label in labels)),
        "source": " / ".join(_different(label.source for label in labels)),
        "tool": " / ".join(_different(label.tool or "" for label in labels)),
        "bundle": " / ".join(_different(label.bundle_digest or "" for label in labels)),
        "reviewer": " / ".join(_different(label.reviewer or "" for label in labels)),
        "confidence": [round(min(confidences), 3), round(max(confidences), 3)],
        "frames": [_seen(review, label) for label in labels],
    }


def _different(words: Iterable[str]) -> list[str]:
    return [word for word in Counter(words) if word]


def _seen(review: ReviewClip, label: ReviewLabel) -> dict[str, Any]:
    box, frame, clip = label.box, label.frame, review.clip
    valid = clip.futures_valid_TBS[frame, label.slot]
    future = clip.futures_TBS2[frame, label.slot][valid].astype(np.float64)
    edges = {}
    for slot, camera in enumerate(review.network.cameras):
        if float(clip.inputs["camera_valid"][frame, slot]) > 0.0:
            found = projected_edges_E4(review, frame, camera, box)
            if len(found):
                edges[camera] = np.clip(found, -1e5, 1e5).round(1).tolist()
    return {
        "t": frame,
        "box": [round(value, 3) for value in (box.x, box.y, box.length, box.width, box.yaw)],
        "speed": round(float(np.hypot(box.vx, box.vy)), 2),
        "future": np.nan_to_num(future).round(2).tolist(),
        "edges": edges,
    }


def _picture(session: ReviewSession, number: int, frame: int, view: str) -> bytes:
    review = session.clip(number)
    if frame >= len(review.clip):
        raise _Refused(HTTPStatus.NOT_FOUND, "there is no such frame")
    if view == BIRDSEYE:
        # A pixel a cell: the page enlarges it.
        return png(BirdsEye.of(review.network.grid).draw(review, frame, cell_px=1))
    picture = camera_picture(review, frame, view) if view in review.network.cameras else None
    if picture is None:
        raise _Refused(HTTPStatus.NOT_FOUND, "there is no such picture")
    return png(picture)
