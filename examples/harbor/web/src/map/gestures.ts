// Pointer, wheel and keys on the map, turned into camera moves. One finger or the mouse pans, two fingers pinch, a short tap
// without a move picks.

import type { Camera } from "./camera";
import type { Point } from "./projection";

const TAP_PX = 6;
const KEY_PAN_PX = 90;

export interface GestureEvents {
  changed(): void;
  panned(): void;
  picked(pixel: Point, touch: boolean): void;
  /** False: nobody wanted it, the map zooms in. */
  doubled(): boolean;
  /** Keys that only the map's user knows; true if it took the key. */
  keyed(key: string): boolean;
  hovered(pixel: Point | null): void;
  home(): void;
}

export class Gestures {
  private readonly pointers = new Map<number, Point>();
  private travelPx = 0;
  private pinched = false;
  /** How the tap was made whose click is about to come. */
  private tap: "touch" | "mouse" | null = null;

  constructor(
    private readonly element: HTMLElement,
    private readonly camera: Camera,
    private readonly events: GestureEvents,
  ) {
    element.addEventListener("pointerdown", (event) => this.down(event));
    element.addEventListener("pointermove", (event) => this.move(event));
    element.addEventListener("pointerup", (event) => this.up(event, true));
    element.addEventListener("pointercancel", (event) => this.up(event, false));
    // The click picks, not the pointer that goes up: what a pick opens must not get the click that follows it.
    element.addEventListener("click", (event) => {
      if (this.tap !== null) events.picked(this.pixel(event), this.tap === "touch");
      this.tap = null;
    });
    element.addEventListener("pointerleave", () => events.hovered(null));
    element.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    element.addEventListener("dblclick", (event) => {
      if (!events.doubled()) this.zoom(this.pixel(event), 1);
    });
    element.addEventListener("keydown", (event) => this.key(event));
  }

  zoom(pixel: Point, by: number): void {
    this.camera.zoomAround(pixel, by);
    this.events.changed();
  }

  private pixel(event: MouseEvent): Point {
    const box = this.element.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  private down(event: PointerEvent): void {
    if (event.button !== 0) return;
    this.element.setPointerCapture(event.pointerId);
    if (this.pointers.size === 0) [this.travelPx, this.pinched] = [0, false];
    this.pointers.set(event.pointerId, this.pixel(event));
    if (this.pointers.size > 1) this.pinched = true;
  }

  private move(event: PointerEvent): void {
    const before = this.pointers.get(event.pointerId);
    const now = this.pixel(event);
    if (before === undefined) {
      if (event.pointerType !== "touch") this.events.hovered(now);
      return;
    }
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    this.pointers.set(event.pointerId, now);
    if (other === undefined) {
      this.travelPx += Math.hypot(now.x - before.x, now.y - before.y);
      if (this.travelPx < TAP_PX) return;
      this.camera.pan(now.x - before.x, now.y - before.y);
      this.events.panned();
    } else {
      this.pinch(before, now, other);
    }
    this.events.changed();
  }

  private pinch(before: Point, now: Point, other: Point): void {
    const spreadBefore = Math.max(1, Math.hypot(before.x - other.x, before.y - other.y));
    const spreadNow = Math.max(1, Math.hypot(now.x - other.x, now.y - other.y));
    this.camera.pan((now.x - before.x) / 2, (now.y - before.y) / 2);
    this.camera.zoomAround({ x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 }, Math.log2(spreadNow / spreadBefore));
  }

  private up(event: PointerEvent, picks: boolean): void {
    if (!this.pointers.delete(event.pointerId)) return;
    const tapped = picks && !this.pinched && this.travelPx < TAP_PX;
    this.tap = !tapped ? null : event.pointerType === "touch" ? "touch" : "mouse";
  }

  private wheel(event: WheelEvent): void {
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    const speed = event.ctrlKey ? 0.01 : 0.0022; // a pinch on a trackpad arrives as ctrl + wheel
    this.zoom(this.pixel(event), Math.max(-1, Math.min(1, -event.deltaY * lines * speed)));
  }

  private key(event: KeyboardEvent): void {
    if (this.events.keyed(event.key)) {
      event.preventDefault();
      event.stopPropagation();
      return;
    }
    const pan = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (pan !== undefined) {
      this.camera.pan((pan[0] as number) * KEY_PAN_PX, (pan[1] as number) * KEY_PAN_PX);
      this.events.panned();
      this.events.changed();
    } else if (event.key === "+" || event.key === "=") this.zoom(this.camera.focus, 0.5);
    else if (event.key === "-") this.zoom(this.camera.focus, -0.5);
    else if (event.key === "0") this.events.home();
    else return;
    event.preventDefault();
  }
}
