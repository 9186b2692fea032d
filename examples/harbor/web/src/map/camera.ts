// Where the map looks: a centre, a zoom, the size of the view and the part of it that panels cover. Pure but for the flight's
// clock, which comes in as a number. The centre never leaves the box of the data, so that nobody gets lost at sea.

import { type Box, type Point, project } from "./projection";

const ZOOM_MAX = 17.5;
const FLIGHT_MS = 650;

export interface Insets {
  top: number;
  right: number;
  bottom: number;
  left: number;
}

interface Flight {
  from: { centre: Point; zoom: number };
  to: { centre: Point; zoom: number };
  startMs: number;
}

export class Camera {
  centre: Point;
  zoom = 11;
  width = 1;
  height = 1;
  insets: Insets = { top: 0, right: 0, bottom: 0, left: 0 };
  private flight: Flight | null = null;
  private readonly northWest: Point;
  private readonly southEast: Point;

  constructor(box: Box) {
    this.northWest = project(box.north, box.west);
    this.southEast = project(box.south, box.east);
    this.centre = { x: (this.northWest.x + this.southEast.x) / 2, y: (this.northWest.y + this.southEast.y) / 2 };
  }

  /** Pixels per unit of the square. */
  get scale(): number {
    return 256 * 2 ** this.zoom;
  }

  /** The pixel where the centre is shown: the middle of what panels leave free. */
  get focus(): Point {
    return {
      x: (this.insets.left + this.width - this.insets.right) / 2,
      y: (this.insets.top + this.height - this.insets.bottom) / 2,
    };
  }

  get flying(): boolean {
    return this.flight !== null;
  }

  toScreen(point: Point): Point {
    const focus = this.focus;
    return { x: focus.x + (point.x - this.centre.x) * this.scale, y: focus.y + (point.y - this.centre.y) * this.scale };
  }

  toWorld(pixel: Point): Point {
    const focus = this.focus;
    return { x: this.centre.x + (pixel.x - focus.x) / this.scale, y: this.centre.y + (pixel.y - focus.y) / this.scale };
  }

  /** What covers the map at its right comes and goes while the map stays where it is. */
  resize(width: number, height: number, insets: Insets): void {
    this.centre = { x: this.centre.x - (insets.right - this.insets.right) / 2 / this.scale, y: this.centre.y };
    this.width = width;
    this.height = height;
    this.insets = insets;
    this.clamp();
  }

  pan(dx: number, dy: number): void {
    this.flight = null;
    this.centre = { x: this.centre.x - dx / this.scale, y: this.centre.y - dy / this.scale };
    this.clamp();
  }

  zoomAround(pixel: Point, by: number): void {
    this.flight = null;
    const fixed = this.toWorld(pixel);
    this.zoom = Math.min(ZOOM_MAX, Math.max(this.zoomMin(), this.zoom + by));
    const moved = this.toWorld(pixel);
    this.centre = { x: this.centre.x + fixed.x - moved.x, y: this.centre.y + fixed.y - moved.y };
    this.clamp();
  }

  /** The zoom at which the box fits into the free part of the view. */
  zoomToFit(box: Box): { centre: Point; zoom: number } {
    const a = project(box.north, box.west);
    const b = project(box.south, box.east);
    const freeWidth = Math.max(80, this.width - this.insets.left - this.insets.right);
    const freeHeight = Math.max(80, this.height - this.insets.top - this.insets.bottom);
    const zoom = Math.log2(Math.min(freeWidth / (b.x - a.x), freeHeight / (b.y - a.y)) / 256);
    return { centre: { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 }, zoom: Math.max(zoom, this.zoomMin()) };
  }

  flyTo(target: { centre: Point; zoom: number }, nowMs: number): void {
    this.flight = { from: { centre: this.centre, zoom: this.zoom }, to: target, startMs: nowMs };
  }

  jumpTo(target: { centre: Point; zoom: number }): void {
    this.flight = null;
    this.centre = target.centre;
    this.zoom = target.zoom;
    this.clamp();
  }

  /** Follows a moving point without a flight; during a flight its end moves along. */
  track(point: Point): void {
    if (this.flight !== null) this.flight.to.centre = point;
    else this.centre = point;
    this.clamp();
  }

  /** Advances a flight; true while the view changes. */
  step(nowMs: number): boolean {
    const flight = this.flight;
    if (flight === null) return false;
    const share = Math.min(1, (nowMs - flight.startMs) / FLIGHT_MS);
    const eased = 1 - (1 - share) ** 3;
    this.zoom = flight.from.zoom + (flight.to.zoom - flight.from.zoom) * eased;
    this.centre = {
      x: flight.from.centre.x + (flight.to.centre.x - flight.from.centre.x) * eased,
      y: flight.from.centre.y + (flight.to.centre.y - flight.from.centre.y) * eased,
    };
    if (share === 1) this.flight = null;
    this.clamp();
    return true;
  }

  /** The land ends at the box: the whole view must lie inside it. */
  private zoomMin(): number {
    const wide = this.width / (this.southEast.x - this.northWest.x);
    const high = this.height / (this.southEast.y - this.northWest.y);
    return Math.log2(Math.max(wide, high) / 256);
  }

  private clamp(): void {
    this.zoom = Math.min(ZOOM_MAX, Math.max(this.zoomMin(), this.zoom));
    const focus = this.focus;
    const left = this.northWest.x + focus.x / this.scale;
    const right = this.southEast.x - (this.width - focus.x) / this.scale;
    const top = this.northWest.y + focus.y / this.scale;
    const bottom = this.southEast.y - (this.height - focus.y) / this.scale;
    this.centre = { x: between(this.centre.x, left, right), y: between(this.centre.y, top, bottom) };
  }
}

function between(value: number, low: number, high: number): number {
  return low > high ? (low + high) / 2 : Math.min(high, Math.max(low, value));
}
