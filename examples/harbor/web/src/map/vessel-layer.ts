// The vessels: trails, markers turned to their heading, hulls to scale when the map is close, names where there is room.

import { kindOf } from "../kinds";
import type { Vessel } from "../store";
import type { Camera } from "./camera";
import { metresPerUnit, type Point } from "./projection";

const TRAIL_MS = 25 * 60_000;
const HULL_PX_MIN = 20;
const LABEL_ZOOM = 13.4;

export interface VesselColours {
  kinds: Record<string, string>;
  outline: string;
  ink: string;
  labelBack: string;
  accent: string;
}

export interface Shown {
  vessel: Vessel;
  at: Point;
}

export interface Focus {
  selected: string | null;
  hovered: string | null;
}

export class VesselLayer {
  /** What was drawn last, for finding the vessel below a pointer. */
  shown: Shown[] = [];

  draw(ctx: CanvasRenderingContext2D, camera: Camera, vessels: Iterable<Vessel>, focus: Focus, colours: VesselColours, ratio: number, nowMs: number, pulseMs: number): void {
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, camera.width, camera.height);
    this.shown = [];
    for (const vessel of vessels) {
      const at = camera.toScreen(vessel.motion.at(nowMs));
      if (at.x > -60 && at.y > -60 && at.x < camera.width + 60 && at.y < camera.height + 60) this.shown.push({ vessel, at });
      else if (vessel.id === focus.selected) this.shown.push({ vessel, at });
    }
    this.shown.sort((a, b) => rank(a.vessel, focus) - rank(b.vessel, focus));
    for (const { vessel, at } of this.shown) this.drawTrail(ctx, camera, vessel, at, focus, colours);
    for (const { vessel, at } of this.shown) this.drawVessel(ctx, camera, vessel, at, focus, colours, pulseMs);
    this.drawLabels(ctx, camera, focus, colours);
  }

  /** The vessel nearest to a pixel, within reach. */
  find(pixel: Point, reachPx: number): Vessel | null {
    let best: Vessel | null = null;
    let bestPx = reachPx;
    for (const { vessel, at } of this.shown) {
      const px = Math.hypot(at.x - pixel.x, at.y - pixel.y);
      if (px < bestPx) [best, bestPx] = [vessel, px];
    }
    return best;
  }

  private drawTrail(ctx: CanvasRenderingContext2D, camera: Camera, vessel: Vessel, at: Point, focus: Focus, colours: VesselColours): void {
    const selected = vessel.id === focus.selected;
    if (!vessel.moving && !selected) return;
    const trail = vessel.trail;
    ctx.strokeStyle = colours.kinds[kindOf(vessel.info.kind).id] as string;
    ctx.lineCap = "butt"; // round ends of translucent pieces would show as dots
    ctx.lineWidth = selected ? 2.6 : 1.6;
    let previous: Point | null = null;
    for (let index = 0; index < trail.length; index += 1) {
      const point = trail[index] as (typeof trail)[number];
      const last = index === trail.length - 1;
      const spot = last ? at : camera.toScreen(point);
      const ageShare = Math.min(1, (vessel.timeMs - point.timeMs) / TRAIL_MS);
      if (previous !== null && ageShare < 1 && !point.breaks) {
        ctx.globalAlpha = (selected ? 0.95 : 0.62) * (1 - ageShare) ** 1.4;
        ctx.beginPath();
        ctx.moveTo(previous.x, previous.y);
        ctx.lineTo(spot.x, spot.y);
        ctx.stroke();
      }
      previous = spot;
    }
    ctx.globalAlpha = 1;
  }

  private drawVessel(ctx: CanvasRenderingContext2D, camera: Camera, vessel: Vessel, at: Point, focus: Focus, colours: VesselColours, pulseMs: number): void {
    const colour = colours.kinds[kindOf(vessel.info.kind).id] as string;
    const selected = vessel.id === focus.selected;
    if (selected) drawRing(ctx, at, colours, pulseMs);
    ctx.save();
    ctx.translate(at.x, at.y);
    ctx.fillStyle = colour;
    ctx.strokeStyle = colours.outline;
    ctx.lineWidth = 1.25;
    const hull = hullPx(vessel, camera);
    const size = markerSize(camera.zoom) * (selected || vessel.id === focus.hovered ? 1.2 : 1);
    if (hull !== null) {
      ctx.rotate((vessel.shownHeadingDeg * Math.PI) / 180);
      hullPath(ctx, hull.length, hull.width);
    } else if (vessel.moving) {
      ctx.rotate((vessel.shownHeadingDeg * Math.PI) / 180);
      arrowPath(ctx, size);
    } else {
      ctx.globalAlpha = selected ? 1 : 0.82;
      ctx.beginPath();
      ctx.arc(0, 0, size * 0.42, 0, 2 * Math.PI);
    }
    ctx.fill();
    ctx.stroke();
    ctx.restore();
  }

  private drawLabels(ctx: CanvasRenderingContext2D, camera: Camera, focus: Focus, colours: VesselColours): void {
    ctx.font = '600 11px "Inter Variable", sans-serif';
    ctx.textAlign = "left";
    ctx.textBaseline = "middle";
    const taken: [number, number, number, number][] = [];
    for (const { vessel, at } of [...this.shown].reverse()) {
      const always = vessel.id === focus.selected || vessel.id === focus.hovered;
      if (!always && (camera.zoom < LABEL_ZOOM || !vessel.info.name)) continue;
      const width = ctx.measureText(vessel.label).width;
      const left = at.x + Math.max(vessel.id === focus.selected ? 28 : 13, hullReachPx(vessel, camera) + 10);
      const box: [number, number, number, number] = [left - 5, at.y - 10, left + width + 5, at.y + 10];
      if (!always && taken.some((other) => overlaps(box, other))) continue;
      taken.push(box);
      ctx.fillStyle = colours.labelBack;
      ctx.beginPath();
      ctx.roundRect(box[0], box[1], box[2] - box[0], 20, 6);
      ctx.fill();
      ctx.fillStyle = colours.ink;
      ctx.fillText(vessel.label, left, at.y + 0.5);
    }
  }
}

