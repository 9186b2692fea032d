// The page: brings store, map, list, card and connection together. What is said to the service is in api.ts and live.ts.

import "@fontsource-variable/inter/wght.css";
import "./styles/theme.css";
import "./styles/page.css";
import "./styles/panel.css";
import "./styles/detail.css";
import "./styles/areas.css";
import "./styles/narrow.css";
import { Api } from "./api";
import { AreaDesk } from "./area-desk";
import { AreaStore, seenOf } from "./areas";
import landUrl from "../../data/nyharbor_land.geojson?url";
import { Live } from "./live";
import type { Land } from "./map/basemap";
import { HarborMap } from "./map/map";
import { type Account, Session } from "./session";
import { Store, type Vessel } from "./store";
import { AccountView } from "./ui/account";
import { ConnectionView } from "./ui/connection";
import { DetailCard } from "./ui/detail";
import { byId, el, setText } from "./ui/dom";
import { Filters } from "./ui/filters";
import { VesselList } from "./ui/list";
import { Panel } from "./ui/panel";
import { popover } from "./ui/popover";
import { mapColours, ThemeSwitch } from "./ui/theme";

const LIST_MS = 1_000;
const SCALE_PX_MAX = 90;

class Page {
  private readonly api = new Api();
  private readonly store = new Store();
  private readonly areas = new AreaStore();
  private readonly session = new Session(
    this.api,
    (token, same) => this.sessionChanged(token, same),
    (account) => void this.sessionEnded(account),
  );
  private readonly connection = new ConnectionView();
  private readonly panel = new Panel(() => this.layout());
  private readonly list = new VesselList(this.store, (id) => this.select(id));
  private readonly filters = new Filters(this.store, () => this.refresh(), () => this.list.focus());
  private readonly detail = new DetailCard({ closed: () => this.select(null), followed: () => this.follow() });
  private readonly account = new AccountView(this.api, this.session);
  private readonly map: HarborMap;
  private readonly desk: AreaDesk;
  private readonly live: Live;
  private loaded = false;
  /** Vessels, areas and trails: from then on what arrives keeps the picture whole. */
  private whole = false;
  private loading = 0;
  private problem: string | null = null;

  constructor() {
    this.map = new HarborMap(byId("map"), this.store, this.areas, mapColours(), {
      areaPicked: (id) => this.desk.pick(id),
      sketched: (at, reach) => this.desk.drawing.tap(at, reach),
      sketchDone: () => this.desk.drawing.close(),
      sketchKey: (key) => this.desk.drawing.key(key),
      picked: (id) => this.select(id),
      panned: () => this.follow(false),
      scaleChanged: (metres) => showScale(metres),
    });
    this.desk = new AreaDesk(this.api, this.areas, this.store, this.map, {
      vesselPicked: (id) => this.select(id),
      makeRoom: () => this.panel.makeRoomForMap(),
      layout: () => this.layout(),
    });
    new ThemeSwitch(() => this.map?.setColours(mapColours()));
    this.live = new Live({
      state: (state) => this.connection.state(state),
      hello: (hello, complete) => {
        this.connection.hello(hello);
        if (!complete || !this.whole) void this.load();
      },
      positions: (batch) => {
        this.store.report(batch, performance.now());
        this.connection.heard(performance.now());
      },
      devices: (devices) => this.store.describe(devices),
      sharing: () => void this.load(),
      areas: () => void this.desk.loadAreas().then((done) => (this.whole &&= done)), // else with the next connection
      alert: (alert) => this.desk.alert(alert),
      status: (status) => this.connection.status(status),
      refused: () => this.session.end(),
    });
    popover(byId("connection-button"), byId("fleet-panel"), () => undefined);
    byId("zoom-in").addEventListener("click", () => this.map.zoom(0.7));
    byId("zoom-out").addEventListener("click", () => this.map.zoom(-0.7));
    byId("zoom-home").addEventListener("click", () => this.map.home());
    document.addEventListener("keydown", (event) => this.key(event));
    setInterval(() => this.refresh(), LIST_MS);
    this.layout();
    this.refresh();
  }

  async start(): Promise<void> {
    void this.loadLand();
    try {
      const config = await this.api.config();
      this.account.demoOffered = config.demo;
      if (await this.session.resume()) return;
      await this.enter();
    } catch {
      this.problem = "The service cannot be reached.";
      this.refresh();
      setTimeout(() => void this.start(), 2_000);
    }
  }

  /** Without a session: straight into the demonstration where there is one. */
  private async enter(): Promise<void> {
    if (this.account.demoOffered) this.session.begin(await this.api.demo());
    else this.account.ask();
  }

  /** The demo viewer simply begins anew (the demonstration was started again); others are asked. */
  private async sessionEnded(account: Account | null): Promise<void> {
    if (account === null) return; // nobody was in yet: start() goes on
    if (!account.demo) {
      this.sessionChanged(null, false);
      this.account.ask(false, "The session has ended. Please sign in again.");
      return;
    }
    await this.enter().catch(() => this.sessionChanged(null, false));
  }

  private async loadLand(): Promise<void> {
    const response = await fetch(landUrl);
    this.map.setLand((await response.json()) as Land);
    document.body.classList.add("with-land");
  }

  private sessionChanged(token: string | null, sameAccount: boolean): void {
    this.account.update();
    this.problem = null;
    if (token === null) {
      this.live.close();
      this.select(null);
      this.store.clear();
      this.desk.clear(null);
      this.loaded = false;
      this.refresh();
      this.account.ask();
    } else if (sameAccount) {
      this.live.renew(token);
    } else {
      this.select(null);
      this.store.clear();
      this.desk.clear(seenOf(this.session.account?.email ?? ""));
      this.loaded = false;
      this.live.open(() => this.session.token);
    }
  }

