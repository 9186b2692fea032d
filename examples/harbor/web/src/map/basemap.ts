// The sea chart below the vessels: land with a shore that grows lighter towards the water's edge, a graticule, names. It is
// drawn only when the camera or the theme changes.

import type { Camera } from "./camera";
import { PLACES } from "./places";
import { type Box, type Point, project, unproject } from "./projection";

/** Land paths are kept in these units, small enough for the float32 of a Path2D. */
const UNITS = 2 ** 20;
const SHORE_PX = [34, 22, 12, 5] as const;

export interface BasemapColours {
  sea: string;
  shore: string;
  land: string;
  coast: string;
  grid: string;
  landName: string;
  waterName: string;
  halo: string;
}

type Ring = [lon: number, lat: number][];
interface Geometry {
  type: "Polygon" | "MultiPolygon";
  coordinates: Ring[] | Ring[][];
}
export interface Land {
  geometries: Geometry[];
}

export class Basemap {
  private readonly origin: Point;
  private land = new Path2D();

  constructor(private readonly box: Box) {
    this.origin = project(box.north, box.west);
  }

  load(land: Land): void {
    const path = new Path2D();
    for (const geometry of land.geometries) {
      const polygons = geometry.type === "Polygon" ? [geometry.coordinates as Ring[]] : (geometry.coordinates as Ring[][]);
      for (const rings of polygons) for (const ring of rings) this.addRing(path, ring);
    }
    this.land = path;
  }

  draw(ctx: CanvasRenderingContext2D, camera: Camera, colours: BasemapColours, ratio: number): void {
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.fillStyle = colours.sea;
    ctx.fillRect(0, 0, camera.width, camera.height);
    this.drawLand(ctx, camera, colours, ratio);
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.drawGrid(ctx, camera, colours);
    this.drawNames(ctx, camera, colours);
  }

  private drawLand(ctx: CanvasRenderingContext2D, camera: Camera, colours: BasemapColours, ratio: number): void {
    const corner = camera.toScreen(this.origin);
    const scale = camera.scale / UNITS;
    ctx.setTransform(scale * ratio, 0, 0, scale * ratio, corner.x * ratio, corner.y * ratio);
    ctx.lineJoin = "round";
    ctx.strokeStyle = colours.shore;
    const wide = Math.min(2.2, 2 ** ((camera.zoom - 11) / 2.2));
    for (const width of SHORE_PX) {
      ctx.lineWidth = (width * wide) / scale;
      ctx.stroke(this.land);
    }
    ctx.fillStyle = colours.land;
    ctx.fill(this.land, "evenodd");
    ctx.strokeStyle = colours.coast;
    ctx.lineWidth = 1.1 / scale;
    ctx.stroke(this.land);
  }

  private drawGrid(ctx: CanvasRenderingContext2D, camera: Camera, colours: BasemapColours): void {
    const stepDeg = [0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005].find((step) => (step / 360) * camera.scale < 260) ?? 0.005;
    const a = unproject(camera.toWorld({ x: 0, y: 0 }));
    const b = unproject(camera.toWorld({ x: camera.width, y: camera.height }));
    ctx.strokeStyle = colours.grid;
    ctx.lineWidth = 1;
    ctx.beginPath();
    for (let lon = Math.ceil(a.lon / stepDeg) * stepDeg; lon < b.lon; lon += stepDeg) {
      const x = Math.round(camera.toScreen(project(a.lat, lon)).x) + 0.5;
      ctx.moveTo(x, 0);
      ctx.lineTo(x, camera.height);
    }
    for (let lat = Math.ceil(b.lat / stepDeg) * stepDeg; lat < a.lat; lat += stepDeg) {
      const y = Math.round(camera.toScreen(project(lat, a.lon)).y) + 0.5;
      ctx.moveTo(0, y);
      ctx.lineTo(camera.width, y);
    }
    ctx.stroke();
  }

  private drawNames(ctx: CanvasRenderingContext2D, camera: Camera, colours: BasemapColours): void {
    ctx.textAlign = "center";
    ctx.textBaseline = "middle";
    ctx.lineJoin = "round";
    for (const place of PLACES) {
      if (camera.zoom < place.zoom) continue;
      const { x, y } = camera.toScreen(place.at);
      if (x < -90 || y < -20 || x > camera.width + 90 || y > camera.height + 20) continue;
      ctx.globalAlpha = Math.min(1, (camera.zoom - place.zoom) * 3 + 0.35);
      ctx.font = `${place.water ? "italic 500" : "600"} ${place.size}px "Inter Variable", sans-serif`;
      ctx.letterSpacing = place.water ? "0.06em" : "0.12em";
      const name = place.water ? place.name : place.name.toUpperCase();
      if (!place.water) {
        ctx.strokeStyle = colours.halo;
        ctx.lineWidth = 3;
        ctx.strokeText(name, x, y);
      }
      ctx.fillStyle = place.water ? colours.waterName : colours.landName;
      ctx.fillText(name, x, y);
    }
    ctx.globalAlpha = 1;
    ctx.letterSpacing = "0px";
  }

  private addRing(path: Path2D, ring: Ring): void {
    const points = soften(ring.map(([lon, lat]) => project(lat, lon)), (point) => this.onEdge(point));
    points.forEach((point, index) => {
      const x = (point.x - this.origin.x) * UNITS;
      const y = (point.y - this.origin.y) * UNITS;
      if (index === 0) path.moveTo(x, y);
      else path.lineTo(x, y);
    });
    path.closePath();
  }

  private onEdge(point: Point): boolean {
    const { lat, lon } = unproject(point);
    const near = 1e-6;
    return lon <= this.box.west + near || lon >= this.box.east - near || lat >= this.box.north - near || lat <= this.box.south + near;
  }
}

/** Cuts corners twice (Chaikin): the generalised coast has needle-sharp ones. Points for which `keep` is true stay. */
function soften(ring: Point[], keep: (point: Point) => boolean): Point[] {
  let points = ring.slice(0, -1); // GeoJSON repeats the first point at the end
  for (let round = 0; round < 2; round += 1) {
    const next: Point[] = [];
    points.forEach((point, index) => {
      const before = points[(index + points.length - 1) % points.length] as Point;
      const after = points[(index + 1) % points.length] as Point;
      if (keep(point)) next.push(point);
      else next.push(towards(point, before), towards(point, after));
    });
    points = next;
  }
  return points;
}

function towards(from: Point, to: Point): Point {
  return { x: from.x + (to.x - from.x) * 0.22, y: from.y + (to.y - from.y) * 0.22 };
}