function rank(vessel: Vessel, focus: Focus): number {
  if (vessel.id === focus.selected) return 3;
  if (vessel.id === focus.hovered) return 2;
  return vessel.moving ? 1 : 0;
}

function markerSize(zoom: number): number {
  return Math.min(15, Math.max(7.5, 7.5 + (zoom - 10) * 1.5));
}

function hullPx(vessel: Vessel, camera: Camera): { length: number; width: number } | null {
  const { length_m: lengthM, width_m: widthM } = vessel.info;
  if (lengthM === null || vessel.headingDeg === null) return null;
  const perMetre = camera.scale / metresPerUnit(40.66);
  const length = lengthM * perMetre;
  if (length < HULL_PX_MIN) return null;
  return { length, width: Math.max(length * 0.14, (widthM ?? lengthM * 0.22) * perMetre) };
}

/** How far a hull reaches to the right of its middle. */
function hullReachPx(vessel: Vessel, camera: Camera): number {
  const hull = hullPx(vessel, camera);
  if (hull === null) return 0;
  const heading = (vessel.shownHeadingDeg * Math.PI) / 180;
  return (hull.length * Math.abs(Math.sin(heading)) + hull.width * Math.abs(Math.cos(heading))) / 2;
}

function arrowPath(ctx: CanvasRenderingContext2D, size: number): void {
  ctx.beginPath();
  ctx.moveTo(0, -size);
  ctx.lineTo(size * 0.62, size * 0.72);
  ctx.lineTo(0, size * 0.38);
  ctx.lineTo(-size * 0.62, size * 0.72);
  ctx.closePath();
}

function hullPath(ctx: CanvasRenderingContext2D, length: number, width: number): void {
  const half = length / 2;
  const side = width / 2;
  ctx.beginPath();
  ctx.moveTo(0, -half);
  ctx.bezierCurveTo(side * 0.75, -half * 0.8, side, -half * 0.6, side, -half * 0.35);
  ctx.lineTo(side, half * 0.86);
  ctx.quadraticCurveTo(side * 0.92, half, side * 0.6, half);
  ctx.lineTo(-side * 0.6, half);
  ctx.quadraticCurveTo(-side * 0.92, half, -side, half * 0.86);
  ctx.lineTo(-side, -half * 0.35);
  ctx.bezierCurveTo(-side, -half * 0.6, -side * 0.75, -half * 0.8, 0, -half);
  ctx.closePath();
}

function drawRing(ctx: CanvasRenderingContext2D, at: Point, colours: VesselColours, pulseMs: number): void {
  const pulse = (pulseMs % 2_000) / 2_000;
  ctx.strokeStyle = colours.accent;
  ctx.lineWidth = 2;
  ctx.beginPath();
  ctx.arc(at.x, at.y, 20, 0, 2 * Math.PI);
  ctx.stroke();
  ctx.globalAlpha = 0.5 * (1 - pulse);
  ctx.beginPath();
  ctx.arc(at.x, at.y, 20 + pulse * 14, 0, 2 * Math.PI);
  ctx.stroke();
  ctx.globalAlpha = 1;
}

function overlaps(a: readonly number[], b: readonly number[]): boolean {
  const [a0 = 0, a1 = 0, a2 = 0, a3 = 0] = a;
  const [b0 = 0, b1 = 0, b2 = 0, b3 = 0] = b;
  return a0 < b2 && b0 < a2 && a1 < b3 && b1 < a3;
}
