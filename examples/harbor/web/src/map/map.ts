// The map: two canvases (chart, vessels), a camera, gestures and the drawing loop. It reads vessels from the store and tells
// the page what was picked.

import type { AreaStore } from "../areas";
import { nextHeading, type Store, type Vessel } from "../store";
import { type AreaColours, AreaLayer } from "./area-layer";
import { Basemap, type BasemapColours, type Land } from "./basemap";
import { Camera, type Insets } from "./camera";
import { Gestures } from "./gestures";
import { type Box, metresPerUnit, type Point, unproject } from "./projection";
import type { Sketch } from "./sketch";
import { VesselLayer, type VesselColours } from "./vessel-layer";

/** The land data covers this box. */
const BOX: Box = { west: -74.35, south: 40.352, east: -73.602, north: 40.904 };
const HOME: Box = { west: -74.2, south: 40.565, east: -73.93, north: 40.775 };
const IDLE_FRAME_MS = 32;
const SELECT_ZOOM = 13.2;
const AREA_ZOOM_MAX = 15;
/** How near to a corner of the sketch a tap means that corner. */
const REACH_PX = 11;
const REACH_TOUCH_PX = 24;

export interface MapColours {
  base: BasemapColours;
  areas: AreaColours;
  vessels: VesselColours;
}

export interface MapEvents {
  picked(id: string | null): void;
  areaPicked(id: number): void;
  /** While an area is drawn: a tap there, a double click, a key. */
  sketched(at: Point, reach: number): void;
  sketchDone(): void;
  sketchKey(key: string): boolean;
  /** The user moved the map by hand: following ends. */
  panned(): void;
  scaleChanged(metresPerPixel: number): void;
}

export class HarborMap {
  following = false;
  /** The area that is being drawn: taps go to it then. */
  sketch: Sketch | null = null;
  private readonly camera = new Camera(BOX);
  private readonly basemap = new Basemap(BOX);
  private readonly layer = new VesselLayer();
  private readonly areaLayer = new AreaLayer();
  private readonly gestures: Gestures;
  private readonly base: HTMLCanvasElement;
  private readonly under: HTMLCanvasElement;
  private readonly live: HTMLCanvasElement;
  private readonly still = matchMedia("(prefers-reduced-motion: reduce)");
  private hovered: string | null = null;
  private dirty = true;
  private areasDirty = true;
  private placed = false;
  private lastFrameMs = 0;

  constructor(
    private readonly element: HTMLElement,
    private readonly store: Store,
    private readonly areas: AreaStore,
    private colours: MapColours,
    private readonly events: MapEvents,
  ) {
    this.base = element.querySelector(".map-base") as HTMLCanvasElement;
    this.under = element.querySelector(".map-areas") as HTMLCanvasElement;
    this.live = element.querySelector(".map-live") as HTMLCanvasElement;
    this.gestures = new Gestures(element, this.camera, {
      changed: () => this.touch(),
      panned: () => this.events.panned(),
      picked: (pixel, touch) => this.pick(pixel, touch),
      doubled: () => {
        if (this.sketch === null) return false;
        this.events.sketchDone();
        return true;
      },
      keyed: (key) => this.sketch !== null && this.events.sketchKey(key),
      hovered: (pixel) => this.hover(pixel),
      home: () => this.home(),
    });
    requestAnimationFrame((nowMs) => this.frame(nowMs));
  }

  setLand(land: Land): void {
    this.basemap.load(land);
    this.touch();
  }

  setColours(colours: MapColours): void {
    this.colours = colours;
    this.touch();
  }

  /** Areas or the sketch have changed. */
  touchAreas(): void {
    this.areasDirty = true;
  }

  /** The place in the middle of what is seen of the map. */
  get middle(): Point {
    return this.camera.toWorld(this.camera.focus);
  }

  /** The size of the window or what covers the map has changed. */
  layout(insets: Insets): void {
    const { clientWidth: width, clientHeight: height } = this.element;
    const ratio = this.ratio();
    for (const canvas of [this.base, this.under, this.live]) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    this.camera.resize(width, height, insets);
    if (!this.placed) this.camera.jumpTo(this.camera.zoomToFit(HOME));
    this.placed = true;
    this.touch();
  }

