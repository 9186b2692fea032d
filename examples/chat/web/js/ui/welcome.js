// Signing in, registering, coming in as one of the seeded users.

import { ask } from "../api.js";
import { $, avatar, h, show } from "../dom.js";

export class Welcome {
  #session;
  #done;
  #registering = false;

  constructor(session, done) {
    this.#session = session;
    this.#done = done;
    $("mode-in").addEventListener("click", () => this.#mode(false));
    $("mode-up").addEventListener("click", () => this.#mode(true));
    $("sign-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
  }

  async open(message = "") {
    show($("welcome"), true);
    show($("app"), false);
    document.title = "Quay";
    $("sign-error").textContent = message;
    const about = await ask("GET", "/api/about").catch(() => ({ framework: "", demo: [] }));
    if (about.framework) $("welcome-line").textContent = `A chat on three instances, with ${about.framework}.`;
    show($("demo"), about.demo.length > 0);
    $("demo-users").replaceChildren(...about.demo.map((user) => this.#demoUser(user)));
  }

  #demoUser(user) {
    const enter = () => this.#begin("/api/session/demo", { name: user.name });
    return h("button", { type: "button", class: "demo-user", onclick: enter }, avatar(user), user.display);
  }

  #mode(registering) {
    this.#registering = registering;
    $("mode-in").setAttribute("aria-pressed", String(!registering));
    $("mode-up").setAttribute("aria-pressed", String(registering));
    for (const id of ["sign-name-hint", "sign-display-row", "sign-password-hint"]) show($(id), registering);
    $("sign-password").autocomplete = registering ? "new-password" : "current-password";
    $("sign-submit").textContent = registering ? "Register" : "Sign in";
    $("sign-error").textContent = "";
    $("sign-name").focus();
  }

  #submit() {
    for (const id of ["sign-name", "sign-password"]) $(id).removeAttribute("aria-invalid");
    const name = $("sign-name").value.trim().toLowerCase();
    const password = $("sign-password").value;
    if (!this.#registering) return this.#begin("/api/session", { name, password });
    if (!/^[a-z][a-z0-9_.-]{1,29}$/.test(name)) return this.#wrong("sign-name", "Please choose another name: see the hint below it.");
    if ([...password].length < 10) return this.#wrong("sign-password", "The password needs 10 characters or more.");
    const display = $("sign-display").value.trim();
    return this.#begin("/api/users", { name, password, ...(display ? { display } : {}) });
  }

  #wrong(id, message) {
    $("sign-error").textContent = message;
    $(id).setAttribute("aria-invalid", "true");
    $(id).focus();
  }

  async #begin(path, body) {
    const buttons = $("welcome").querySelectorAll("button");
    for (const button of buttons) button.disabled = true;
    $("sign-error").textContent = "";
    try {
      await this.#session.begin(path, body);
    } catch (error) {
      $("sign-error").textContent = error.message;
      return;
    } finally {
      for (const button of buttons) button.disabled = false;
    }
    $("sign-form").reset();
    show($("welcome"), false);
    show($("app"), true);
    this.#done();
  }
}
