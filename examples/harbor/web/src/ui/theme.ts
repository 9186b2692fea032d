// Light and dark: the system's choice until the reader makes one. Colours live in CSS variables; the canvas reads them here.

import { AREA_COLOURS } from "../colours";
import { KINDS } from "../kinds";
import type { MapColours } from "../map/map";
import { byId } from "./dom";

const KEY = "harbor-theme";
type Theme = "light" | "dark";

export class ThemeSwitch {
  private readonly system = matchMedia("(prefers-color-scheme: dark)");
  private readonly button = byId<HTMLButtonElement>("theme");

  constructor(private readonly changed: () => void) {
    this.button.addEventListener("click", () => this.choose(this.current === "dark" ? "light" : "dark"));
    this.system.addEventListener("change", () => this.apply());
    this.apply();
  }

  private get current(): Theme {
    const chosen = localStorage.getItem(KEY);
    if (chosen === "light" || chosen === "dark") return chosen;
    return this.system.matches ? "dark" : "light";
  }

  private choose(theme: Theme): void {
    localStorage.setItem(KEY, theme);
    this.apply();
  }

  private apply(): void {
    const theme = this.current;
    document.documentElement.dataset["theme"] = theme;
    this.button.setAttribute("aria-label", theme === "dark" ? "Use the light theme" : "Use the dark theme");
    this.button.querySelector("use")?.setAttribute("href", theme === "dark" ? "#i-sun" : "#i-moon");
    this.changed();
  }
}

export function mapColours(): MapColours {
  const style = getComputedStyle(document.documentElement);
  const read = (name: string): string => style.getPropertyValue(name).trim();
  return {
    base: {
      sea: read("--sea"),
      shore: read("--shore"),
      land: read("--land"),
      coast: read("--coast"),
      grid: read("--grid"),
      landName: read("--land-name"),
      waterName: read("--water-name"),
      halo: read("--land"),
    },
    areas: {
      areas: Object.fromEntries(AREA_COLOURS.map((name) => [name, read(`--area-${name}`)])),
      ink: read("--ink"),
      labelBack: read("--label-back"),
      bad: read("--bad"),
    },
    vessels: {
      kinds: Object.fromEntries(KINDS.map((kind) => [kind.id, read(`--kind-${kind.id}`)])),
      outline: read("--marker-outline"),
      ink: read("--ink"),
      labelBack: read("--label-back"),
      accent: read("--accent"),
    },
  };
}
