// Search, movement and kinds: the three filters of the list and the map.

import { KINDS } from "../kinds";
import type { Movement, Store } from "../store";
import { byId, el, setText } from "./dom";

export class Filters {
  private readonly search = byId<HTMLInputElement>("search");
  private readonly movement = byId("movement");
  private readonly kinds = byId("kinds");
  private readonly counts = new Map<string, HTMLElement>();

  constructor(
    private readonly store: Store,
    private readonly changed: () => void,
    toList: () => void,
  ) {
    this.search.addEventListener("input", () => this.set({ text: this.search.value }));
    this.search.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowDown" && event.key !== "Enter") return;
      event.preventDefault();
      toList();
    });
    this.movement.addEventListener("click", (event) => this.pickMovement(event));
    for (const kind of KINDS) this.kinds.append(this.chip(kind.id, kind.plural));
  }

  focusSearch(): void {
    this.search.focus();
    this.search.select();
  }

  /** Escape in the search field: empties it first. True when there was something to empty. */
  clearSearch(): boolean {
    if (this.search.value === "") return false;
    this.search.value = "";
    this.set({ text: "" });
    return true;
  }

  reset(): void {
    this.search.value = "";
    for (const button of this.movement.querySelectorAll("button")) press(button, button.dataset["movement"] === "all");
    for (const button of this.kinds.querySelectorAll("button")) press(button, false);
    this.set({ text: "", movement: "all", kinds: new Set() });
  }

  update(): void {
    const counts = this.store.countByKind();
    for (const [kind, element] of this.counts) {
      setText(element, String(counts.get(kind) ?? 0));
      element.parentElement?.toggleAttribute("hidden", !counts.has(kind));
    }
  }

  private chip(id: string, label: string): HTMLElement {
    const count = el("span", { class: "chip-count" }, "0");
    const dot = el("i", { "aria-hidden": "true" });
    const button = el("button", { type: "button", class: "chip", "data-kind": id, "aria-pressed": "false" }, dot, label, count);
    button.addEventListener("click", () => {
      const kinds = new Set(this.store.filter.kinds);
      press(button, !kinds.has(id));
      if (!kinds.delete(id)) kinds.add(id);
      this.set({ kinds });
    });
    this.counts.set(id, count);
    return button;
  }

  private pickMovement(event: Event): void {
    const picked = (event.target as Element).closest<HTMLElement>("[data-movement]");
    if (picked === null) return;
    for (const button of this.movement.querySelectorAll("button")) press(button, button === picked);
    this.set({ movement: picked.dataset["movement"] as Movement });
  }

  private set(change: Parameters<Store["setFilter"]>[0]): void {
    this.store.setFilter(change);
    this.changed();
  }
}

function press(button: Element, pressed: boolean): void {
  button.setAttribute("aria-pressed", String(pressed));
}
