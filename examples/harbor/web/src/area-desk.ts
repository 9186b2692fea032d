// Areas and alerts brought together: the drawing on the map, the watch panel, the dialog, and what the service says of them.

import type { Api } from "./api";
import type { Area, AreaStore, Seen } from "./areas";
import type { Alert } from "./contract";
import type { HarborMap } from "./map/map";
import { project, unproject } from "./map/projection";
import type { Sketch } from "./map/sketch";
import type { Store } from "./store";
import { askArea } from "./ui/area-form";
import { byId, setText } from "./ui/dom";
import { Drawing } from "./ui/drawing";
import { Watch } from "./ui/watch";

/** The width of the watch panel and its margin, as areas.css has them. */
const WATCH_PX = 352;

export interface AreaDeskEvents {
  vesselPicked(id: string): void;
  /** The map needs the room that a sheet covers. */
  makeRoom(): void;
  layout(): void;
}

export class AreaDesk {
  readonly drawing: Drawing;
  private readonly watch: Watch;
  private loading = 0;

  constructor(
    private readonly api: Api,
    private readonly areas: AreaStore,
    store: Store,
    private readonly map: HarborMap,
    private readonly events: AreaDeskEvents,
  ) {
    this.drawing = new Drawing(map, {
      began: () => {
        this.watch.close();
        this.events.makeRoom();
      },
      closed: (sketch) => this.name(sketch),
      ended: () => undefined,
    });
    this.watch = new Watch(areas, store, {
      alertPicked: (alert) => this.flyTo(alert),
      areaPicked: (area) => {
        this.giveWay();
        this.map.showBox(area.box);
      },
      edited: (area) => this.edit(area),
      draw: (keyboard) => this.drawing.begin(keyboard),
      older: () => void this.older(),
      moved: () => this.events.layout(),
    });
    byId("draw").addEventListener("click", (event) => this.drawing.begin(event.detail === 0));
  }

  /** How much of the map the watch panel covers at the right; nothing where it lies over everything else. */
  get coversPx(): number {
    return this.watch.open && matchMedia("(min-width: 1000px)").matches ? WATCH_PX : 0;
  }

  /** Another account, or none. */
  clear(seen: Seen | null): void {
    this.loading += 1;
    this.drawing.end();
    this.areas.clear(seen);
    this.changed();
  }

  /** The whole picture: when the page loads it, and when sharing has changed. The newest call wins. */
  async load(): Promise<void> {
    const call = ++this.loading;
    const [{ areas }, alerts] = await Promise.all([this.api.areas(), this.api.alerts()]);
    if (call !== this.loading) return;
    this.areas.setAreas(areas);
    this.areas.replaceAlerts(alerts);
    this.changed();
  }

  /** Areas were drawn, changed or deleted, here or elsewhere. False: they could not be read now. */
  async loadAreas(): Promise<boolean> {
    const call = ++this.loading;
    const { areas } = await this.api.areas().catch(() => ({ areas: null }));
    if (areas === null || call !== this.loading) return areas !== null;
    this.areas.setAreas(areas);
    this.changed();
    return true;
  }

  alert(alert: Alert): void {
    const now = performance.now();
    if (!this.areas.add(alert, now)) return;
    this.watch.arrived(alert, now);
    this.map.touchAreas();
  }

  update(): void {
    this.watch.update();
  }

  /** The label of an area was clicked on the map. */
  pick(id: number): void {
    const area = this.areas.get(id);
    if (area !== undefined) this.watch.reveal(area);
  }

  private changed(): void {
    this.watch.update();
    this.map.touchAreas();
  }

  /** On a phone the panel covers the map that is to be looked at. */
  private giveWay(): void {
    if (matchMedia("(max-width: 760px)").matches) this.watch.close();
  }

  private flyTo(alert: Alert): void {
    this.giveWay();
    this.events.vesselPicked(alert.device);
    this.map.showPlace(project(alert.lat, alert.lon));
  }

  private name(sketch: Sketch): void {
    askArea(null, sketch.colour, {
      save: async (name, colour) => {
        const points = sketch.corners.map((corner): [number, number] => {
          const { lat, lon } = unproject(corner);
          return [round(lat), round(lon)];
        });
        await this.api.drawArea({ name, colour, points });
        await this.loadAreas();
        this.drawing.end();
        setText(byId("announce"), `Area ${name} saved`);
      },
      remove: null,
      colourTried: (colour) => {
        sketch.colour = colour;
        this.map.touchAreas();
      },
      left: () => byId("map").focus({ preventScroll: true }),
    });
  }

  private edit(area: Area): void {
    const { colour } = area;
    askArea(area, colour, {
      save: async (name, chosen) => {
        await this.api.changeArea(area.id, { name, colour: chosen });
        await this.loadAreas();
      },
      remove: async () => {
        await this.api.deleteArea(area.id);
        await this.loadAreas();
        setText(byId("announce"), `Area ${area.name} deleted`);
      },
      colourTried: (chosen) => {
        area.colour = chosen;
        this.changed();
      },
      left: () => {
        area.colour = colour;
        this.changed();
      },
    });
  }

  private async older(): Promise<void> {
    const { next } = this.areas;
    if (next === null) return;
    const answer = await this.api.alerts(next).catch(() => null);
    if (answer === null || next !== this.areas.next) return; // asked again by the next click
    this.areas.addOlder(answer);
    this.changed();
  }
}

/** A millionth of a degree is a tenth of a metre. */
function round(degrees: number): number {
  return Math.round(degrees * 1e6) / 1e6;
}