  home(): void {
    this.events.panned();
    this.go(this.camera.zoomToFit(HOME));
  }

  zoom(by: number): void {
    this.gestures.zoom(this.camera.focus, by);
  }

  show(vessel: Vessel): void {
    this.go({ centre: vessel.motion.at(performance.now()), zoom: Math.max(this.camera.zoom, SELECT_ZOOM) });
  }

  showBox(box: Box): void {
    const fit = this.camera.zoomToFit(box);
    this.go({ centre: fit.centre, zoom: Math.min(fit.zoom - 0.7, AREA_ZOOM_MAX) });
  }

  showPlace(at: Point): void {
    this.go({ centre: at, zoom: Math.max(this.camera.zoom, SELECT_ZOOM) });
  }

  private pick(pixel: Point, touch: boolean): void {
    if (this.sketch !== null) {
      this.events.sketched(this.camera.toWorld(pixel), (touch ? REACH_TOUCH_PX : REACH_PX) / this.camera.scale);
      return;
    }
    const vessel = this.layer.find(pixel, touch ? 26 : 16);
    const area = vessel === null ? this.areaLayer.find(pixel) : null;
    if (area === null) this.events.picked(vessel?.id ?? null);
    else this.events.areaPicked(area.id);
  }

  private go(target: { centre: Point; zoom: number }): void {
    if (this.still.matches) this.camera.jumpTo(target);
    else this.camera.flyTo(target, performance.now());
    this.touch();
  }

  private hover(pixel: Point | null): void {
    if (this.sketch !== null) {
      this.sketch.tip = pixel === null ? null : this.camera.toWorld(pixel);
      this.touchAreas();
      return;
    }
    this.hovered = pixel === null ? null : (this.layer.find(pixel, 14)?.id ?? null);
    const area = pixel === null || this.hovered !== null ? null : this.areaLayer.find(pixel);
    this.element.classList.toggle("map-pointing", this.hovered !== null || area !== null);
  }

  private touch(): void {
    this.dirty = true;
    this.areasDirty = true;
  }

  private ratio(): number {
    return Math.min(2, window.devicePixelRatio || 1);
  }

  private frame(nowMs: number): void {
    requestAnimationFrame((next) => this.frame(next));
    const elapsedMs = nowMs - this.lastFrameMs;
    if (!this.dirty && !this.areasDirty && !this.camera.flying && elapsedMs < IDLE_FRAME_MS) return; // 30 frames are enough for ships
    this.lastFrameMs = nowMs;
    const selected = this.store.selected === null ? undefined : this.store.get(this.store.selected);
    if (this.following && selected !== undefined) {
      this.camera.track(selected.motion.at(nowMs));
      this.touch();
    }
    if (this.camera.step(nowMs)) this.touch();
    for (const vessel of this.store.visible) vessel.shownHeadingDeg = nextHeading(vessel, elapsedMs);
    this.draw(nowMs);
  }

  private draw(nowMs: number): void {
    const ratio = this.ratio();
    if (this.dirty) {
      this.dirty = false;
      this.basemap.draw(context(this.base), this.camera, this.colours.base, ratio);
      const lat = unproject(this.camera.centre).lat;
      this.events.scaleChanged(metresPerUnit(lat) / this.camera.scale);
    }
    if (this.areasDirty) {
      const { areas } = this.areas;
      this.areasDirty = this.areaLayer.draw(context(this.under), this.camera, areas, this.sketch, this.colours.areas, ratio, nowMs);
    }
    const focus = { selected: this.store.selected, hovered: this.hovered };
    const pulseMs = this.still.matches ? 0 : nowMs;
    this.layer.draw(context(this.live), this.camera, this.store.visible, focus, this.colours.vessels, ratio, nowMs, pulseMs);
  }
}

function context(canvas: HTMLCanvasElement): CanvasRenderingContext2D {
  return canvas.getContext("2d") as CanvasRenderingContext2D;
}
