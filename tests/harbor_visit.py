"""A visit to Harbor's page in a real Chromium, for its tests."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import BrowserContext, Page

WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
SMALL_PHONE = {"width": 320, "height": 568}
SIDEWAYS = {"width": 844, "height": 390}
SMALL_SIDEWAYS = {"width": 667, "height": 375}

# Notes what is drawn on the layer of the vessels, frame by frame, at the canvas itself: each marker with its place and
# turn, each piece of a trail (two points, in the map's own coordinates). Of what is drawn nothing is changed.
RECORDER = """
window.drawn = [];
const canvas = CanvasRenderingContext2D.prototype;
const spy = (name, note) => {
  const real = canvas[name];
  canvas[name] = function (...given) {
    if (this.canvas.classList.contains('map-live')) note(window.drawn.at(-1) ?? { markers: [], trail: [] }, given);
    return real.apply(this, given);
  };
};
let path = [], inMarker = false;
spy('clearRect', () => {
  window.drawn.push({ ms: performance.now(), markers: [], trail: [] });
  if (window.drawn.length > 2000) window.drawn.shift();
});
spy('translate', (frame, [x, y]) => { inMarker = true; frame.markers.push({ x, y, deg: null }); });
spy('rotate', (frame, [radians]) => { frame.markers.at(-1).deg = radians * 180 / Math.PI; });
spy('restore', () => { inMarker = false; });
spy('beginPath', () => { path = []; });
spy('moveTo', (frame, [x, y]) => path.push({ x, y }));
spy('lineTo', (frame, [x, y]) => path.push({ x, y }));
spy('stroke', (frame) => { if (!inMarker && path.length === 2) frame.trail.push(path); });
"""


class Visit:
    """A browser window on Harbor. What the page complains about is collected."""

    def __init__(self, context: BrowserContext, url: str, *, session: str | None = None) -> None:
        self.complaints: list[str] = []
        if session is not None:
            context.add_init_script(f"sessionStorage.setItem('harbor-session', '{session}')")
            context.add_init_script(RECORDER)
        self.page: Page = context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))
        self.page.on("console", self._console)
        self.page.goto(url)

    def _console(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.type}: {message.text}")

    def rows(self) -> Any:
        return self.page.locator("#list .row")

    def loaded(self) -> None:
        self.rows().first.wait_for()

    def state(self, state: str) -> None:
        self.page.locator(f'#connection[data-state="{state}"]').wait_for()

    def serving_pid(self) -> int:
        self.page.locator("#connection[data-pid]").wait_for()
        return int(self.page.locator("#connection").get_attribute("data-pid") or 0)

    def picture(self) -> str:
        """What the layer of the vessels shows now."""
        return str(self.page.evaluate("document.querySelector('.map-live').toDataURL()"))

    def frame(self, fact: str) -> Any:
        """The first drawn frame of which ``fact`` (JavaScript, of ``frame`` and its only ``marker``) is true."""
        script = f"""() => {{
            const frame = window.drawn.at(-1), marker = frame?.markers[0];
            return frame?.markers.length === 1 && ({fact}) ? frame : null;
        }}"""
        return self.page.wait_for_function(script).json_value()

    def frames(self, since_ms: float, until_ms: float) -> list[Any]:
        """What was drawn in between, by the page's clock."""
        drawn: list[Any] = self.page.evaluate("window.drawn")
        return [frame for frame in drawn if since_ms <= frame["ms"] <= until_ms]

    def changes(self, times: int) -> None:
        """Waits until the vessels have moved that often."""
        self.page.evaluate(
            """times => new Promise((done, failed) => {
                 const canvas = document.querySelector('.map-live');
                 let last = canvas.toDataURL(), left = times;
                 const deadline = performance.now() + 8000;
                 const look = () => {
                   const now = canvas.toDataURL();
                   if (now !== last) { last = now; left -= 1; }
                   if (left === 0) done();
                   else if (performance.now() > deadline) failed(new Error(`${left} changes are missing`));
                   else setTimeout(look, 60);
                 };
                 look();
               })""",
            times,
        )
