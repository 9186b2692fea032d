// The areas below the vessels: a tint, a border, the name on a label above; and the one that is being drawn.

import type { Area } from "../areas";
import type { Camera } from "./camera";
import type { Point } from "./projection";
import type { Sketch } from "./sketch";

const LABEL_SIZE_PX_MIN = 22;
const LABEL_HEIGHT = 20;
const CORNER_PX = 4.5;

export interface AreaColours {
  areas: Record<string, string>;
  ink: string;
  labelBack: string;
  bad: string;
}

interface Label {
  area: Area;
  left: number;
  top: number;
  width: number;
}

export class AreaLayer {
  private labels: Label[] = [];

  /** Draws everything; true while something glows and must be drawn again. */
  draw(ctx: CanvasRenderingContext2D, camera: Camera, areas: readonly Area[], sketch: Sketch | null, colours: AreaColours, ratio: number, nowMs: number): boolean {
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, camera.width, camera.height);
    ctx.lineJoin = "round";
    this.labels = [];
    const shown = areas.map((area) => ({ area, ring: area.corners.map((corner) => camera.toScreen(corner)) }));
    for (const { area, ring } of shown) drawArea(ctx, ring, colour(colours, area.colour), area.glowsUntilMs > nowMs);
    if (sketch !== null) drawSketch(ctx, camera, sketch, colours);
    for (const { area, ring } of shown) this.drawLabel(ctx, camera, area, ring, colours);
    return areas.some((area) => area.glowsUntilMs > nowMs);
  }

  /** The area whose label is below a pixel. */
  find(pixel: Point): Area | null {
    const hit = this.labels.find(
      ({ left, top, width }) => pixel.x >= left && pixel.x <= left + width && pixel.y >= top && pixel.y <= top + LABEL_HEIGHT,
    );
    return hit?.area ?? null;
  }

  private drawLabel(ctx: CanvasRenderingContext2D, camera: Camera, area: Area, ring: readonly Point[], colours: AreaColours): void {
    const xs = ring.map(({ x }) => x);
    const ys = ring.map(({ y }) => y);
    const [west, east, north, south] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    if (Math.max(east - west, south - north) < LABEL_SIZE_PX_MIN) return;
    if (east < 0 || west > camera.width || south < 0 || north > camera.height) return;
    ctx.font = '600 11px "Inter Variable", sans-serif';
    ctx.textAlign = "left";
    ctx.textBaseline = "middle";
    const width = ctx.measureText(area.name).width + 25;
    const left = Math.max(4, Math.min((west + east - width) / 2, camera.width - width - 4));
    const top = Math.max(north - LABEL_HEIGHT - 3, Math.min(4, south - LABEL_HEIGHT - 4)); // kept in sight while the area is
    const box: Label = { area, left, top, width };
    if (this.labels.some((other) => overlaps(box, other))) return;
    this.labels.push(box);
    ctx.fillStyle = colours.labelBack;
    ctx.beginPath();
    ctx.roundRect(left, top, width, LABEL_HEIGHT, 6);
    ctx.fill();
    ctx.fillStyle = colour(colours, area.colour);
    ctx.beginPath();
    ctx.roundRect(left + 6, top + 6, 8, 8, 2.5);
    ctx.fill();
    ctx.fillStyle = colours.ink;
    ctx.fillText(area.name, left + 19, top + LABEL_HEIGHT / 2 + 0.5);
  }
}

function drawArea(ctx: CanvasRenderingContext2D, ring: readonly Point[], paint: string, glows: boolean): void {
  trace(ctx, ring);
  ctx.closePath();
  ctx.fillStyle = paint;
  ctx.globalAlpha = glows ? 0.3 : 0.13;
  ctx.fill();
  ctx.strokeStyle = paint;
  ctx.globalAlpha = glows ? 0.28 : 0;
  ctx.lineWidth = 8;
  ctx.stroke();
  ctx.globalAlpha = 0.9;
  ctx.lineWidth = glows ? 2.6 : 1.6;
  ctx.stroke();
  ctx.globalAlpha = 1;
}

function drawSketch(ctx: CanvasRenderingContext2D, camera: Camera, sketch: Sketch, colours: AreaColours): void {
  const ring = sketch.corners.map((corner) => camera.toScreen(corner));
  const paint = colour(colours, sketch.colour);
  ctx.fillStyle = paint;
  ctx.strokeStyle = paint;
  if (ring.length > 0) {
    trace(ctx, ring);
    ctx.globalAlpha = 0.2;
    ctx.fill();
    ctx.globalAlpha = 1;
    ctx.lineWidth = 2.2;
    ctx.stroke();
    drawLoose(ctx, ring, sketch.tip === null ? null : camera.toScreen(sketch.tip), sketch.tipCrosses ? colours.bad : paint);
  }
  ring.forEach((corner, index) => drawCorner(ctx, corner, paint, colours, index === 0 && ring.length >= 3));
  if (sketch.tip !== null) drawCross(ctx, camera.toScreen(sketch.tip), sketch.tipCrosses ? colours.bad : colours.ink);
}

/** The sides that are not there yet: to the hand, and back to the beginning. */
function drawLoose(ctx: CanvasRenderingContext2D, ring: readonly Point[], tip: Point | null, paint: string): void {
  ctx.setLineDash([6, 5]);
  ctx.strokeStyle = paint;
  ctx.lineWidth = 1.8;
  trace(ctx, [ring.at(-1) as Point, ...(tip === null ? [] : [tip]), ring[0] as Point]);
  ctx.stroke();
  ctx.setLineDash([]);
}

function drawCorner(ctx: CanvasRenderingContext2D, at: Point, paint: string, colours: AreaColours, closes: boolean): void {
  ctx.beginPath();
  ctx.arc(at.x, at.y, closes ? CORNER_PX + 2.5 : CORNER_PX, 0, 2 * Math.PI);
  ctx.fillStyle = closes ? paint : colours.labelBack;
  ctx.fill();
  ctx.strokeStyle = closes ? colours.labelBack : paint;
  ctx.lineWidth = 2;
  ctx.stroke();
}

function drawCross(ctx: CanvasRenderingContext2D, at: Point, paint: string): void {
  ctx.strokeStyle = paint;
  ctx.lineWidth = 1.6;
  for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]] as const) {
    trace(ctx, [{ x: at.x + dx * 5, y: at.y + dy * 5 }, { x: at.x + dx * 14, y: at.y + dy * 14 }]);
    ctx.stroke();
  }
}

function trace(ctx: CanvasRenderingContext2D, ring: readonly Point[]): void {
  ctx.beginPath();
  ring.forEach(({ x, y }, index) => (index === 0 ? ctx.moveTo(x, y) : ctx.lineTo(x, y)));
}

function colour(colours: AreaColours, name: string): string {
  return colours.areas[name] ?? (colours.areas["slate"] as string);
}

function overlaps(a: Label, b: Label): boolean {
  return a.left < b.left + b.width && b.left < a.left + a.width && a.top < b.top + LABEL_HEIGHT && b.top < a.top + LABEL_HEIGHT;
}
