// Drawing an area: corners by click, tap or the space bar, closed by a double click, Enter, the first corner or the button.
// What happens is said in the bar and, for those who cannot see the map, in a live region.

import type { HarborMap } from "../map/map";
import type { Point } from "../map/projection";
import { type Added, Sketch } from "../map/sketch";
import { CORNERS_MAX } from "../shape";
import { byId, setText } from "./dom";

const WORDS: Record<Exclude<Added, "added" | "same">, string> = {
  crosses: "That side would cross the border. Choose another corner.",
  full: `An area has at most ${CORNERS_MAX} corners.`,
};

export interface DrawingEvents {
  began(): void;
  /** The ring is closed: it wants a name. */
  closed(sketch: Sketch): void;
  ended(): void;
}

export class Drawing {
  private readonly bar = byId("draw-bar");
  private readonly hint = byId("draw-hint");
  private readonly undo = byId<HTMLButtonElement>("draw-undo");
  private readonly finish = byId<HTMLButtonElement>("draw-finish");
  private readonly element = byId("map");
  private from: HTMLElement | null = null;

  constructor(
    private readonly map: HarborMap,
    private readonly events: DrawingEvents,
  ) {
    this.undo.addEventListener("click", () => this.back());
    this.finish.addEventListener("click", () => this.close());
    byId("draw-cancel").addEventListener("click", () => this.end());
  }

  get active(): boolean {
    return this.map.sketch !== null;
  }

  /** `keyboard`: show at once where the space bar would set a corner. */
  begin(keyboard: boolean): void {
    if (this.active) return;
    this.from = document.activeElement as HTMLElement | null;
    this.map.sketch = new Sketch();
    if (keyboard) this.map.sketch.tip = this.map.middle;
    this.bar.hidden = false;
    document.body.classList.add("drawing");
    this.events.began();
    this.element.focus({ preventScroll: true });
    this.show(keyboard ? "Arrow keys move the map under the cross, Space sets a corner." : null);
  }

  /** Gives up, or is done. */
  end(): void {
    if (!this.active) return;
    this.map.sketch = null;
    this.map.touchAreas();
    this.bar.hidden = true;
    document.body.classList.remove("drawing");
    this.events.ended();
    if (this.from?.isConnected && this.from.checkVisibility()) this.from.focus({ preventScroll: true });
  }

  tap(at: Point, reach: number): void {
    const { sketch } = this.map;
    if (sketch === null) return;
    if (sketch.closesAt(at, reach)) this.close();
    else this.added(sketch.add(at, reach));
  }

  close(): void {
    const { sketch } = this.map;
    if (sketch === null) return;
    if (sketch.hindrance === "few") this.show("An area needs at least three corners.");
    else if (sketch.hindrance === "crosses") this.show("The last side would cross the border. Add a corner, or undo one.");
    else this.events.closed(sketch);
  }

  key(key: string): boolean {
    const { sketch } = this.map;
    if (sketch === null) return false;
    if (key === " ") this.added(sketch.add(this.map.middle, 1e-9));
    else if (key === "Enter") this.close();
    else if (key === "Backspace" || key === "Delete") this.back();
    else if (key === "Escape") this.end();
    else if (key.startsWith("Arrow")) {
      requestAnimationFrame(() => this.follow()); // after the map has moved
      return false;
    } else return false;
    if (this.active) this.follow();
    return true;
  }

  private follow(): void {
    if (this.map.sketch === null) return;
    this.map.sketch.tip = this.map.middle;
    this.map.touchAreas();
  }

  private back(): void {
    this.map.sketch?.undo();
    this.show(null);
  }

  private added(result: Added): void {
    if (result !== "same") this.show(result === "added" ? null : WORDS[result]);
  }

  /** The bar after a change; `problem`: what is to be said instead of the usual words. */
  private show(problem: string | null): void {
    const count = this.map.sketch?.corners.length ?? 0;
    this.undo.disabled = count === 0;
    this.finish.disabled = this.map.sketch?.hindrance !== null;
    this.bar.classList.toggle("refuses", problem !== null && count > 0);
    setText(this.hint, problem ?? usualWords(count));
    this.map.touchAreas();
  }
}

function usualWords(count: number): string {
  if (count === 0) return "Set the first corner of the area on the map.";
  const corners = count === 1 ? "1 corner" : `${count} corners`;
  if (count < 3) return `${corners}. Set ${count === 1 ? "two more" : "one more"} at least.`;
  const closing = matchMedia("(pointer: coarse)").matches ? "Tap the first one to close the area." : "Double click or Enter closes the area.";
  return `${corners}. ${closing}`;
}