  /** The whole picture: after a connection that may have missed something, and when sharing has changed. The newest
   *  call wins. */
  private async load(): Promise<void> {
    const call = ++this.loading;
    this.whole = false;
    try {
      const vessels = await this.api.vessels();
      if (call !== this.loading) return;
      this.store.replace(vessels, performance.now());
      this.loaded = true;
      this.problem = null;
      if (this.store.selected === null) this.closeDetail();
      this.refresh();
      await this.desk.load();
      const trails = await this.api.trails();
      if (call !== this.loading) return;
      this.store.addTrails(trails);
      this.whole = true;
    } catch (error) {
      if (call !== this.loading) return;
      this.problem = error instanceof Error ? error.message : "The vessels could not be loaded.";
      this.refresh();
    }
  }

  private select(id: string | null): void {
    const vessel = id === null ? undefined : this.store.get(id);
    this.follow(false);
    this.store.selected = vessel?.id ?? null;
    if (vessel === undefined) this.closeDetail();
    else this.openDetail(vessel);
    this.refresh();
  }

  private openDetail(vessel: Vessel): void {
    this.detail.show(vessel, false);
    this.panel.showDetail(true);
    this.panel.makeRoom();
    this.layout();
    this.map.show(vessel);
    this.list.reveal(vessel.id);
    setText(byId("announce"), `${vessel.label} selected`);
    this.api.track(vessel.id).then(
      (track) => this.detail.setTrack(vessel.id, track),
      () => undefined, // the card stands without the past hour
    );
  }

  private closeDetail(): void {
    this.detail.hide();
    this.panel.showDetail(false);
    this.layout();
  }

  private follow(on = !this.map.following): void {
    this.map.following = on && this.store.selected !== null;
    this.detail.setFollowing(this.map.following);
    const vessel = this.store.selected === null ? undefined : this.store.get(this.store.selected);
    if (this.map.following && vessel !== undefined) this.map.show(vessel);
  }

  private layout(): void {
    this.map?.layout({ ...this.panel.insets(), right: this.desk?.coversPx ?? 0 });
  }

  private refresh(): void {
    this.store.refresh();
    this.list.update();
    this.filters.update();
    this.detail.update(performance.now());
    this.desk.update();
    this.connection.update(performance.now());
    const shown = this.store.visible.length;
    const words = shown === this.store.size ? `${shown} vessels` : `${shown} of ${this.store.size}`;
    setText(byId("counts"), this.loaded ? words : "");
    this.showEmpty(shown);
  }

  private showEmpty(shown: number): void {
    const box = byId("empty");
    const state = this.problem !== null ? "problem" : !this.loaded ? "loading" : this.store.size === 0 ? "none" : shown === 0 ? "filtered" : "";
    byId("list").hidden = state !== "" && shown === 0;
    box.hidden = state === "" || shown > 0;
    if (box.dataset["state"] === state) return;
    box.dataset["state"] = state;
    box.replaceChildren(...this.emptyWords(state));
  }

  private emptyWords(state: string): Node[] {
    if (state === "loading") return Array.from({ length: 7 }, () => el("div", { class: "ghost", "aria-hidden": "true" }, el("i"), el("span")));
    if (state === "problem") return [el("h2", {}, "The harbor is out of sight"), el("p", {}, `${this.problem} Harbor tries again by itself.`)];
    if (state === "none") {
      const words = "When somebody shares a fleet with you, or your own devices report, their vessels appear here at once.";
      return [el("h2", {}, "No vessels yet"), el("p", {}, words)];
    }
    if (state !== "filtered") return [];
    const reset = el("button", { type: "button", class: "secondary" }, "Show all vessels");
    reset.addEventListener("click", () => this.filters.reset());
    return [el("h2", {}, "Nothing matches"), el("p", {}, "No vessel passes the search and the filters."), reset];
  }

  private key(event: KeyboardEvent): void {
    const target = event.target as HTMLElement;
    const typing = target.matches("input, textarea");
    if (byId<HTMLDialogElement>("dialog").open || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") this.escape(typing, target);
    else if (typing) return;
    else if (event.key === "/") this.filters.focusSearch();
    else if (event.key === "a" && this.session.account !== null) this.desk.drawing.begin(true);
    else if (event.key === "f" && this.store.selected !== null) this.follow();
    else return;
    event.preventDefault();
  }

  /** Escape goes back one step: the drawing, the search's text, the search, the card. */
  private escape(typing: boolean, target: HTMLElement): void {
    if (this.desk.drawing.active) {
      this.desk.drawing.end();
      return;
    }
    if (typing && this.filters.clearSearch()) return;
    if (typing) target.blur();
    else if (this.store.selected !== null) {
      this.select(null);
      this.list.focus();
    }
  }
}

function showScale(metresPerPixel: number): void {
  const room = metresPerPixel * SCALE_PX_MAX;
  const nice = [100, 200, 500, 926, 1_852, 3_704, 9_260, 18_520].filter((metres) => metres <= room).at(-1) ?? 100;
  const scale = byId("scale");
  (scale.querySelector("i") as HTMLElement).style.width = `${Math.round(nice / metresPerPixel)}px`;
  setText(scale.querySelector("b") as Element, nice < 900 ? `${nice} m` : `${nice / 1_852} nm`);
}

const page = new Page();
void page.start();
