// The panel with list and card. On a wide window it floats at the left; on a narrow one it is a sheet at the bottom that can be
// pulled to three heights by its grip (or by Enter on the grip).

import type { Insets } from "../map/camera";
import { byId } from "./dom";

type Snap = "peek" | "half" | "full";
const ORDER: readonly Snap[] = ["peek", "half", "full"];
const PULL_PX = 36;

export class Panel {
  private readonly panel = byId("panel");
  private readonly grip = byId("grip");
  private readonly narrow = matchMedia("(max-width: 760px) and (min-height: 481px), (max-width: 520px)");
  private fromY: number | null = null;

  constructor(private readonly moved: () => void) {
    this.grip.addEventListener("click", () => {
      if (this.fromY === null) this.snap(this.current === "full" ? "peek" : (ORDER[ORDER.indexOf(this.current) + 1] as Snap));
    });
    this.grip.addEventListener("pointerdown", (event) => {
      this.fromY = event.clientY;
      this.grip.setPointerCapture(event.pointerId);
    });
    this.grip.addEventListener("pointerup", (event) => this.pulled(event));
    this.panel.addEventListener("transitionend", (event) => {
      if (event.target === this.panel) moved();
    });
    new ResizeObserver(() => moved()).observe(byId("map"));
    this.narrow.addEventListener("change", () => moved());
  }

  snap(snap: Snap): void {
    this.panel.dataset["snap"] = snap;
    this.moved();
  }

  /** The card needs room on a phone, but the map should stay in sight. */
  makeRoom(): void {
    if (this.narrow.matches) this.snap("half");
  }

  /** An area is drawn on the map, so the map needs the room. */
  makeRoomForMap(): void {
    if (this.narrow.matches) this.snap("peek");
  }

  showDetail(shown: boolean): void {
    this.panel.classList.toggle("with-detail", shown);
  }

  /** What the panel covers of the map. */
  insets(): Insets {
    const box = this.panel.getBoundingClientRect();
    if (!this.narrow.matches) return { top: 0, right: 0, bottom: 0, left: box.right };
    const share = { peek: 0.16, half: 0.46, full: 0.46 }[this.current];
    return { top: 56, right: 0, bottom: innerHeight * share, left: 0 };
  }

  private get current(): Snap {
    return (this.panel.dataset["snap"] ?? "half") as Snap;
  }

  private pulled(event: PointerEvent): void {
    const travel = event.clientY - (this.fromY ?? event.clientY);
    if (Math.abs(travel) < PULL_PX) {
      this.fromY = null; // a tap: the click does it
      return;
    }
    const step = travel < 0 ? 1 : -1;
    this.snap(ORDER[Math.min(2, Math.max(0, ORDER.indexOf(this.current) + step))] as Snap);
    setTimeout(() => (this.fromY = null)); // after the click that follows
  }
}
